"""Which requests go straight from client to worker, and what each is owed: a caller, a slot, a count, a trail."""

import email.utils
import functools
import re
import time
import uuid
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

import msgspec

from rbee.queen.admission.waiting import Lease
from rbee.queen.core import Core
from rbee.queen.express.exchange import Client, Exchange
from rbee.queen.express.heads import CODING, RequestHead
from rbee.queen.requests.asks import Head as Fields
from rbee.queen.requests.dispatch import Refused, renamed
from rbee.queen.requests.explain import Trail
from rbee.queen.requests.passage import code_label
from rbee.queen.routes.inference import OPENAI_ROUTES
from rbee.wire import correlation_ids
from rbee.wire.auth import ANONYMOUS, Identity, Role, TokenVerifier
from rbee.wire.deadline import DEADLINE_HEADER
from rbee.wire.errors import ErrorBody, RbeeError
from rbee.wire.http.counts import Count
from rbee.wire.http.durations import Series
from rbee.wire.http.middleware import record_authenticated
from rbee.wire.names import MODEL_NAME

_CLIENTS = frozenset({Role.API})
_OPENAI = {route.encode(): route for route in OPENAI_ROUTES}
_INFER = re.compile(rb"/v2/models/([A-Za-z0-9][A-Za-z0-9._-]{0,127})/infer")
_INFER_ROUTE = "/v2/models/{model}/infer"
_MOST_KNOWN = 1024
_EXAMPLE_EVERY_S = 0.01
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_decode = msgspec.json.Decoder(Fields).decode


class Lane:
    """Takes plain requests of callers it knows for models with a free slot; leaves every other one alone."""

    def __init__(self, core: Core, verifier: TokenVerifier) -> None:
        self._core = core
        self._verifier = verifier
        self._counts = _Counts(core)
        self._date = (0, "")
        self._tokens: object = None
        self._known: dict[bytes, Identity] = {}
        self.upstreams = core.upstreams
        self.owner = core.owner

    def wants(self, head: RequestHead) -> bool:
        """Whether a request of that head may be taken, once it is whole."""
        plain = head.method == b"POST" and head.length and not head.odd and head.keeps_alive
        return bool(plain) and (head.target in _OPENAI or _INFER.fullmatch(head.target) is not None)

    def knows(self, head: RequestHead) -> bool:
        """Whether a body may be gathered for who calls: nobody else's is kept in memory before it is refused."""
        return self._identity(head.fields.get(b"authorization")) is not None

    def take(self, client: Client, head: RequestHead, data: bytes) -> Exchange | None:
        """The exchange of a request that is here to its last byte, which holds a slot; None: it goes the long way."""
        identity = self._identity(head.fields.get(b"authorization"))
        if identity is None:
            return None
        body = data[head.size :]
        route, asked, stream = _asked(head.target, body)
        if asked is None or not MODEL_NAME.fullmatch(asked):
            return None
        core = self._core
        model = core.aliases.resolve(asked)
        lease = core.admission.take_now(core.admission.want(model, body, identity.client or identity.name))
        if lease is None:
            return None
        trail = core.trail(route, _correlation_id(head.fields.get(b"x-correlation-id")), identity.name)
        trail.came(model, asked)
        trail.placed(lease.placement)
        limits = core.dispatcher.limits
        limit_s = limits.stall_s if stream else limits.answer_s
        request = self._request(head, body, lease, trail, None if stream else limits.answer_s)
        core.dispatcher.budget.deposit()
        record_authenticated(identity, correlation_id=trail.correlation_id)
        if core.audit.everything:
            core.callers.let_in(identity, trail.correlation_id)
        return Exchange(self, client, lease, trail, request, stream=stream, limit_s=limit_s)

    def _identity(self, authorization: bytes | None) -> Identity | None:
        """Who calls, where that may be told and the caller may ask; anybody else is answered by the handlers.

        A header that was found good is remembered until the tokens change; it is one of a client whose token this
        process holds anyway. One that is not known is held against each token in constant time.
        """
        verifier = self._verifier
        if verifier.empty:
            return ANONYMOUS
        if authorization is None or not authorization.isascii():
            return None
        if self._tokens is not verifier.tokens or len(self._known) >= _MOST_KNOWN:
            self._tokens, self._known = verifier.tokens, {}
        identity = self._known.get(authorization)
        if identity is None:
            try:
                identity = verifier.verify(authorization.decode())
            except RbeeError:
                return None
            if not identity.may(_CLIENTS):
                return None
            self._known[authorization] = identity
        return identity

    def _request(self, head: RequestHead, body: bytes, lease: Lease, trail: Trail, answer_s: float | None) -> bytes:
        """The request as the worker gets it."""
        worker = lease.worker
        name = worker.report.model
        if head.target in _OPENAI:
            path = head.target.decode(CODING)
            if name is not None and name != trail.asked:
                body = renamed(body, name)
        else:
            path = f"/v2/models/{quote(name or trail.asked, safe='')}/infer"
        token = self._core.worker_token(worker.key.hive_id)
        own = ""
        if token is not None:
            secret = token.reveal()
            own = f"Authorization: Bearer {secret if secret.isascii() else secret.encode().decode(CODING)}\r\n"
        if answer_s is not None:
            own += f"{DEADLINE_HEADER}: {int((time.time() + answer_s) * 1000)}\r\n"
        lines = (
            f"POST {path} HTTP/1.1\r\nHost: {_host(lease.url)}\r\n{head.passed_on}"
            f"X-Correlation-Id: {trail.correlation_id}\r\nX-Rbee-Caller: {trail.caller}\r\n{own}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return lines.encode(CODING) + body

    # what an exchange uses

    def head(self, trail: Trail, status: int, passed_on: str, framed: str) -> bytes:
        """The head of an answer on its way to a client."""
        worker, queue_ms, overhead_ms = trail.headers()
        lines = (
            f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\nServer: rbee\r\n"
            f"X-Correlation-Id: {trail.correlation_id}\r\n"
            f"X-Rbee-Worker: {worker}\r\nX-Rbee-Queue-Ms: {queue_ms}\r\nX-Rbee-Overhead-Ms: {overhead_ms}\r\n"
            f"{self._date_line()}{passed_on}{framed}\r\n\r\n"
        )
        return lines.encode(CODING)

    def _date_line(self) -> str:
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, f"Date: {email.utils.formatdate(now, usegmt=True)}\r\n")
        return self._date[1]

    def error(self, trail: Trail, error: RbeeError) -> bytes:
        """A whole answer that is an error of the queen's own."""
        body = msgspec.json.encode(ErrorBody(error.openai_info(trail.correlation_id)))
        lines = "Content-Type: application/json\r\n"
        if error.retry_after_s is not None:
            lines += f"Retry-After: {max(1, round(error.retry_after_s))}\r\n"
        return self.head(trail, error.status, lines, f"Content-Length: {len(body)}") + body

    def account(self, trail: Trail, status: int, outcome: str, code: str | None) -> None:
        """Count a request that is over, and keep its trail."""
        trail.ends(outcome, code)
        self._core.recent.keep(trail)
        self._counts.add(trail, status, outcome, code)

    def elsewhere(self, refused: Refused, lease: Lease) -> RbeeError | None:
        """The reason to place a request anew that a worker refused, or None where that is the client's answer."""
        return self._core.dispatcher.elsewhere(refused, lease.worker)

    def doubt(self, lease: Lease, why: str) -> None:
        """Route nothing more to the worker until its hive speaks."""
        lease.answered = False
        self._core.admission.doubt(lease.worker, why)

    def answered(self, lease: Lease) -> None:
        """The worker has begun to answer."""
        self._core.admission.answered(lease)


