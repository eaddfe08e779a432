"""A client's connection that takes plain inference requests straight to a worker and leaves all else to aiohttp."""

import asyncio

from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from rbee.queen.express.exchange import Exchange
from rbee.queen.express.heads import MOST_HEAD, RequestHead, read_request
from rbee.queen.express.lane import Lane
from rbee.queen.requests.explain import Trail
from rbee.wire.http import server
from rbee.wire.http.server import KEEPALIVE_S

MOST_EXPRESS_BODY = 1 << 20
"""Bytes of a body that goes the straight way; a larger one streams through its handler."""
_CLIENT_GONE = 499


class NoAccessLog(AbstractAccessLogger):
    """aiohttp's own records of requests are not wanted."""

    enabled = False

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Nothing."""


class ExpressConnection(web.RequestHandler):
    """aiohttp's connection with a way past its parser and tasks.

    A request goes the straight way when it starts where the one before ended, aiohttp is idle, and the lane takes it;
    every other byte goes to aiohttp as it came. As soon as it is not certain where a request ends, the connection is
    aiohttp's for good.
    """

    __slots__ = (
        "_body_timer", "_busy", "_exchange", "_gathered", "_head", "_held", "_lane", "_left", "_missing", "_over",
        "_stall_timer", "_theirs", "_trail",
    )  # fmt: skip

    def __init__(self, manager: web.Server, loop: asyncio.AbstractEventLoop, lane: Lane) -> None:
        super().__init__(manager, loop=loop, keepalive_timeout=KEEPALIVE_S, access_log_class=NoAccessLog)
        self._lane = lane
        self._theirs = False
        self._left = 0  # bytes of the request that aiohttp has in hand which are still to come
        self._head: RequestHead | None = None
        self._gathered: list[bytes] = []
        self._missing = 0  # bytes of the request that is gathered which are still to come
        self._body_timer: asyncio.TimerHandle | None = None
        self._exchange: Exchange | None = None
        self._busy = b""
        self._held = b""
        self._stall_timer: asyncio.TimerHandle | None = None
        self._over: asyncio.Future[None] | None = None
        self._trail: Trail | None = None

    # bytes of the client

    def data_received(self, data: bytes) -> None:
        """Bytes as they come."""
        if self._theirs or not data:
            super().data_received(data)
        elif self._exchange is not None:
            self._hold(data)
        elif self._head is not None:
            self._gather(data)
        elif self._left:
            self._hand(data)
        else:
            self._begin(data)

    def _hold(self, data: bytes) -> None:
        """What follows while an answer is under way waits; a client that sends much of it is read no further."""
        self._held += data
        if len(self._held) > MOST_HEAD:
            self._pause_transport_reading()

    def _hand(self, data: bytes) -> None:
        """Pass on to aiohttp what is left of its request; what is more than that makes the connection its own."""
        self._left -= len(data)
        self._theirs = self._left < 0
        super().data_received(data)

    def _begin(self, data: bytes) -> None:
        """A request begins here."""
        head = read_request(data) if self._idle() else None
        if head is None or head.chunked:
            self._give_up(data)
            return
        self._left = head.size + (head.length or 0)
        if not self._lane.wants(head) or (head.length or 0) > MOST_EXPRESS_BODY or len(data) > self._left:
            self._hand(data)
        elif len(data) == self._left:
            self._take(head, data)
        elif not self._lane.knows(head):
            self._hand(data)
        else:
            self._head, self._gathered, self._missing = head, [data], self._left - len(data)
            self._body_timer = self._loop.call_later(server.BODY_LIMIT_S, self._stop_gathering)

    def _idle(self) -> bool:
        """Whether aiohttp waits for a request: it has had none, or its task stands where it takes the next one."""
        if not self._request_count:
            return True
        return self._waiter is not None and not self._waiter.done() and not self._messages

    def _give_up(self, data: bytes) -> None:
        self._theirs = True
        super().data_received(data)

    def _gather(self, data: bytes) -> None:
        self._gathered.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return
        head, whole = self._head, b"".join(self._gathered)
        self._done_gathering()
        if head is not None and len(whole) == self._left:
            self._take(head, whole)
        else:
            self._hand(whole)

    def _done_gathering(self) -> None:
        self._head, self._gathered = None, []
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _stop_gathering(self) -> None:
        """The body does not come: aiohttp's handler says so."""
        gathered = b"".join(self._gathered)
        self._done_gathering()
        self._hand(gathered)

    def _take(self, head: RequestHead, data: bytes) -> None:
        """Let the lane have a request that is whole, else aiohttp, which waits for a client that does not read."""
        exchange = None if self._close or self._paused else self._lane.take(self, head, data)
        if exchange is None:
            self._hand(data)
            return
        self._busy, self._exchange = data, exchange
        exchange.begin()

    # what an exchange does

    @property
    def is_ending(self) -> bool:
        """Whether aiohttp would drop what it is handed: an orderly stop is under way."""
        return self._close or self._force_close

    def write(self, data: bytes) -> None:
        """Send bytes of an answer."""
        if self.transport is not None:
            self.transport.write(data)

    def go_the_long_way(self, trail: Trail) -> None:
        """Nothing of an answer was sent: aiohttp's handler gives it."""
        data = self._busy
        self._settle()
        self._trail = trail
        self._hand(data)
        self._release_held()

    def take_trail(self) -> Trail | None:
        """The way so far of a request that the lane had to give back, once."""
        trail, self._trail = self._trail, None
        return trail

    def over(self, *, keep: bool) -> None:
        """The answer is out: the connection is free for the next request, or ends."""
        self._settle()
        self._left = 0
        if self.transport is None:
            return
        if not keep:
            self.transport.abort()
        elif self.is_ending:
            self.transport.close()
        else:
            self._next_keepalive_close_time = self._loop.time() + KEEPALIVE_S
            if self._held:
                self._release_held()

    def _settle(self) -> None:
        self._exchange, self._busy = None, b""
        if self._over is not None and not self._over.done():
            self._over.set_result(None)

    def _release_held(self) -> None:
        held, self._held = self._held, b""
        if held:
            if len(held) > MOST_HEAD:
                self._resume_transport_reading()
            self.data_received(held)

    # flow control, and the ends of the connection

    def pause_writing(self) -> None:
        """The client is slow: the worker is read no further, and the client has 60 s to go on."""
        super().pause_writing()
        if self._exchange is not None:
            self._exchange.client_slow()
            self._stall_timer = self._loop.call_later(server.CLIENT_STALL_S, self._cut)

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._stop_stall_timer()
        if self._exchange is not None:
            self._exchange.client_reads()

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _cut(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _process_keepalive(self) -> None:
        if self._exchange is not None or self._head is not None:
            self._next_keepalive_close_time = self._loop.time() + KEEPALIVE_S
        super()._process_keepalive()

    def close(self) -> None:
        """Take no further request; one that is under way ends first."""
        if self._exchange is None:
            super().close()
        else:
            self._close = True

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 - aiohttp's signature
        """Let what is under way end within ``timeout`` seconds, then close."""
        if self._exchange is not None:
            self._close = True
            self._over = self._loop.create_future()
            await asyncio.wait((self._over,), timeout=timeout)
        await super().shutdown(timeout)

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client left: so does its request."""
        self._done_gathering()
        self._stop_stall_timer()
        exchange = self._exchange
        self._settle()
        if exchange is not None:
            exchange.client_gone(_CLIENT_GONE)
        super().connection_lost(exc)
