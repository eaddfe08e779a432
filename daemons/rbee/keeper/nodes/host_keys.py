"""Which host key is the right one: the pinned one, else the one of known_hosts, else the fingerprint that was given."""

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

import paramiko

from rbee.keeper.nodes.failures import HostKeyRefused


def fingerprint(key: str) -> str:
    """The fingerprint of a key as known_hosts has it (type and base64), in the form that ssh-keygen -l shows."""
    digest = hashlib.sha256(base64.b64decode(key.split(" ")[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def name_of(host: str, port: int) -> str:
    """A host's name in known_hosts."""
    return host if port == 22 else f"[{host}]:{port}"


def known(host: str, port: int, file: Path) -> list[str]:
    """The keys that a known_hosts file has of a host, hashed names included; none where there is no such file."""
    try:
        found = paramiko.HostKeys(str(file)).lookup(name_of(host, port))
    except OSError:
        return []
    return [] if found is None else [f"{kind} {key.get_base64()}" for kind, key in found.items()]


def accept(shown: str, known_keys: list[str], given: str | None, confirm: Callable[[str], bool]) -> str:
    """Return the key ``shown`` by a server when it is the right one; raises HostKeyRefused.

    ``known_keys`` are those of known_hosts: where there are any, it must be one of them. ``given`` is the fingerprint
    that the person named: it must be that one. Where neither is there, ``confirm`` asks the person about it.
    """
    print_of = fingerprint(shown)
    if given is not None and given != print_of:
        raise HostKeyRefused(
            f"the server's host key is {print_of}, and --host-key names {given}: nothing was sent to it"
        )
    if known_keys and shown not in known_keys:
        raise changed(print_of, "known_hosts has another one")
    if given is None and not known_keys and not confirm(print_of):
        raise HostKeyRefused(
            f"the server's host key {print_of} is not known: compare it with what 'ssh-keygen -lf "
            "/etc/ssh/ssh_host_ed25519_key.pub' says on the machine itself, then give it as --host-key",
            details={"fingerprint": print_of},
        )
    return shown


def changed(print_of: str, which: str) -> HostKeyRefused:
    """The error of a key that is another than the one that is known."""
    return HostKeyRefused(
        f"the server's host key is {print_of}, but {which}: nothing was sent to it. Somebody may be in between. If the "
        "machine was set up anew, take its new key with 'rbee node update NAME --host-key SHA256:...'",
        details={"fingerprint": print_of},
    )
