"""A fake worker as a program: it answers every request after a fixed time, at most so many at once, over HTTP/1.1.

A real model's time varies with the machine's other work; a bench of queueing wants a service time that does not. Run
as `python -m tests.bench.fake_worker SLOTS SERVICE_S`; its first line on stdout is its port, it ends with its stdin.
"""

import asyncio
import sys
from typing import cast

import uvloop

ANSWER = b'{"object":"fake"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
_BUSY_BODY = b'{"error":{"code":"ALL_SLOTS_BUSY","message":"every slot is taken","details":{},"correlation_id":null}}'
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (
    len(_BUSY_BODY),
    _BUSY_BODY,
)


class Slots:
    """How many requests run, of how many that may."""

    def __init__(self, most: int, service_s: float) -> None:
        self.most = most
        self.service_s = service_s
        self.running = 0


class Connection(asyncio.Protocol):
    """One connection of the queen; requests on it come one after another."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own is no subclass

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            size = end + 4 + _length(self._data[:end])
            if len(self._data) < size:
                return
            self._data = self._data[size:]
            self._take()

    def _take(self) -> None:
        if self._slots.running >= self._slots.most:
            self._send(BUSY)
            return
        self._slots.running += 1
        asyncio.get_running_loop().call_later(self._slots.service_s, self._answer)

    def _answer(self) -> None:
        self._slots.running -= 1
        self._send(OK)

    def _send(self, answer: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(answer)


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


async def main(slots: int, service_s: float) -> None:
    """Serve until stdin ends."""
    loop = asyncio.get_running_loop()
    shared = Slots(slots, service_s)
    server = await loop.create_server(lambda: Connection(shared), "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), float(sys.argv[2])))
