"""Saves a machine in the queen's registry, or changes what she knows of it, once SSH to it is proven."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rbee.keeper import session
from rbee.keeper.failure import CommandFailed
from rbee.keeper.nodes import preflight, queen, reach
from rbee.keeper.nodes.ssh import Ssh, Target
from rbee.keeper.render import say
from rbee.wire.nodes import Check, Node, NodeDetails, NodeTls, NodeUpdate


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a person says of a machine; None leaves what is known, or the usual.

    ``host_key`` is a fingerprint, ``key`` the file of a private key, ``addresses`` the IP addresses of its workers
    (empty: the one that is reached), ``packages`` where its packages come from.
    """

    host: str | None = None
    port: int | None = None
    user: str | None = None
    key: Path | None = None
    host_key: str | None = None
    addresses: tuple[str, ...] = ()
    packages: str | None = None
    tls: NodeTls | None = None


def add(name: str, wanted: Wanted, *, confirm: reach.Confirm, tell: Callable[[str], None] = say) -> Node:
    """Prove SSH to the machine and save it.

    ``confirm`` is asked about a host key that nobody named. Raises what SSH and the queen raise, CommandFailed.
    """
    target = Target(
        wanted.host or name,
        wanted.port or 22,
        wanted.user or "root",
        reach.checked_key(wanted.key),
        session.settings().timeout_s,
    )
    pinned = reach.accepted_host_key(target, wanted.host_key, confirm, tell)
    with Ssh(target, pinned, tell) as ssh:
        found = _looked_at(ssh, name, tell)
        details = NodeDetails(
            name=name,
            host=target.host,
            host_key=pinned,
            addresses=list(wanted.addresses) or [ssh.address],
            port=target.port,
            user=target.user,
            key_file=None if target.key_file is None else str(target.key_file),
            source=wanted.packages or "",
            version=found.hive_version,
            tls=wanted.tls or NodeTls.MUTUAL,
        )
    return queen.add(details)


def update(node: Node, wanted: Wanted, *, confirm: reach.Confirm, tell: Callable[[str], None] = say) -> Node:
    """Prove SSH by what is wanted, then save that; raises as :func:`add`."""
    known = node.details
    before = reach.target_of(node, wanted.key)
    target = dataclasses.replace(
        before, host=wanted.host or known.host, port=wanted.port or known.port, user=wanted.user or known.user
    )
    moved = (target.host, target.port) != (known.host, known.port)
    pinned = known.host_key
    if moved or wanted.host_key:
        pinned = reach.accepted_host_key(target, wanted.host_key, confirm, tell)
    with Ssh(target, pinned, tell) as ssh:
        found = _looked_at(ssh, known.name, tell)
        change = NodeUpdate(
            name=known.name,
            host=wanted.host,
            host_key=pinned,
            addresses=list(wanted.addresses) or ([ssh.address] if moved else None),
            port=wanted.port,
            user=wanted.user,
            key_file=None if target.key_file is None else str(target.key_file),
            source=wanted.packages,
            version=found.hive_version,
            tls=wanted.tls,
            connected=True,
        )
    return queen.update(change)


def _looked_at(ssh: Ssh, name: str, tell: Callable[[str], None]) -> preflight.Found:
    found = preflight.look(ssh, name)
    for one in found.checks:
        tell(line_of(one))
    if not found.good:
        raise CommandFailed(f"node {name} was not saved: see what is marked with '!'")
    return found


def line_of(check: Check) -> str:
    """A check as a line for a person."""
    return f"  {'ok' if check.good else ' !'} {check.name}: {check.found}" + (f"; {check.hint}" if check.hint else "")
