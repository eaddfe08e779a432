"""How a command comes to an SSH connection: the first time with a host key to accept, later with the pinned one."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from rbee.keeper import session
from rbee.keeper.failure import CommandFailed
from rbee.keeper.nodes import host_keys
from rbee.keeper.nodes.ssh import Ssh, Target, shown_key
from rbee.keeper.render import say
from rbee.wire.nodes import Node

Confirm = Callable[[str, str], bool]
"""Asks about a host's key: host, fingerprint."""
KNOWN_HOSTS = (Path("~/.ssh/known_hosts"), Path("/etc/ssh/ssh_known_hosts"))


def checked_key(key: Path | None) -> Path | None:
    """The key file as an absolute path; raises CommandFailed where it is not there or cannot be read."""
    if key is None:
        return None
    path = key.expanduser().absolute()
    if not path.is_file():
        raise CommandFailed(f"the key {path} is not there: name the file of your private key with --key")
    if not os.access(path, os.R_OK):
        raise CommandFailed(f"the key {path} cannot be read: run 'rbee' as its owner, or name another with --key")
    return path


def accepted_host_key(target: Target, given: str | None, confirm: Confirm, tell: Callable[[str], None] = say) -> str:
    """The server's host key once it is known to be the right one; raises HostKeyRefused, SshUnreachable.

    ``given`` is its fingerprint; ``confirm`` is asked where neither that nor known_hosts has it.
    """
    known = [key for file in KNOWN_HOSTS for key in host_keys.known(target.host, target.port, file.expanduser())]
    shown = shown_key(target, known, tell)
    return host_keys.accept(shown, known, given, lambda print_of: confirm(target.host, print_of))


def ask_person(host: str, print_of: str) -> bool:
    """Ask on the terminal whether the key is the machine's own; False where there is none."""
    if not sys.stdin.isatty():
        return False
    say(f"the host key of {host} is {print_of}")
    return click.confirm("Is this the machine's own key?", default=False, err=True)


def target_of(node: Node, key: Path | None = None) -> Target:
    """Where a node of the registry is reached; ``key`` goes before the one that was saved. Raises CommandFailed."""
    details = node.details
    saved = None if details.key_file is None else Path(details.key_file)
    return Target(details.host, details.port, details.user, checked_key(key or saved), session.settings().timeout_s)


def connect(node: Node, key: Path | None = None, tell: Callable[[str], None] = say) -> Ssh:
    """A connection to a node of the registry, not open yet; its host key is pinned."""
    return Ssh(target_of(node, key), node.details.host_key, tell)
