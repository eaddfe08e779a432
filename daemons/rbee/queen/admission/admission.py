"""Who runs next: requests wait on an event, fairly between clients, and are woken by what changes.

A request is woken within the call that takes a worker's callback, or that gives a slot back: no poll, no other thread
and no database lie between. Waiting is bounded in number (429 above, the greediest client's latest request first) and
in time (:mod:`rbee.queen.admission.patience`); a request that would wait for longer than it may is refused at once, so
that what is accepted is served.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection

from rbee.queen.admission import refusals
from rbee.queen.admission.clients import Clients
from rbee.queen.admission.declared import Declared
from rbee.queen.admission.fair import Priority, Ticket
from rbee.queen.admission.outlook import PLACING, Outlook
from rbee.queen.admission.patience import Patience
from rbee.queen.admission.policy import Policy
from rbee.queen.admission.waiting import Lease, ModelQueue, Waiter, Want
from rbee.queen.admission.work import estimate
from rbee.queen.registry.registry import Registry
from rbee.queen.registry.rows import Change, Worker
from rbee.queen.routing.affinity import Affinity
from rbee.queen.routing.decision import Fail, Key, Start, failure, routable
from rbee.queen.routing.metrics import PlacingMetrics, Shed
from rbee.queen.routing.placing import Placer
from rbee.wire.errors import ModelLoading, RbeeError, TooManyRequests
from rbee.wire.log import log
from rbee.wire.messages import WorkerState

LOGGER = logging.getLogger(__name__)
StartWorker = Callable[[Key], None]


class Admission:
    """The waiting requests of all models, and the slots that those in flight hold."""

    def __init__(
        self, registry: Registry, policy: Policy, affinity: Affinity, clients: Clients, metrics: PlacingMetrics
    ) -> None:
        self.clients = clients
        self.placer = Placer(registry, policy, affinity, metrics)
        self.in_flight = 0
        self._registry = registry
        self._metrics = metrics
        self._queues: dict[str, ModelQueue] = {}
        self._start: StartWorker = lambda key: None
        self._outlook = Outlook(registry)
        self._patience = Patience(registry, self.placer, self._outlook, metrics)
        self.times = self._patience.times
        registry.weigh(policy.weight)
        registry.listen(self._on_change)

    def configure(self, policy: Policy) -> None:
        """Put other rules in force; who waits goes on waiting by them."""
        self.placer.policy = policy
        self._registry.weigh(policy.weight)

    def use_starter(self, start: StartWorker, starting: Callable[[], frozenset[Key]]) -> None:
        """How a worker is started, and which starts are under way."""
        self._start, self._outlook.starting = start, starting

    def use_declared(self, declared: Declared) -> None:
        """Which models have a worker placed for them when they are asked for."""
        self._outlook.declared = declared

    def use_settling(self, settling: Callable[[], bool]) -> None:
        """Whether hives known from before have not reported yet: an unknown model may still turn up."""
        self._outlook.settling = settling

    def waiting_models(self) -> list[str]:
        """Models that requests wait for now."""
        return [model for model, queue in self._queues.items() if len(queue.waiters)]

    def waiting_for(self, model: str) -> int:
        """Requests that wait for the model now."""
        queue = self._queues.get(model)
        return 0 if queue is None else len(queue.waiters)

    @property
    def waiting(self) -> int:
        """Requests that wait now."""
        return sum(len(queue.waiters) for queue in self._queues.values())

    def known(self, model: str) -> bool:
        """Whether some worker serves, or could serve, the model, or one can be placed for it."""
        return self._outlook.known(model)

    def at_once(self, model: str) -> bool:
        """Whether a request for the model would get a worker without waiting."""
        return model not in self._queues and self._registry.pool(model).any_free()

    def want(self, model: str, body: bytes, client: str, priority: Priority = Priority.INTERACTIVE) -> Want:
        """The wish of one request: what routing and sharing need of it is read from its bytes."""
        beginnings = self.placer.beginnings(model, body)
        return Want(model, client=client, priority=priority, work=estimate(body), prefixes=beginnings)

    def take_now(self, want: Want) -> Lease | None:
        """A slot of a worker of the model where one is free, nobody waits for it, and the client may have it now."""
        if want.model in self._queues or not self._registry.pool(want.model).any_free():
            return None
        now = time.monotonic()
        try:
            self.clients.enter(want.client, now)
        except TooManyRequests:
            return None  # who asks to wait is told
        lease = self._lease(want, now)
        if lease is None:
            self.clients.leave(want.client)
            return None
        self._metrics.waited(want.priority, 0.0)
        return lease

    async def acquire(self, want: Want) -> Lease:
        """Wait for a slot of a worker of the model, and take it.

        Raises ModelNotFound, TooManyRequests, RequestTimeout (the deadline), AllSlotsBusy or ModelLoading (the
        limits), HiveUnreachable or WorkerUnreachable (nothing but silence), WorkerFailed or LoadingTimeout (no worker
        came up), and what a hive refused a start with.
        """
        began = time.monotonic()
        if not self.known(want.model) and not self._outlook.settling():
            raise refusals.unknown(want.model)
        self._enter_client(want, began)
        lease: Lease | None = None
        try:
            if want.model not in self._queues or want.again:
                lease = self._lease(want, began)
            lease = lease or await self._queued(want, began)
        finally:
            if lease is None:
                self.clients.leave(want.client)
            self._metrics.waited(want.priority, time.monotonic() - began)
        return lease

    def _enter_client(self, want: Want, now: float) -> None:
        try:
            self.clients.enter(want.client, now, again=want.again)
        except TooManyRequests:
            self._metrics.shed(Shed.CLIENT_LIMIT)
            raise
        want.priority = self.clients.priority(want.client, want.priority)

    async def _queued(self, want: Want, began: float) -> Lease:
        waiter, ticket = self._enter(want, began)
        try:
            self._pump(want.model)
            return await self._granted(waiter)
        except asyncio.CancelledError:
            if waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
                self._take_back(waiter.granted.result())  # granted in the very turn in which the client left
            raise
        finally:
            self._leave(ticket)

    def _enter(self, want: Want, began: float) -> tuple[Waiter, Ticket[Waiter]]:
        queue = self._queues.get(want.model) or ModelQueue.of(self._registry.serving(want.model))
        if not want.again:
            self._make_room(want, queue)
        self._queues[want.model] = queue  # only now: one in which nobody waits would turn everybody away
        waiter = Waiter(want, began, asyncio.get_running_loop().create_future())
        weight = self.clients.limits(want.client).weight
        ticket = Ticket(waiter, want.client, want.priority, want.work, weight)
        queue.waiters.push(ticket, first=want.again)
        self._gauge(want.model, queue)
        return waiter, ticket

    def _make_room(self, want: Want, queue: ModelQueue) -> None:
        """Raise TooManyRequests unless the request may wait, at the cost of a greedier client's latest if need be."""
        model, waiters, policy = want.model, queue.waiters, self.placer.policy
        at_once = self._registry.pool(model).any_free() and not len(waiters)
        wait_s = None if at_once else self._patience.expected_s(want, queue)
        if len(waiters) >= policy.waits(model).most_waiting or self.waiting >= policy.most_waiting:
            victim = waiters.victim(want.client, want.priority)
            error = refusals.too_many(model, len(waiters), wait_s)
            self._metrics.shed(Shed.QUEUE_FULL)
            if victim is None:
                raise error
            waiters.discard(victim)
            victim.item.refuse(error)
        elif wait_s is not None and not self._patience.suffices(want, wait_s):
            self._metrics.shed(Shed.EXPECTED_WAIT)
            raise refusals.too_many(model, len(waiters), wait_s)

    def _leave(self, ticket: Ticket[Waiter]) -> None:
        model = ticket.item.want.model
        queue = self._queues.get(model)
        if queue is None:
            return
        queue.waiters.discard(ticket)
        self._gauge(model, queue)
        if not len(queue.waiters):
            del self._queues[model]

    def _gauge(self, model: str, queue: ModelQueue) -> None:
        self._metrics.note_waiting(model, queue.waiters, known=self.known(model))

    async def _granted(self, waiter: Waiter) -> Lease:
        while True:
            done, _ = await asyncio.wait((waiter.granted,), timeout=self._patience.lasts_s(waiter))
            if done:
                return waiter.granted.result()
            error = self._patience.ended(waiter, self._queues.get(waiter.want.model))
            if error is not None:
                raise error

    def loading_error(self, model: str) -> ModelLoading:
        """The honest answer to one who does not wait for a cold model: its state, node, progress, and when to come."""
        return self._outlook.loading_error(model, self._queues.get(model))

    def settled(self) -> None:
        """Hives that were known from before have reported, or had their time: unknown models are unknown now."""
        for model in list(self._queues):
            self._pump(model)

    # what changes

    def _on_change(self, change: Change) -> None:
        self._outlook.loads.watch(change)
        if not self._queues:
            return
        names = change.worker.names()
        for model in list(self._queues):
            if model in names:
                self._note_tried(self._queues[model], change.worker)
            if model in names or not self.known(model):  # a worker whose model changed has left its old name's queue
                self._pump(model)
            if model in names:
                self._spread(model, change.worker)

    @staticmethod
    def _note_tried(queue: ModelQueue, worker: Worker) -> None:
        if routable(worker):
            queue.tried.discard(worker.key)
        elif worker.state is WorkerState.LOADING:
            queue.tried.add(worker.key)

    def start_settled(self, key: Key, error: RbeeError | None) -> None:
        """A start is no longer under way; ``error`` is what the hive refused it with."""
        worker = self._registry.worker(key)
        if worker is None:
            return
        for model in [name for name in self._queues if name in worker.names()]:
            if error is not None:
                self._queues[model].refused[key] = error
            self._pump(model)

    def place_settled(self, model: str, ended: Collection[Key], error: RbeeError | None) -> None:
        """A worker of a declared model was placed, or ``error`` says why not; ``ended`` are those it was to replace."""
        queue = self._queues.get(model)
        if queue is None:
            return
        if error is not None and self._outlook.step(model, queue) == PLACING:
            for waiter in queue.waiters:
                waiter.refuse(error)
            return
        if error is not None:
            queue.refused.update(dict.fromkeys(ended, error))
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
        pool, aside = self._registry.pool(model), []
        while pool.any_free() and (ticket := queue.waiters.pop()) is not None:
            waiter = ticket.item
            deadline = waiter.want.deadline
            if deadline is not None and deadline.remaining(time.time()) <= 0.0:
                waiter.refuse(deadline.passed_error())  # its worker's time would be wasted
                self._metrics.shed(Shed.DEADLINE)
            elif not waiter.granted.done():
                lease = self._lease(waiter.want, waiter.began, waited=True)
                if lease is None:
                    aside.append(ticket)  # the free ones have failed it
                else:
                    waiter.granted.set_result(lease)
        queue.waiters.restore(aside)
        self._gauge(model, queue)
        if len(queue.waiters):
            self._see_to_start(model, queue)

    def _see_to_start(self, model: str, queue: ModelQueue) -> None:
        step = self._outlook.step(model, queue)
        if isinstance(step, Start):
            queue.tried.add(step.key)
            self._start(step.key)
            step = self._outlook.step(model, queue)
        if isinstance(step, Fail):
            self._fail(model, queue, step)
            return
        if step == PLACING and not self._outlook.settling():
            self._outlook.declared.begin(model)
        if isinstance(step, Start) or step.why.cold:
            self._patience.refuse_impatient(model, queue)

    def _fail(self, model: str, queue: ModelQueue, step: Fail) -> None:
        if step.report is None and self._outlook.settling():
            return
        for waiter in queue.waiters:
            waiter.refuse(_failed(model, queue, step))

    def _lease(self, want: Want, began: float, *, waited: bool = False) -> Lease | None:
        placed = self.placer.place(want, began)
        if placed is None:
            return None
        worker, placement = placed
        url = worker.report.url
        if url is None:
            return None
        if worker.ready_at is not None:
            if waited:
                self._metrics.ready_to_first_request.observe(time.monotonic() - worker.ready_at)
            worker.ready_at = None
        self.in_flight += 1
        self._registry.take(worker, want.work)
        lease = Lease(worker, url, want, placement, self._give_back)
        worker.used_at = lease.taken_at
        return lease

    def answered(self, lease: Lease) -> None:
        """The worker has begun to answer: nothing speaks against it, and its time counts as time of service."""
        lease.answered = True
        self._registry.good_answer(lease.worker)

    def doubt(self, worker: Worker, reason: str, *, drains: bool = False) -> None:
        """The worker cannot be reached, or broke off; ``drains``: it only said that it takes nothing new."""
        if self._registry.doubt(worker, reason, time.monotonic()) and not drains:
            self._metrics.breaker_opened.inc()

    def bad_answer(self, worker: Worker, reason: str) -> None:
        """The worker answered with an error that is not the request's."""
        if self._registry.bad_answer(worker, reason, time.monotonic()):
            self._metrics.breaker_opened.inc()

    def _give_back(self, lease: Lease) -> None:
        if lease.answered:
            self.times.note(lease.want.model, time.monotonic() - lease.taken_at)
        self.clients.leave(lease.want.client)
        self._take_back(lease)

    def _take_back(self, lease: Lease) -> None:
        worker = lease.worker
        self.in_flight -= 1
        self._registry.give_back(worker, lease.want.work)
        if self._queues:
            names = worker.names()
            for model in [name for name in self._queues if name in names]:
                self._pump(model)


def _failed(model: str, queue: ModelQueue, step: Fail) -> RbeeError:
    if step.report is None:
        return refusals.unknown(model)
    if queue.refused:
        error = next(iter(queue.refused.values()))
        log(LOGGER, logging.ERROR, "no worker could be started", model=model, code=error.code)
        return error
    return failure(step.report)
