"""One way to build and run an HTTP server: on Unix and TCP sockets, with the shared middlewares."""

import asyncio
import contextlib
import functools
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CollectorRegistry

from rbee.wire.auth import TokenVerifier
from rbee.wire.errors import InternalError, InvalidRequest, PayloadTooLarge, RequestTimeout
from rbee.wire.http import middleware
from rbee.wire.http.callers import NOBODY_WATCHES, CallerWatch
from rbee.wire.http.invalid import InvalidPace
from rbee.wire.http.metrics import OPENMETRICS_MEDIA, HttpMetrics, exposition
from rbee.wire.http.operations import TEXT, operation
from rbee.wire.peer import PeerAdmins
from rbee.wire.sse import CONTENT_TYPE, DONE, comment, encode
from rbee.wire.tls import HANDSHAKE_LIMIT_S

T = TypeVar("T")
MAX_BODY = 1 << 20
CLIENT_STALL_S = 60.0
_BACKLOG = 1024
KEEPALIVE_S = 75.0
_ACCEPTED_S = 0.1
_PROTOCOL_ERROR_AT = " - at `$."
_MOST_NAMED = 100
BODY_LIMIT_S = 60.0
"""Seconds in which the whole of a body must have come."""


def build_app(
    *,
    verifier: TokenVerifier,
    admins: PeerAdmins,
    metrics: HttpMetrics,
    max_body: int = MAX_BODY,
    openai_prefixes: tuple[str, ...] = (),
    watch: CallerWatch = NOBODY_WATCHES,
    invalid: InvalidPace | None = None,
) -> web.Application:
    """An application without routes in which every request is correlated, measured, authenticated, and answered.

    ``max_body`` is in bytes (413 above); errors on paths that start with one of ``openai_prefixes`` carry OpenAI's
    own fields; ``watch`` hears of every caller, ``invalid`` limits what is not acceptable. aiohttp runs the middlewares
    in the order of the list, the first one outermost.
    """
    app = web.Application(
        client_max_size=max_body,
        middlewares=[
            middleware.correlation,
            middleware.measured(metrics),
            middleware.errors(metrics, openai_prefixes, invalid),
            middleware.authentication(verifier, admins, watch),
        ],
    )
    app.on_response_prepare.append(middleware.name_correlation)
    return app


