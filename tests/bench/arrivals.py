"""When a request's first bytes reach a worker, by the kernel's own stamp on the machine's loopback interface."""

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from tests.machines.testbed import Machine, processes

_ETH_P_IP = 0x0800
_SO_TIMESTAMPNS = 35
_WORKER_PORTS = range(8081, 9001)
_HEAD = 256
_SYN, _ACK = 0x02, 0x10


class Arrivals:
    """Watches for the length of a block; no process of rbee's is asked or slowed."""

    def __init__(self, machine: Machine, beginning: bytes, *, connects: bool = False) -> None:
        """``beginning`` is how a request's first line starts; ``connects``: attempts to connect count as well."""
        self._beginning = beginning
        self._connects = connects
        self._found: list[tuple[int, int]] = []
        self._news = threading.Condition()
        with processes.network_of(machine.pid):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP))
        self._socket.bind(("lo", _ETH_P_IP))
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._socket.settimeout(0.5)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="arrivals", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join(5)
        self._socket.close()

    def first_after(self, moment_us: int, limit_s: float = 5.0, port: int | None = None) -> int:
        """The first arrival (at ``port``) after a moment (CLOCK_MONOTONIC, us); fails after ``limit_s``."""
        end = time.monotonic() + limit_s
        with self._news:
            while (found := next(self._at(port, moment_us), None)) is None:
                assert self._news.wait(end - time.monotonic()), f"no request at a worker was seen in {limit_s:g} s"
            return found

    def between(self, first_us: int, last_us: int, port: int) -> list[int]:
        """Arrivals, and attempts to connect where they are watched, at a port in a span of time."""
        with self._news:
            return [found for found in self._at(port, first_us) if found < last_us]

    def _at(self, port: int | None, moment_us: int) -> Iterator[int]:
        return (at for at, where in self._found if at >= moment_us and port in (None, where))

    def _watch(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                packet, ancillary, _, _ = self._socket.recvmsg(_HEAD, 64)
                port = self._wanted(packet)
                if port is not None and ancillary:
                    with self._news:
                        self._found.append((_monotonic_us(ancillary[0][2]), port))
                        self._news.notify_all()

    def _wanted(self, packet: bytes) -> int | None:
        """The worker's port that an IPv4 packet of TCP goes to, where it carries the first line, or connects."""
        if len(packet) < 40 or packet[9] != socket.IPPROTO_TCP:
            return None
        tcp = (packet[0] & 0x0F) * 4
        port = int.from_bytes(packet[tcp + 2 : tcp + 4], "big")
        payload = tcp + (packet[tcp + 12] >> 4) * 4
        connects = self._connects and packet[tcp + 13] & (_SYN | _ACK) == _SYN
        return port if port in _WORKER_PORTS and (connects or packet[payload:].startswith(self._beginning)) else None


def _monotonic_us(stamp: bytes) -> int:
    seconds, nanoseconds = struct.unpack("ll", stamp)
    return int(seconds * 1_000_000_000 + nanoseconds - _ahead_ns()) // 1000


def _ahead_ns() -> int:
    """How far CLOCK_REALTIME is ahead of CLOCK_MONOTONIC: of a few tries the one that took least, for this thread may
    lose its core between the two readings."""
    tries = []
    for _ in range(9):
        before, real, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        tries.append((after - before, real - (before + after) // 2))
    return min(tries)[1]
