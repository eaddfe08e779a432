"""Connections to workers: kept open, one request on each at a time."""

import asyncio
import ssl
import time
from collections import deque
from typing import Protocol, cast
from urllib.parse import urlsplit

from rbee.queen.express.framing import BadFraming, Body, bodiless, body_of
from rbee.queen.express.heads import END, MOST_HEAD, AnswerHead, read_answer
from rbee.wire.http.client import notice_death

IDLE_LIMIT_S = 60.0
MOST_IDLE = 256
CONNECT_LIMIT_S = 5.0


class Listener(Protocol):
    """Who hears of an answer as it comes: its head, its pieces, and one of whole, lost or late."""

    def answer_begins(self, head: AnswerHead) -> None: ...
    def piece(self, payload: bytes) -> None: ...
    def whole(self, payload: bytes) -> None: ...
    def lost(self) -> None: ...
    def late(self) -> None: ...


class WorkerConnection:
    """One connection to a worker. ``used`` tells whether it has carried a request before the one in hand.

    It is an asyncio.Protocol in all but name: a class that is compiled has none of asyncio's for its base.
    """

    __slots__ = (
        "_body",
        "_due",
        "_head",
        "_keep",
        "_listener",
        "_loop",
        "_pool",
        "_timer",
        "_transport",
        "url",
        "used",
    )

    def __init__(self, pool: "Upstreams", loop: asyncio.AbstractEventLoop, url: str) -> None:
        self.url = url
        self.used = False
        self._pool = pool
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._listener: Listener | None = None
        self._body: Body | None = None
        self._keep = False
        self._head = b""
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The loop has set TCP_NODELAY; a worker whose machine is gone is noticed."""
        self._transport = cast(asyncio.Transport, transport)
        notice_death(transport.get_extra_info("socket"))

    @property
    def usable(self) -> bool:
        """Whether it is open still."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, request: bytes, listener: Listener, limit_s: float) -> None:
        """Send a request; ``listener`` hears of its answer, and that it is late after ``limit_s`` of silence."""
        self._listener = listener
        self.allow(limit_s)
        if self._transport is not None:
            self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        listener = self._listener
        if listener is None:  # nobody asked: whatever it is, no later request may take it for its answer
            self.abort()
            return
        body = self._body
        if body is None:
            data = self._head + data if self._head else data
            if END not in data:
                self._head = data
                if len(data) > MOST_HEAD:
                    self.abort()
                return
            head = read_answer(data)
            if head is None or head.status < 200:
                self.abort()
                return
            self._head = b""
            self._keep = head.keeps_alive
            listener.answer_begins(head)
            data = data[head.size :]
            if data and len(data) == head.length and not bodiless(head):  # the most usual answer: whole in one piece
                self._finish()
                listener.whole(data)
                return
            body = self._body = body_of(head)
        try:
            payload = body.feed(data) if data else b""
        except BadFraming:
            self.abort()
            return
        if body.done:
            self._finish()
            listener.whole(payload)
        elif payload:
            listener.piece(payload)

    def _finish(self) -> None:
        self._listener = self._body = None
        self.used = True
        if self._keep:
            self._pool.keep(self)
        elif self._transport is not None:
            self._transport.close()

    def eof_received(self) -> None:
        """The worker ends the connection: it is closed on both sides."""

    def pause_writing(self) -> None:
        """A request is held back by the loop until the worker reads on: it is whole in memory anyway."""

    def resume_writing(self) -> None:
        """The worker reads again."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The end of it, and of the answer that was under way."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        listener, self._listener = self._listener, None
        if listener is None:
            return
        if exc is None and self._body is not None and self._body.eof():
            listener.whole(b"")
        else:
            listener.lost()

    def abort(self) -> None:
        """Break it off at once, which tells the worker that nobody waits."""
        if self._transport is not None:
            self._transport.abort()

    def forget(self) -> None:
        """Break it off, and tell the listener nothing any more."""
        self._listener = None
        self.abort()

    def pause(self) -> None:
        """Read no further: the client is slow, and its own pace is no silence of the worker."""
        self._due = float("inf")
        if self.usable and self._transport is not None:
            self._transport.pause_reading()

    def resume(self, limit_s: float) -> None:
        """Read on."""
        if self.usable and self._transport is not None:
            self._transport.resume_reading()
        self.allow(limit_s)

    def allow(self, limit_s: float) -> None:
        """Give the worker ``limit_s`` from now until its next word.

        One timer serves the connection: it is set anew only where it would ring too late, and looks again when it
        rings too early, so that a request costs none of its own.
        """
        self._due = self._loop.time() + limit_s
        if self._timer is None or self._timer.when() > self._due:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._listener is None or self._due == float("inf"):
            return
        if self._loop.time() < self._due:
            self._set_timer()
            return
        listener, self._listener = self._listener, None
        self.abort()
        listener.late()


class Upstreams:
    """Idle connections by address, the one used last first; those that were not used for a minute are closed.

    ``tls`` is what the queen shows and asks for at https addresses.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._idle: dict[str, deque[tuple[float, WorkerConnection]]] = {}
        self._closed = False

    def take(self, url: str) -> WorkerConnection | None:
        """An open connection that nobody uses, or None."""
        idle = self._idle.get(url)
        while idle:
            _, connection = idle.pop()
            if connection.usable:
                return connection
        return None

    async def open(self, url: str) -> WorkerConnection:
        """A new connection; raises OSError, or TimeoutError after 5 s."""
        loop = asyncio.get_running_loop()
        parts = urlsplit(url)
        tls = (self._tls or True) if parts.scheme == "https" else None
        connection = WorkerConnection(self, loop, url)
        async with asyncio.timeout(CONNECT_LIMIT_S):
            await loop.create_connection(
                lambda: cast(asyncio.Protocol, connection), parts.hostname or "", parts.port or 80, ssl=tls
            )
        return connection

    def keep(self, connection: WorkerConnection) -> None:
        """Keep a connection whose answer is whole for the next request."""
        idle = self._idle.get(connection.url)
        if idle is None:
            idle = self._idle[connection.url] = deque()
        if self._closed or len(idle) >= MOST_IDLE:
            connection.abort()
            return
        idle.append((time.monotonic(), connection))

    def sweep(self, now: float) -> None:
        """Close what was not used for a minute before ``now`` (CLOCK_MONOTONIC)."""
        for url, idle in list(self._idle.items()):
            while idle and (idle[0][0] < now - IDLE_LIMIT_S or not idle[0][1].usable):
                idle.popleft()[1].abort()
            if not idle:
                del self._idle[url]

    def close(self) -> None:
        """Close all of them."""
        self._closed = True
        for idle in self._idle.values():
            for _, connection in idle:
                connection.abort()
        self._idle.clear()
