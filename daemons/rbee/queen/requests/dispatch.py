"""One request on its way to a worker: placed, sent, and placed anew while no byte of an answer has come."""

import asyncio
import contextlib
import dataclasses
import io
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass

import aiohttp
import msgspec

from rbee.queen.admission.admission import Admission
from rbee.queen.admission.fair import Priority
from rbee.queen.admission.rates import RetryBudget
from rbee.queen.admission.waiting import Lease, News, Want
from rbee.queen.registry.registry import Registry
from rbee.queen.registry.rows import Worker
from rbee.queen.requests import relay
from rbee.queen.requests.explain import Trail
from rbee.queen.requests.explanations import What
from rbee.queen.requests.relay import Patience
from rbee.queen.routing.metrics import PlacingMetrics
from rbee.wire import context
from rbee.wire.auth import Secret
from rbee.wire.deadline import DEADLINE_HEADER, Deadline, after
from rbee.wire.errors import (
    AllSlotsBusy,
    Draining,
    ErrorBody,
    ErrorInfo,
    InferenceError,
    ModelLoading,
    OutOfMemory,
    RbeeError,
    WorkerUnreachable,
)
from rbee.wire.http.client import request_headers
from rbee.wire.log import log
from rbee.wire.shortage import OOM_KILL
from rbee.wire.tasks import TaskOwner

LOGGER = logging.getLogger(__name__)
REQUEST_ID_HEADER = "X-Request-Id"
TRIES = 3
_MOST_REFUSAL_BYTES = 1 << 20
_LARGE_BODY_BYTES = 1 << 20
_BUSY_WAIT_S = 0.25
_ELSEWHERE = {AllSlotsBusy.code, Draining.code, ModelLoading.code}
"""Refusals of a worker after which the request is placed anew."""
_CONNECT_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class Call:
    """A request for a model: ``path`` gives the worker's route, ``asked`` is the model's name as the client wrote it.

    ``names_model`` tells whether it is a field of ``body``, which then has the worker's name for it. ``request_id`` set
    means that the worker can be told to cancel it (DELETE /v1/inference/R).
    """

    model: str
    asked: str
    path: Callable[[Worker], str]
    body: bytes
    headers: Mapping[str, str]
    stream: bool
    trail: Trail
    deadline: Deadline | None = None
    patient: bool = True
    news: News | None = None
    request_id: str | None = None
    method: str = "POST"
    priority: Priority = Priority.INTERACTIVE
    names_model: bool = True


@dataclass(frozen=True, slots=True)
class Refused:
    """A worker's answer that is an error: passed on unchanged."""

    status: int
    content_type: str
    retry_after: str | None
    body: bytes
    worker: str

    def info(self, correlation_id: str | None) -> ErrorInfo:
        """The error in it, for a stream whose status line is out already."""
        try:
            return msgspec.json.decode(self.body, type=ErrorBody).error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return ErrorInfo("PROTOCOL_ERROR", f"the worker answered HTTP status {self.status}", {}, correlation_id)


