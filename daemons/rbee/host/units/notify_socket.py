"""The receiving end of sd_notify (sd_notify(3)): datagrams of one child, checked to come from it."""

import asyncio
import secrets
import socket
import struct
from collections.abc import Callable, Mapping

_CREDENTIALS = struct.Struct("3i")
_MOST_BYTES = 4096
_MOST_DATAGRAMS = 64


class NotifySocket:
    """A Unix datagram socket in the abstract namespace; messages of other processes are dropped.

    ``on_message`` gets the assignments of each datagram that the process given to :meth:`listen_to` sent. What it
    sends before that waits in the socket: a quick child may speak before its parent knows its PID.
    """

    def __init__(self, on_message: Callable[[Mapping[str, str]], None]) -> None:
        self._on_message = on_message
        self._pid = 0
        name = f"rbee-notify-{secrets.token_hex(8)}"
        self.address = f"@{name}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind(f"\0{name}")

    def listen_to(self, pid: int) -> None:
        """Hear the process ``pid`` from now on, and what it said already."""
        self._pid = pid
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._readable)

    def close(self) -> None:
        """Read what is there, then stop listening."""
        if self._pid:
            self._readable()
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def _readable(self) -> None:
        for _ in range(_MOST_DATAGRAMS):
            try:
                data, ancillary, _, _ = self._socket.recvmsg(_MOST_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return
            if _sender(ancillary) == self._pid:
                self._on_message(parse(data))


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(data) >= _CREDENTIALS.size:
            return int(_CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0])
    return 0


def parse(data: bytes) -> dict[str, str]:
    """The assignments of one datagram: ``NAME=value`` lines; anything else in it is left out."""
    pairs = (line.partition("=") for line in data.decode("utf-8", "replace").split("\n"))
    return {name: value for name, equals, value in pairs if equals}


def microseconds(text: str) -> int | None:
    """A positive number of microseconds, or None where it is none."""
    return int(text) if text.isascii() and text.isdigit() and int(text) > 0 else None
