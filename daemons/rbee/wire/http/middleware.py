"""What every request passes through: correlation id, metrics, errors in the one shape, authentication."""

import ipaddress
import logging
import time
import uuid
from collections.abc import Callable
from http import HTTPStatus
from urllib.parse import urlsplit

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from rbee.wire import context, correlation_ids
from rbee.wire.auth import ANONYMOUS, CHALLENGE, Identity, Role, TokenVerifier
from rbee.wire.errors import (
    Conflict,
    ErrorBody,
    Forbidden,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    RbeeError,
)
from rbee.wire.http.callers import CallerWatch
from rbee.wire.http.invalid import InvalidPace
from rbee.wire.http.metrics import HttpMetrics, exemplar
from rbee.wire.log import Pace, log
from rbee.wire.peer import PeerAdmins

LOGGER = logging.getLogger(__name__)
MOST_RECORDS = 200
"""Records a second of callers that were let in."""
CORRELATION_HEADER = "X-Correlation-Id"
IDENTITY = web.RequestKey("identity", Identity)
"""Key of a request under which its caller stands."""
CORRELATION = web.RequestKey("correlation", str)
"""Key of a request under which its correlation id stands."""
STARTED = web.RequestKey("started", float)
"""Key of a request under which ``time.perf_counter`` at its head's arrival stands."""
STREAM = web.RequestKey("stream", web.StreamResponse)
"""Key of a request whose answer has begun: an error can no longer become an answer of its own."""


_ROLES = "rbee_roles"
_CLIENT_GONE = 499
_OPEN = "rbee_open"
_ROUTINE = "rbee_routine"
_DEFAULT_ROLES = frozenset({Role.API})


def allow(*roles: Role) -> Callable[[Handler], Handler]:
    """Decorate a handler: only callers of one of ``roles`` (and administrators) may use it."""

    def mark(handler: Handler) -> Handler:
        setattr(_function(handler), _ROLES, frozenset(roles))
        return handler

    return mark


def open_route(handler: Handler) -> Handler:
    """Decorate a handler that anybody may call: health and metrics."""
    setattr(_function(handler), _OPEN, True)
    return handler


def is_open(handler: object) -> bool:
    """Whether anybody may call the handler."""
    return bool(getattr(_function(handler), _OPEN, False))


def routine_route(handler: Handler) -> Handler:
    """Decorate a handler that is called every few seconds: a caller that is let in leaves no record at level info."""
    setattr(_function(handler), _ROUTINE, True)
    return handler


def _function(handler: object) -> object:
    return getattr(handler, "__func__", handler)


@web.middleware
async def correlation(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give each request its correlation id: the caller's where it is a UUID, else a new one."""
    request[CORRELATION] = _uuid_or_new(request.headers.get(CORRELATION_HEADER))
    context.correlation_id.set(request[CORRELATION])
    context.caller.set(None)
    context.client.set(None)
    return await handler(request)


async def name_correlation(request: web.Request, response: web.StreamResponse) -> None:
    """on_response_prepare signal: name the correlation id on every answer, and us instead of our library's version."""
    # aiohttp sends the head outside the handler's context: the request carries the id, not the context variable
    response.headers["Server"] = "rbee"
    if CORRELATION in request:
        response.headers[CORRELATION_HEADER] = request[CORRELATION]


def _uuid_or_new(header: str | None) -> str:
    if header is not None and len(header) <= 64:
        try:
            return str(uuid.UUID(header))
        except ValueError:
            pass
    return correlation_ids.new()


def measured(metrics: HttpMetrics) -> Middleware:
    """Count the request under its route's pattern and time it to the end of its answer."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        started, route = time.perf_counter(), _route(request)
        request[STARTED] = started
        status = str(_CLIENT_GONE)  # its handler is cancelled and no answer is made
        try:
            response = await handler(request)
            status = str(response.status)
        finally:
            metrics.requests_of(route, request.method, status).inc()
            metrics.duration.labels(route).observe(time.perf_counter() - started, exemplar())
        return response

    return middleware


def errors(metrics: HttpMetrics, openai_prefixes: tuple[str, ...], invalid: InvalidPace | None) -> Middleware:
    """Turn every exception into the one error shape, and log those that are our fault.

    ``invalid`` limits how many requests that are not acceptable one caller may send; None: as many as it likes.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except RbeeError as error:
            return _answer(request, error)
        except web.HTTPException as error:
            if error.status < HTTPStatus.BAD_REQUEST:
                raise
            return _answer(request, _of_aiohttp(error))
        except ConnectionResetError:
            # there is nobody to answer, and a stream must not look whole; raised on, aiohttp would log it as an error
            if request.transport is not None:
                request.transport.close()
            return web.Response(status=_CLIENT_GONE)
        except Exception as error:  # noqa: BLE001 - the last edge: logged with its stack, answered as 500
            _log_unexpected(request, error)
            return _answer(request, _unexpected())

    def _answer(request: web.Request, error: RbeeError) -> web.StreamResponse:
        if invalid is not None and error.status == HTTPStatus.BAD_REQUEST:
            error = invalid.refusal(_caller(request), time.monotonic()) or error
        metrics.errors.labels(error.code).inc()
        _log_answered(request, error)
        begun: web.StreamResponse | None = request.get(STREAM)
        if begun is not None:
            # the head is out: a connection that ends short tells the client that the stream is not whole
            if request.transport is not None:
                request.transport.close()
            return begun
        return error_response(error, openai=request.path.startswith(openai_prefixes))

    return middleware


def _caller(request: web.Request) -> str:
    identity = request.get(IDENTITY)
    return identity.name if identity is not None else request.remote or ""


def _unexpected() -> InternalError:
    return InternalError("something failed inside: the journal has the reason under the correlation id of this answer")


def _log_unexpected(request: web.Request, error: Exception) -> None:
    LOGGER.error("request failed: %s", type(error).__name__, exc_info=error)


def _log_answered(request: web.Request, error: RbeeError) -> None:
    level = logging.ERROR if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR else logging.INFO
    if error.status == HTTPStatus.UNAUTHORIZED:
        return  # the authentication logs its own refusals
    log(
        LOGGER,
        level,
        "request refused",
        code=error.code,
        status=error.status,
        route=_route(request),
        why=error.message,
    )


def _route(request: web.Request) -> str:
    resource = request.match_info.route.resource
    return resource.canonical if resource is not None else "unknown"


def error_response(error: RbeeError, *, openai: bool) -> web.Response:
    """The answer that an error becomes: its JSON body, status, Retry-After and WWW-Authenticate."""
    request_id = context.correlation_id.get()
    info = error.openai_info(request_id) if openai else error.info(request_id)
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s)))
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = CHALLENGE
    if isinstance(error, MethodNotAllowed):
        headers["Allow"] = ", ".join(error.details.get("allowed", ()))
    body = msgspec.json.encode(ErrorBody(info))
    return web.Response(body=body, status=error.status, content_type="application/json", headers=headers)