class Upstream:
    """A worker that answers: its status, headers and body, and the slot that it holds until :meth:`close`.

    ``passed`` is set once a byte of its body went on to the client.
    """

    def __init__(
        self, lease: Lease, response: aiohttp.ClientResponse, first: bytes, queue_ms: float, patience: Patience
    ) -> None:
        self.lease = lease
        self.response = response
        self.worker = str(lease.worker.key)
        self.queue_ms = queue_ms
        self.passed = False
        self._first = first
        self._patience = patience

    @property
    def is_events(self) -> bool:
        """Whether the body is a stream of events."""
        return self.response.content_type == "text/event-stream"

    def body(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes: whole events where it is a stream of them, one piece where it is none and small.

        Raises as :mod:`rbee.queen.requests.relay` says.
        """
        length = self.response.content_length
        read = relay.events if self.is_events else relay.chunks
        if not self.is_events and length is not None and length <= relay.WHOLE_BYTES:
            read = relay.whole
        return read(self._first, self.response, self._patience, self.worker)

    def close(self) -> None:
        """Give the slot back; a body that was not read to its end costs the connection, which tells the worker."""
        self.response.close()
        self.lease.release()


@dataclass(frozen=True, slots=True)
class SendLimits:
    """Seconds: silence in a stream, and the whole of an answer that is not streamed, which is its own deadline."""

    stall_s: float = 60.0
    answer_s: float = 600.0


class Dispatcher:
    """Places requests and sends them, over one pool of connections to all workers."""

    def __init__(
        self,
        registry: Registry,
        admission: Admission,
        session: aiohttp.ClientSession,
        token: Callable[[str], Secret | None],
        owner: TaskOwner,
        limits: SendLimits,
        budget: RetryBudget,
        metrics: PlacingMetrics,
        token_refused: Callable[[str], bool] = lambda hive_id: False,
    ) -> None:
        self._registry = registry
        self.admission = admission
        self._session = session
        self._token = token
        self._token_refused = token_refused
        self._owner = owner
        self.limits = limits
        self.budget = budget
        self._metrics = metrics

    async def open(self, call: Call) -> Upstream | Refused:
        """Place and send ``call`` until a worker answers: at most three workers, none after a byte of an answer.

        A try anew is paid for by the budget, and there is none once the worker is known to have been killed for its
        memory. Raises what :meth:`Admission.acquire` raises, RequestTimeout, WorkerUnreachable, AllSlotsBusy,
        WorkerFailed and OutOfMemory.
        """
        own = after(self.limits.answer_s, time.time())
        call = _without_late_deadline(call, own)
        want = self._want(call)
        if call.deadline is None and not call.stream:
            call = dataclasses.replace(call, deadline=own)
        began = time.monotonic()
        sent_at = began - (time.perf_counter() - call.trail.arrived)
        problem: RbeeError | None = None
        while True:
            if call.trail.tries and not self._may_retry(call, problem):
                raise problem or _given_up()
            call.trail.waits()
            try:
                lease = await self.admission.acquire(want)
            except RbeeError as error:
                call.trail.denied(error)
                raise
            killed = self._killed_for_memory(call, sent_at)
            if killed is not None:
                lease.release()
                call.trail.denied(killed)
                raise killed
            sent_at = time.monotonic()
            call.trail.placed(lease.placement)
            answer = await self._try(call, lease, (time.monotonic() - began) * 1000)
            if not isinstance(answer, RbeeError):
                return answer
            problem = answer
            want.again, want.retries, want.shun = True, call.trail.tries, lease.worker.key
            call.trail.waits()
            if isinstance(problem, AllSlotsBusy) and want.retries < TRIES:
                await self._beside(want, lease.worker)

    def _want(self, call: Call) -> Want:
        want = self.admission.want(call.model, call.body, context.client.get() or "", call.priority)
        want.deadline, want.news, want.patient = call.deadline, call.news, call.patient
        want.again, want.retries, want.shun = bool(call.trail.tries), call.trail.tries, call.trail.chosen
        if not want.again:
            self.budget.deposit()
        return want

    def _killed_for_memory(self, call: Call, sent_at: float) -> OutOfMemory | None:
        """The error of a request whose last worker was killed for its memory while it had it, else None.

        It may be the cause, and placed anew it would take the next worker's life as well.
        """
        worker = None if call.trail.chosen is None else self._registry.worker(call.trail.chosen)
        if worker is None or worker.killed_at < sent_at:
            return None
        return OutOfMemory(
            f"worker {worker.key} was killed for its memory (oom-kill) while it had the request: ask for less at once, "
            "or give the worker more memory",
            details={"worker": str(worker.key), "cause": OOM_KILL},
        )

    def _may_retry(self, call: Call, problem: RbeeError | None) -> bool:
        """Whether the request is placed anew: it has tries left, and the budget pays for one."""
        if call.trail.tries >= TRIES:
            return False
        if not self.budget.spend():
            self._metrics.retries_refused.inc()
            return False
        why = call.trail.last
        self._metrics.retries.labels(why).inc()
        code = None if problem is None else problem.code
        log(LOGGER, logging.WARNING, "placing anew", worker=call.trail.worker, why=why, code=code)
        return True

    async def _try(self, call: Call, lease: Lease, queue_ms: float) -> Upstream | Refused | RbeeError:
        """Send the request to one worker: its answer, or the reason to place the request anew."""
        kept = False
        try:
            answer = await self._send(call, lease, queue_ms)
            if isinstance(answer, Upstream):
                kept = True
                self.admission.answered(lease)
                return answer
            problem = self.elsewhere(answer, lease.worker)
            if problem is None:
                call.trail.answers(answer.status)
                return answer
            call.trail.turned_away(What.REFUSED, problem.message, answer.status)
            return problem
        except (aiohttp.ClientError, ConnectionError) as error:
            late = call.trail.tries == 1 and isinstance(error, aiohttp.ServerDisconnectedError)
            call.trail.turned_away(What.UNREACHABLE, type(error).__name__)
            return self._unreachable(lease.worker, error, doubt=not late)
        finally:
            if not kept:
                lease.release()

    async def _beside(self, want: Want, worker: Worker) -> None:
        """A worker is busier than the queen knew: look beside it, or let it be for a moment."""
        want.exclude.add(worker.key)
        if self._registry.pool(want.model).least(want.exclude) is None:
            want.exclude.clear()
            await asyncio.sleep(_BUSY_WAIT_S * want.retries * (0.5 + random.random()))  # noqa: S311 - jitter, no secret

    async def _send(self, call: Call, lease: Lease, queue_ms: float) -> Upstream | Refused:
        worker = str(lease.worker.key)
        patience = Patience(self.limits.stall_s if call.stream else self.limits.answer_s, call.deadline)
        response: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout(patience.step_s()):
                response = await self._session.request(
                    call.method,
                    f"{lease.url}{call.path(lease.worker)}",
                    data=self._body(call, lease.worker),
                    headers=self._headers(call, lease.worker),
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_LIMIT_S),
                )
                if response.status >= 400:
                    refused = await _refusal(response, worker)
                    response.close()
                    return refused
                first = await response.content.readany()
                call.trail.answers(response.status)
                return Upstream(lease, response, first, queue_ms, patience)
        except BaseException as error:
            if response is not None:
                response.close()
            self._cancel_there(call, lease, error)
            if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError):
                raise patience.error(worker) from None
            raise

    def _cancel_there(self, call: Call, lease: Lease, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError | TimeoutError):
            self.cancel(lease, call.request_id)

    def cancel(self, lease: Lease, request_id: str | None) -> None:
        """Tell a worker that nobody waits for the request any more; returns at once."""
        if request_id is not None:
            url, headers = f"{lease.url}/v1/inference/{request_id}", self._authorization(lease.worker)
            self._owner.start(self._delete(url, headers), "cancel at worker")

    async def _delete(self, url: str, headers: dict[str, str]) -> None:
        with contextlib.suppress(TimeoutError, aiohttp.ClientError):  # a worker that is gone has cancelled as well
            async with asyncio.timeout(5.0), self._session.delete(url, headers=headers):
                return

    @staticmethod
    def _body(call: Call, worker: Worker) -> bytes | io.BytesIO:
        name, body = worker.report.model, call.body
        if call.names_model and name is not None and name != call.asked:
            body = renamed(body, name)
        return io.BytesIO(body) if len(body) > _LARGE_BODY_BYTES else body  # a large one goes out in pieces

    def _headers(self, call: Call, worker: Worker) -> dict[str, str]:
        headers = request_headers() | dict(call.headers) | self._authorization(worker)
        if call.request_id is not None:
            headers[REQUEST_ID_HEADER] = call.request_id
        if call.deadline is not None:
            headers[DEADLINE_HEADER] = call.deadline.raw
        return headers

    def _authorization(self, worker: Worker) -> dict[str, str]:
        token = self._token(worker.key.hive_id)
        return {} if token is None else {"Authorization": f"Bearer {token.reveal()}"}

    def elsewhere(self, refused: Refused, worker: Worker) -> RbeeError | None:
        """The reason to place the request anew, or None where the refusal is the client's answer."""
        if refused.status in (401, 403):
            return self._no_entry(worker)
        if refused.status < 500:
            self._registry.good_answer(worker)
            return None
        info = refused.info(None)
        if refused.status != 503 or info.code not in _ELSEWHERE:
            if refused.status in (500, 502) and info.code != InferenceError.code:
                self.admission.bad_answer(worker, f"answers with {info.code}")
            return None
        if info.code == AllSlotsBusy.code:
            self._registry.good_answer(worker)
            return AllSlotsBusy(info.message, details=info.details, retry_after_s=1)
        self.admission.doubt(worker, info.code, drains=True)
        return WorkerUnreachable(info.message, details=info.details, retry_after_s=1)

    def _no_entry(self, worker: Worker) -> RbeeError:
        if not self._token_refused(worker.key.hive_id):  # else another one is there, and the same worker may be asked
            self.admission.doubt(worker, "the queen's token is not accepted")
        return WorkerUnreachable(
            f"worker {worker.key} does not accept the queen's token: give both the same worker_api_token",
            details={"worker": str(worker.key)},
        )

    def _unreachable(self, worker: Worker, error: Exception, *, doubt: bool) -> RbeeError:
        if doubt:  # a kept connection may have been closed in the very moment of its use: tried once more
            self.admission.doubt(worker, "does not answer")
        log(LOGGER, logging.WARNING, "worker does not answer", worker=str(worker.key), why=type(error).__name__)
        return WorkerUnreachable(
            f"worker {worker.key} does not answer: it may have just stopped; ask again",
            details={"worker": str(worker.key)},
            retry_after_s=2,
        )

    def broke(self, upstream: Upstream) -> None:
        """A worker broke off within its answer: nothing more is routed to it until its hive speaks."""
        upstream.lease.answered = False
        self.admission.doubt(upstream.lease.worker, "broke off within an answer")


def _given_up() -> WorkerUnreachable:
    """The error of a request whose worker went away, and that is placed at no other one."""
    return WorkerUnreachable(
        "the request's worker went away, and too many were placed anew lately: ask again", retry_after_s=2
    )


def _without_late_deadline(call: Call, own: Deadline) -> Call:
    """The call, without a deadline that is later than the queen's own."""
    if call.deadline is None or call.deadline.at_unix <= own.at_unix:
        return call
    log(
        LOGGER, logging.WARNING, "a deadline later than the queen's own is ignored", deadline=call.deadline.raw,
        own=own.raw,
    )  # fmt: skip
    return dataclasses.replace(call, deadline=None)


async def _refusal(response: aiohttp.ClientResponse, worker: str) -> Refused:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _MOST_REFUSAL_BYTES:
            break
    content_type = response.headers.get("Content-Type", "application/json")
    return Refused(response.status, content_type, response.headers.get("Retry-After"), bytes(body), worker)


def renamed(body: bytes, name: str) -> bytes:
    """A body that was decoded and names a model, with ``name`` for it, else byte for byte as it came.

    Of two fields of one name the last one counts, to the queen as to a worker: so nothing is looked for, and a body is
    read once, however large it is or many its fields are.
    """
    return b'%s,"model":%s}' % (body.rstrip()[:-1], msgspec.json.encode(name))
