"""Who is at the other end of a Unix socket, as the kernel says (SO_PEERCRED and SO_PEERGROUPS, unix(7))."""

import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass

from rbee.wire.auth import Identity, Role
from rbee.wire.errors import Forbidden

_CREDENTIALS = struct.Struct("3i")
_SO_PEERGROUPS = 59  # asm-generic/socket.h; the socket module has no name for it
ADMIN_GROUP = "rbee"


@dataclass(frozen=True, slots=True)
class Peer:
    """A process at the other end: its PID, user, primary group, and supplementary groups."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]


def peer_of(connection: socket.socket) -> Peer:
    """The peer of a connected Unix socket; raises Forbidden for any other family.

    On a TCP socket SO_PEERCRED answers uid -1 instead of failing: the family is checked first.
    """
    if connection.family != socket.AF_UNIX:
        raise Forbidden("peer credentials exist on a Unix socket only")
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, uid, gid = _CREDENTIALS.unpack(raw)
    return Peer(pid, uid, gid, _groups(connection))


def _groups(connection: socket.socket) -> frozenset[int]:
    try:
        # 1024 bytes is the most that the socket module asks for; a member of more than 256 groups is not looked at
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError:
        return frozenset()
    return frozenset(struct.unpack(f"{len(raw) // 4}I", raw))


class PeerAdmins:
    """Who administers by Unix socket: root, the daemon's own user, a group, and users named in the configuration."""

    def __init__(self, users: frozenset[str] = frozenset(), group: str = ADMIN_GROUP) -> None:
        self._users = users
        self._group = group

    def identity(self, connection: socket.socket) -> Identity:
        """Who calls through ``connection``; raises Forbidden for one who is no administrator."""
        peer = peer_of(connection)
        if peer.uid in (0, os.geteuid()) or self._in_group(peer) or self._named(peer):
            return Identity(Role.API, f"uid:{peer.uid}", admin=True)
        raise Forbidden(
            f"user id {peer.uid} is no administrator here: become root or join the group '{self._group}'",
            details={"uid": peer.uid, "group": self._group},
        )

    def _in_group(self, peer: Peer) -> bool:
        try:
            gid = grp.getgrnam(self._group).gr_gid
        except KeyError:
            return False
        return gid == peer.gid or gid in peer.groups

    def _named(self, peer: Peer) -> bool:
        if not self._users:
            return False
        try:
            return pwd.getpwuid(peer.uid).pw_name in self._users
        except KeyError:
            return False
