"""A fake worker that streams: so many events at a pace of its own, in chunks, and [DONE]; run as a process.

`python -m tests.bench.router.fake_streams PORT EVENTS PACE_MS`
"""

import asyncio
import sys
from typing import cast

import uvloop

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"id":"1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
DONE = b"data: [DONE]\n\n"
MODELS = b'{"object":"list","data":[{"id":"talk","object":"model","created":1,"owned_by":"bench"}]}'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Streams(asyncio.Protocol):
    """One connection: each POST is answered by a stream, anything else by the list of models."""

    def __init__(self, events: int, pace_s: float) -> None:
        self._events = events
        self._pace_s = pace_s
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._rest += data
        head, end, body = self._rest.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:] if b": " in line)
        if not end or len(body) < int(fields.get(b"content-length", b"0")):
            return
        self._rest = b""
        if head.startswith(b"POST"):
            self._write(HEAD + chunk(EVENT))
            self._later(1)
        else:
            self._write(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(MODELS)
            )
            self._write(MODELS)

    def _later(self, sent: int) -> None:
        asyncio.get_running_loop().call_later(self._pace_s, self._next, sent)

    def _next(self, sent: int) -> None:
        if sent < self._events:
            self._write(chunk(EVENT))
            self._later(sent + 1)
        else:
            self._write(chunk(DONE) + b"0\r\n\r\n")

    def _write(self, data: bytes) -> None:
        self._transport.write(data)


async def main(port: int, events: int, pace_ms: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Streams(events, pace_ms / 1000), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