def metrics_handler(registry: CollectorRegistry) -> Handler:
    """The open handler of GET /metrics."""

    @middleware.open_route
    @operation(media=(TEXT, OPENMETRICS_MEDIA))
    async def handler(request: web.Request) -> web.StreamResponse:
        """What is counted and timed, for Prometheus."""
        body, content_type = exposition(registry, request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    return handler


def json_response(value: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """An answer whose body is ``value`` as JSON (msgspec)."""
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json", headers=headers
    )


async def read_body(request: web.Request, most: int | None = None) -> bytes:
    """The whole body; raises PayloadTooLarge over the limit, RequestTimeout when it does not come in time.

    The limit is ``most`` bytes, or else the application's own.
    """
    whole = request.content.is_eof()  # it came with the head: there is nothing to wait for
    if most is not None and not (whole and request.content.total_bytes <= min(most, request.client_max_size)):
        request = request.clone(client_max_size=most)
    try:
        if whole:
            return await request.read()
        async with asyncio.timeout(BODY_LIMIT_S):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise PayloadTooLarge("the body is over the limit of this route: send less at once") from None
    except TimeoutError:
        raise RequestTimeout(f"the body did not come within {BODY_LIMIT_S:g} s: send it at once") from None


async def read_json(request: web.Request, kind: type[T]) -> T:
    """Decode the body strictly into ``kind``; raises InvalidRequest naming the field, and what read_body raises.

    The payload itself is never echoed.
    """
    return decode_body(await read_body(request), kind)


def decode_body(body: bytes | memoryview, kind: type[T]) -> T:
    """Decode JSON bytes strictly into ``kind``; raises InvalidRequest naming the field and what was expected."""
    try:
        found: T = _decoder(kind).decode(body)  # type: ignore[arg-type]  # every type can be hashed
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(_PROTOCOL_ERROR_AT)
        if reason.startswith("Invalid enum value"):
            reason = "it is none of the accepted values"  # the library's own words repeat what was sent
        field = path.removesuffix("`")[:_MOST_NAMED] or "body"
        raise InvalidRequest(
            f"the field '{field}' is not acceptable: {reason[:_MOST_NAMED]}", details={"field": field}, param=field
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("the body is not valid JSON", details={"field": "body"}) from None
    return found


@functools.cache
def _decoder(kind: type) -> msgspec.json.Decoder[Any]:
    """The decoder of a type: there are as many as kinds of bodies, and one takes longer to make than a body to read."""
    return msgspec.json.Decoder(kind)


async def while_it_reads(request: web.Request, sending: Awaitable[None]) -> None:
    """Wait for a write to a client; raises ConnectionResetError, its connection broken, when it takes none for 60 s."""
    try:
        async with asyncio.timeout(CLIENT_STALL_S):
            await sending
    except TimeoutError:
        if request.transport is not None:
            request.transport.abort()
        raise ConnectionResetError("the client stopped reading") from None


class SseStream:
    """A stream of events to one client; each write goes out at once and waits while the client is slow.

    Every write raises ConnectionResetError when the client takes none of it for 60 s.
    """

    def __init__(self, request: web.Request, response: web.StreamResponse) -> None:
        self._request = request
        self.response = response

    @classmethod
    async def open(cls, request: web.Request, headers: dict[str, str] | None = None) -> "SseStream":
        """Send the head of the answer and return the stream."""
        response = web.StreamResponse(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        response.headers.update(headers or {})
        response.content_type = CONTENT_TYPE
        await response.prepare(request)
        request[middleware.STREAM] = response
        return cls(request, response)

    async def send(self, event: str | None, data: object, event_id: str | None = None) -> None:
        """Write one event; ``data`` that is not bytes is encoded as JSON."""
        payload = data if isinstance(data, bytes) else msgspec.json.encode(data)
        await self.raw(encode(event, payload, event_id))

    async def raw(self, chunk: bytes) -> None:
        """Pass bytes through that are events already."""
        await while_it_reads(self._request, self.response.write(chunk))

    async def comment(self, text: str) -> None:
        """Write a comment line, which keeps the connection open."""
        await self.raw(comment(text))

    @contextlib.asynccontextmanager
    async def kept_open(self, every_s: float) -> AsyncIterator[None]:
        """Write a comment at that pace for the length of the block."""

        async def comments() -> None:
            while True:
                await asyncio.sleep(every_s)
                await self.comment("here")

        beat = asyncio.create_task(comments(), name="comments")
        try:
            yield
        finally:
            beat.cancel()
            await asyncio.gather(beat, return_exceptions=True)

    def abort(self) -> None:
        """Cut the connection at once, what waits to be read included: for a reader that does not read."""
        if self._request.transport is not None:
            self._request.transport.abort()

    async def done(self) -> None:
        """Write the closing ``[DONE]`` and end the answer."""
        await self.raw(DONE)
        await self.end()

    async def end(self) -> None:
        """End the answer."""
        await while_it_reads(self._request, self.response.write_eof())


class Server:
    """An application served on sockets that are bound already; a client that leaves cancels its handler.

    ``grace_s`` is how long :meth:`close` lets running handlers go on before it cancels them. ``tcp_connection`` makes
    the protocol of a connection by TCP where it is another than aiohttp's. ``tls`` says, at the start, by which context
    a TCP socket is served; None for plain HTTP.
    """

    def __init__(
        self,
        app: web.Application,
        sockets: Sequence[socket.socket],
        grace_s: float = 30.0,
        *,
        tcp_connection: Callable[[web.Server], web.RequestHandler] | None = None,
        tls: Callable[[socket.socket], ssl.SSLContext | None] = lambda bound: None,
    ) -> None:
        self._sockets = list(sockets)
        self._tcp_connection = tcp_connection
        self._grace_s = grace_s
        self._tls = tls
        self._runner = web.AppRunner(
            app,
            handle_signals=False,
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=KEEPALIVE_S,
            shutdown_timeout=grace_s,
        )
        self._listeners: list[asyncio.AbstractServer] = []

    async def start(self) -> None:
        """Begin to accept on every socket. The loop sets TCP_NODELAY on each TCP connection."""
        await self._runner.setup()
        factory = self._runner.server
        if factory is None:
            raise InternalError("the HTTP server did not start")
        loop = asyncio.get_running_loop()
        made = self._tcp_connection
        protocol = factory if made is None else functools.partial(made, factory)
        for bound in self._sockets:
            if bound.family == socket.AF_UNIX:
                listener = await loop.create_unix_server(factory, sock=bound, backlog=_BACKLOG)
            else:
                context = self._tls(bound)
                limit_s = None if context is None else HANDSHAKE_LIMIT_S
                listener = await loop.create_server(
                    protocol, sock=bound, backlog=_BACKLOG, ssl=context, ssl_handshake_timeout=limit_s
                )
            self._listeners.append(listener)

    def stop_accepting(self) -> None:
        """Close the listeners; requests that run go on."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def close(self) -> None:
        """Stop accepting, give running handlers their grace, then cancel what is left."""
        self.stop_accepting()
        # a connection that was accepted just now has its request on the way: closed as idle, that would be lost
        await asyncio.sleep(_ACCEPTED_S)
        async with asyncio.timeout(self._grace_s + 5.0):
            await self._runner.cleanup()