def _of_aiohttp(error: web.HTTPException) -> RbeeError:
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = sorted(error.allowed_methods)
        return MethodNotAllowed("the route exists for other methods", details={"allowed": allowed})
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return PayloadTooLarge("the body is over the limit of this route: send less at once")
    if error.status == HTTPStatus.NOT_FOUND:
        return NotFound("there is no such route here")
    if error.status == HTTPStatus.CONFLICT:
        return Conflict("the state of the resource does not allow this")
    if error.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return _unexpected()
    return InvalidRequest("the request is malformed")


def authentication(verifier: TokenVerifier, admins: PeerAdmins, watch: CallerWatch) -> Middleware:
    """Know the caller before the handler runs: by the kernel on a Unix socket, by Bearer token on TCP.

    ``watch`` hears of everybody.
    """

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        route_handler = _function(request.match_info.handler)
        if not getattr(route_handler, _OPEN, False):
            identity = _identify(request, verifier, admins, watch)
            roles = getattr(route_handler, _ROLES, _DEFAULT_ROLES)
            if not identity.may(roles):
                log(LOGGER, logging.WARNING, "caller may not use this route", identity=identity.name)
                watch.refused("other_role", identity.name, _route(request), request.remote)
                raise Forbidden(
                    f"this token is not for this route: it wants a token of {' or '.join(sorted(roles))}",
                    details={"roles": sorted(roles)},
                )
            watch.let_in(identity)
            request[IDENTITY] = identity
            context.caller.set(identity.name)
            context.client.set(identity.client or identity.name)
        return await handler(request)

    return middleware


def _identify(request: web.Request, verifier: TokenVerifier, admins: PeerAdmins, watch: CallerWatch) -> Identity:
    transport = request.transport
    connection = transport.get_extra_info("socket") if transport is not None else None
    peername = transport.get_extra_info("peername") if transport is not None else None
    if connection is None:
        raise Forbidden("the connection is gone")
    if not isinstance(peername, tuple):  # a TCP peer has an address tuple; a Unix peer has none
        try:
            return admins.identity(connection)
        except Forbidden as error:
            watch.refused("no_administrator", f"uid:{error.details.get('uid')}", _route(request), None)
            raise
    if verifier.empty:
        try:
            _refuse_foreign_page(request.headers.get("Origin"))
        except Forbidden:
            watch.refused("foreign_page", None, _route(request), request.remote)
            raise
        log(LOGGER, logging.DEBUG, "development mode: no token is configured, loopback is trusted")
        return ANONYMOUS
    try:
        identity = verifier.verify(request.headers.get("Authorization"))
    except RbeeError as error:
        who = error.details.pop("identity", None)
        counted = "authentication failed, and not recorded one by one"
        if _refused.passes(LOGGER, logging.WARNING, time.monotonic(), counted=counted):
            log(
                LOGGER, logging.WARNING, "authentication failed", route=_route(request),
                reason=error.details.get("reason"), identity=who, code=error.code,
            )  # fmt: skip
        watch.refused(str(error.details.get("reason")), who, _route(request), request.remote)
        raise
    if getattr(_function(request.match_info.handler), _ROUTINE, False):
        log(LOGGER, logging.DEBUG, "authenticated", identity=identity.name, role=identity.role.value)
    else:
        record_authenticated(identity)
    return identity


_let_in, _refused = Pace(MOST_RECORDS), Pace(MOST_RECORDS)
"""Of one pace, so that a caller who is refused is answered as fast as one who is let in."""


def record_authenticated(identity: Identity, *, correlation_id: str | None = None) -> None:
    """Record that a caller was let in, at level info; past 200 a second such callers are counted, not named."""
    if _let_in.passes(LOGGER, logging.INFO, time.monotonic(), counted="authenticated, and not recorded one by one"):
        log(
            LOGGER, logging.INFO, "authenticated", identity=identity.name, role=identity.role.value,
            correlation_id=correlation_id,
        )  # fmt: skip


def _refuse_foreign_page(origin: str | None) -> None:
    """Without a token, a page that a person's browser has open could administer: browsers name it in Origin."""
    if origin is None:
        return
    try:
        host = urlsplit(origin).hostname or ""
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local:
        raise Forbidden("a page of another origin may not call a daemon without a token: configure its token")