@dataclass(frozen=True, slots=True)
class _Children:
    """What one kind of request counts in."""

    requests: Count
    http_requests: Count
    duration: Series
    http_duration: Series


class _Counts:
    """The metrics of one request, their labelled children found once."""

    def __init__(self, core: Core) -> None:
        self._metrics = core.metrics
        self._of: dict[tuple[str, int, str], _Children] = {}
        self._example_due = 0.0

    def add(self, trail: Trail, status: int, outcome: str, code: str | None) -> None:
        """One request that is over."""
        key = (trail.route, status, outcome)
        children = self._of.get(key) or self._found(key)
        children.requests.inc()
        children.http_requests.inc()
        ended = trail.ended or time.perf_counter()
        took, example = ended - trail.arrived, self._example(trail, ended)
        children.duration.observe(took, example)
        children.http_duration.observe(took, example)
        if code is not None:
            self._metrics.errors.labels(code_label(code)).inc()

    def _example(self, trail: Trail, now: float) -> dict[str, str] | None:
        """The request as an exemplar, once in a while: a scraper sees one a bucket whatever their number."""
        if now < self._example_due or trail.correlation_id is None:
            return None
        self._example_due = now + _EXAMPLE_EVERY_S
        return {"correlation_id": trail.correlation_id}

    def _found(self, key: tuple[str, int, str]) -> _Children:
        route, status, outcome = key
        metrics = self._metrics
        children = self._of[key] = _Children(
            metrics.requests.labels(),
            metrics.http.requests.labels(route, "POST", str(status)),
            metrics.request_duration.labels(route, outcome),
            metrics.http.duration.labels(route),
        )
        return children


@functools.lru_cache(maxsize=4096)
def _host(url: str) -> str:
    return url.partition("://")[2]


def _asked(target: bytes, body: bytes) -> tuple[str, str | None, bool]:
    """The route's pattern, the model that is asked for (None where it cannot be read), and whether to stream."""
    route = _OPENAI.get(target)
    if route is None:
        found = _INFER.fullmatch(target)
        return _INFER_ROUTE, found[1].decode() if found else None, False
    try:
        fields = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return route, None, False
    return route, fields.model, bool(fields.stream)


def _correlation_id(given: bytes | None) -> str:
    """The caller's where it is a UUID, else a new one."""
    if given is not None and len(given) <= 64:
        try:
            return str(uuid.UUID(given.decode("ascii")))
        except ValueError:
            pass
    return correlation_ids.new()
