"""Who runs next: requests wait on an event, in order of arrival for each model, and are woken by what changes.

A request is woken within the call that takes a worker's callback, or that gives a slot back: no poll, no other thread
and no database lie between. Waiting is bounded in number (429 above) and in time.

Time limits: a request with a deadline waits until then (408). Without one it waits ``admission_timeout_s`` for a slot
of a ready worker (503 ALL_SLOTS_BUSY), and as long as its model starts or loads up to ``cold_wait_s`` in all
(503 MODEL_LOADING); which of the two holds is looked at every ``admission_timeout_s``.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from rbee.queen.metrics import QueenMetrics
from rbee.queen.registry import Change, Registry, Worker
from rbee.queen.routing import Fail, Key, Start, Wait, choose, failure, next_step, routable
from rbee.wire.deadline import Deadline
from rbee.wire.errors import AllSlotsBusy, ModelLoading, ModelNotFound, RbeeError, TooManyRequests
from rbee.wire.log import log
from rbee.wire.messages import WorkerReport, WorkerState

LOGGER = logging.getLogger(__name__)
StartWorker = Callable[[Key], None]
News = Callable[[WorkerReport], None]


@dataclass(frozen=True, slots=True)
class WaitLimits:
    """Bounds of waiting: seconds, and requests for each model."""

    admission_s: float = 30.0
    cold_s: float = 300.0
    most_waiting: int = 1000


@dataclass(slots=True)
class Want:
    """One request's wish for a worker of ``model``.

    ``exclude`` are workers that failed it, ``again`` puts it in front (it has been given a worker before), ``news``
    is called with the report of a worker that it waits for, and ``patient`` False refuses to wait for a cold model.
    """

    model: str
    deadline: Deadline | None = None
    exclude: set[Key] = field(default_factory=set)
    again: bool = False
    news: News | None = None
    patient: bool = True


class Lease:
    """One slot of one worker, held until :meth:`release`."""

    def __init__(self, worker: Worker, url: str, release: Callable[[Worker], None]) -> None:
        self.worker = worker
        self.url = url
        self._release = release
        self._held = True

    def release(self) -> None:
        """Give the slot back; the next request that waits takes it within this call."""
        if self._held:
            self._held = False
            self._release(self.worker)


@dataclass(slots=True, eq=False)
class _Waiter:
    want: Want
    granted: asyncio.Future[Lease]


@dataclass(slots=True, eq=False)
class _Queue:
    """What waits for one model, which starts it has seen, and why one was refused."""

    waiters: deque[_Waiter] = field(default_factory=deque)
    tried: set[Key] = field(default_factory=set)
    refused: dict[Key, RbeeError] = field(default_factory=dict)


class Admission:
    """The waiting requests of all models, and the slots that those in flight hold."""

    def __init__(self, registry: Registry, limits: WaitLimits, metrics: QueenMetrics) -> None:
        self._registry = registry
        self.limits = limits
        self._metrics = metrics
        self._queues: dict[str, _Queue] = {}
        self._start: StartWorker = lambda key: None
        self._starting: Callable[[], frozenset[Key]] = frozenset
        self._settling: Callable[[], bool] = lambda: False
        self.in_flight = 0
        registry.listen(self._on_change)

    def use_starter(self, start: StartWorker, starting: Callable[[], frozenset[Key]]) -> None:
        """How a worker is started, and which starts are under way."""
        self._start, self._starting = start, starting

    def use_settling(self, settling: Callable[[], bool]) -> None:
        """Whether hives known from before have not reported yet: an unknown model may still turn up."""
        self._settling = settling

    def waiting_models(self) -> list[str]:
        """Models that requests wait for now."""
        return [model for model, queue in self._queues.items() if queue.waiters]

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return sum(len(queue.waiters) for queue in self._queues.values())

    def known(self, model: str) -> bool:
        """Whether some worker serves, or could serve, the model."""
        return bool(self._registry.serving(model))

    def at_once(self, model: str) -> bool:
        """Whether a request for the model would get a worker without waiting."""
        return model not in self._queues and choose(self._registry.serving(model)) is not None

    def take_now(self, want: Want) -> Lease | None:
        """A slot of a worker of the model where one is free and nobody waits for it; None otherwise."""
        if want.model in self._queues:
            return None
        key = choose(self._registry.serving(want.model), want.exclude)
        lease = None if key is None else self._lease(key, waited=False)
        if lease is not None:
            self._metrics.queue.observe(0.0)
        return lease

    async def acquire(self, want: Want) -> Lease:
        """Wait for a slot of a worker of the model, and take it.

        Raises ModelNotFound, TooManyRequests, RequestTimeout (the deadline), AllSlotsBusy or ModelLoading (the
        limits), WorkerFailed or LoadingTimeout (no worker came up), and what a hive refused a start with.
        """
        began = time.monotonic()
        if not self.known(want.model) and not self._settling():
            raise _unknown(want.model)
        if want.model not in self._queues or want.again:
            key = choose(self._registry.serving(want.model), want.exclude)
            if key is not None and (lease := self._lease(key, waited=False)) is not None:
                self._metrics.queue.observe(0.0)
                return lease
        waiter = self._enter(want)
        try:
            self._pump(want.model)
            return await self._granted(waiter, began)
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
                waiter.granted.result().release()  # granted in the very turn in which the client left
            raise
        finally:
            self._leave(waiter)
            self._metrics.queue.observe(time.monotonic() - began)

    def _enter(self, want: Want) -> _Waiter:
        queue = self._queues.setdefault(want.model, _Queue())
        if len(queue.waiters) >= self.limits.most_waiting:
            raise TooManyRequests(
                "too many requests wait for this model: come back later, or add a worker",
                details={"model": want.model, "waiting": len(queue.waiters)},
                retry_after_s=5,
            )
        waiter = _Waiter(want, asyncio.get_running_loop().create_future())
        if want.again:
            queue.waiters.appendleft(waiter)
        else:
            queue.waiters.append(waiter)
        self._gauge(want.model, queue)
        return waiter

    def _leave(self, waiter: _Waiter) -> None:
        model = waiter.want.model
        queue = self._queues.get(model)
        if queue is None:
            return
        if waiter in queue.waiters:
            queue.waiters.remove(waiter)
        self._gauge(model, queue)
        if not queue.waiters:
            del self._queues[model]

    def _gauge(self, model: str, queue: _Queue) -> None:
        if not queue.waiters:
            self._metrics.waiting.remove(model)
        elif self.known(model):  # a name that no worker has is no label
            self._metrics.waiting.labels(model).set(len(queue.waiters))

    async def _granted(self, waiter: _Waiter, began: float) -> Lease:
        want = waiter.want
        while True:
            left = self._patience(want, began)
            done, _ = await asyncio.wait((waiter.granted,), timeout=left)
            if done:
                return waiter.granted.result()
            error = self._out_of_patience(want, time.monotonic() - began)
            if error is not None:
                raise error

    def _patience(self, want: Want, began: float) -> float:
        """Seconds until the wait is looked at again."""
        if want.deadline is not None:
            return want.deadline.remaining(time.time())
        cold_left = began + self.limits.cold_s - time.monotonic()
        return max(0.0, min(self.limits.admission_s, cold_left))

    def _out_of_patience(self, want: Want, waited: float) -> RbeeError | None:
        """The error of a request that waited long enough, or None where it may go on."""
        workers = self._registry.serving(want.model)
        if want.deadline is not None and want.deadline.remaining(time.time()) <= 0.0:
            return want.deadline.passed_error()
        if not workers:
            return None if self._settling() else _unknown(want.model)
        step = self._step(want.model)
        cold = isinstance(step, Start) or (isinstance(step, Wait) and step.why.cold)
        if cold and waited < self.limits.cold_s:
            return None
        if cold:
            return self.loading_error(want.model)
        return _busy(want.model, list(workers)) if waited >= self.limits.admission_s else None

    def loading_error(self, model: str) -> ModelLoading:
        """The honest answer to one who does not wait for a cold model: its state, node, and progress."""
        step = self._step(model)
        worker = self._registry.worker(step.key) if isinstance(step, Wait | Start) else None
        details: dict[str, object] = {"model": model}
        if worker is not None:
            progress = worker.report.progress
            share = progress.done / progress.total if progress is not None and progress.total else None
            details["loading"] = {
                "state": worker.state.value,
                "node": worker.key.hive_id,
                "progress": share,
                "stage": progress.stage if progress is not None else worker.report.status_text,
                "eta_seconds": None,
            }
        return ModelLoading(
            "the model is not ready yet: ask again after the time that Retry-After says, or wait for it",
            details=details,
            retry_after_s=10,
        )

    def settled(self) -> None:
        """Hives that were known from before have reported, or had their time: unknown models are unknown now."""
        for model in list(self._queues):
            self._pump(model)

    # what changes

    def _on_change(self, change: Change) -> None:
        if not self._queues or change.load_only:
            return
        names = change.worker.names()
        for model in list(self._queues):
            if model in names or not self.known(model):  # a worker whose model changed has left its old name's queue
                self._pump(model)
            if model in names:
                self._spread(model, change.worker)

    def start_settled(self, key: Key, error: RbeeError | None) -> None:
        """A start is no longer under way; ``error`` is what the hive refused it with."""
        worker = self._registry.worker(key)
        if worker is None:
            return
        for model in [name for name in self._queues if name in worker.names()]:
            if error is not None:
                self._queues[model].refused[key] = error
            self._pump(model)

    def _spread(self, model: str, worker: Worker) -> None:
        queue = self._queues.get(model)
        if queue is None:
            return
        view = worker.view()
        for waiter in queue.waiters:
            if waiter.want.news is not None:
                waiter.want.news(view)

    def _pump(self, model: str) -> None:
        """Give what is free to those who wait, in their order; then see to it that what is missing is started."""
        queue = self._queues.get(model)
        if queue is None:
            return
        workers = self._registry.serving(model)
        for waiter in list(queue.waiters):
            key = choose(workers, waiter.want.exclude)
            if key is None:
                if waiter.want.exclude:
                    continue
                break
            if not waiter.granted.done() and (lease := self._lease(key, waited=True)) is not None:
                waiter.granted.set_result(lease)
                queue.waiters.remove(waiter)
        if queue.waiters:
            self._see_to_start(model, queue)

    def _see_to_start(self, model: str, queue: _Queue) -> None:
        for worker in self._registry.serving(model):
            if routable(worker):
                queue.tried.discard(worker.key)
            elif worker.state is WorkerState.LOADING:
                queue.tried.add(worker.key)
        step = self._step(model)
        if isinstance(step, Start):
            queue.tried.add(step.key)
            self._start(step.key)
            step = self._step(model)
        if isinstance(step, Fail):
            self._fail(model, queue, step)
        elif isinstance(step, Start) or step.why.cold:
            self._refuse_impatient(model, queue)

    def _step(self, model: str) -> Wait | Start | Fail:
        queue = self._queues.get(model)
        tried = queue.tried if queue is not None else set()
        return next_step(self._registry.serving(model), tried, self._starting())

    def _refuse_impatient(self, model: str, queue: _Queue) -> None:
        for waiter in [one for one in queue.waiters if not one.want.patient]:
            waiter.granted.set_exception(self.loading_error(model))
            queue.waiters.remove(waiter)

    def _fail(self, model: str, queue: _Queue, step: Fail) -> None:
        if step.report is None and self._settling():
            return
        for waiter in queue.waiters:
            if not waiter.granted.done():
                waiter.granted.set_exception(_failed(model, queue, step))
        queue.waiters.clear()

    def _lease(self, key: Key, *, waited: bool) -> Lease | None:
        worker = self._registry.worker(key)
        if worker is None or worker.url is None:
            return None
        if worker.ready_at is not None and waited:
            self._metrics.ready_to_first_request.observe(time.monotonic() - worker.ready_at)
        worker.ready_at = None
        self.in_flight += 1
        self._registry.take(worker)
        return Lease(worker, worker.url, self._give_back)

    def _give_back(self, worker: Worker) -> None:
        self.in_flight -= 1
        self._registry.give_back(worker)
        for model in [name for name in self._queues if name in worker.names()]:
            self._pump(model)


def _failed(model: str, queue: _Queue, step: Fail) -> RbeeError:
    if step.report is None:
        return _unknown(model)
    if queue.refused:
        error = next(iter(queue.refused.values()))
        log(LOGGER, logging.ERROR, "no worker could be started", model=model, code=error.code)
        return error
    return failure(step.report)


def _unknown(model: str) -> ModelNotFound:
    return ModelNotFound(
        "no worker serves that model: GET /v1/models lists those that can be asked for",
        details={"model": model[:128]},
        param="model",
    )


def _busy(model: str, workers: list[Worker]) -> AllSlotsBusy:
    ready = [worker for worker in workers if routable(worker)]
    return AllSlotsBusy(
        "every slot of the model's workers stayed busy: ask again later, or add a worker",
        details={
            "model": model,
            "slots_total": sum(worker.slots for worker in ready),
            "slots_busy": sum(min(worker.slots, worker.in_flight) for worker in ready),
        },
        retry_after_s=1,
    )
