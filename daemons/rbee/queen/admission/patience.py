"""How long a request waits, and what it is told when it has waited long enough.

A request with a deadline waits until then (408). Without one it waits ``admission_s`` for a slot of a ready worker (503
ALL_SLOTS_BUSY), ``silent_s`` while all its model's workers are out of reach (503), and as long as its model starts or
loads up to ``cold_s`` in all (503 MODEL_LOADING).
"""

import time

from rbee.queen.admission import refusals
from rbee.queen.admission.outlook import Outlook
from rbee.queen.admission.rates import ServiceTimes
from rbee.queen.admission.waiting import ModelQueue, Waiter, Want
from rbee.queen.registry.registry import Registry
from rbee.queen.routing.decision import Start, Wait, Waiting
from rbee.queen.routing.metrics import PlacingMetrics, Shed
from rbee.queen.routing.placing import Placer
from rbee.wire.errors import RbeeError

_SURE = 0.8
"""An expected wait is an average: what is accepted has a fifth of its time to spare."""


class Patience:
    """The patience of those who wait, by the policy of ``placer``; ``times`` are what requests of a model take."""

    def __init__(self, registry: Registry, placer: Placer, outlook: Outlook, metrics: PlacingMetrics) -> None:
        self.times = ServiceTimes()
        self._registry = registry
        self._placer = placer
        self._outlook = outlook
        self._metrics = metrics

    def expected_s(self, want: Want, queue: ModelQueue) -> float | None:
        """Seconds until the request's turn would come, by what is ahead of it; None where nothing is known."""
        ahead = queue.waiters.ahead(want.client, want.priority)
        return self.times.wait_s(want.model, ahead, self._registry.pool(want.model).slots)

    def suffices(self, want: Want, wait_s: float) -> bool:
        """Whether the request may wait for that long, and surely."""
        if want.deadline is not None:
            may_wait_s = want.deadline.remaining(time.time())
        else:
            may_wait_s = self._placer.policy.waits(want.model).admission_s
        return wait_s <= _SURE * may_wait_s

    def lasts_s(self, waiter: Waiter) -> float:
        """Seconds until the wait is looked at again."""
        want = waiter.want
        if want.deadline is not None:
            return want.deadline.remaining(time.time())
        limits = self._placer.policy.waits(want.model)
        cold_left = waiter.began + limits.cold_s - time.monotonic()
        return max(0.0, min(limits.admission_s, limits.silent_s, cold_left))

    def ended(self, waiter: Waiter, queue: ModelQueue | None) -> RbeeError | None:
        """The error of a request that waited long enough, or None where it may go on."""
        want, outlook, now = waiter.want, self._outlook, time.monotonic()
        workers, limits = self._registry.serving(want.model), self._placer.policy.waits(want.model)
        if want.deadline is not None:
            if want.deadline.remaining(time.time()) > 0.0:
                return None
            self._metrics.shed(Shed.DEADLINE)
            return want.deadline.passed_error()
        if not outlook.known(want.model):
            return None if outlook.settling() else refusals.unknown(want.model)
        waited, step = now - waiter.began, outlook.step(want.model, queue)
        hopeful = waited < limits.silent_s or any(outlook.may_help(want.model, worker, now) for worker in workers)
        if isinstance(step, Wait) and step.why is Waiting.SILENT and not hopeful:
            worker = None if step.key is None else self._registry.worker(step.key)
            self._metrics.shed(Shed.OUT_OF_REACH)
            return None if worker is None else refusals.out_of_reach(worker, now)
        if isinstance(step, Start) or (isinstance(step, Wait) and step.why.cold):
            return None if waited < limits.cold_s else outlook.loading_error(want.model, queue)
        if waited < limits.admission_s:
            return None
        self._metrics.shed(Shed.ALL_BUSY)
        return refusals.busy(want.model, workers, None if queue is None else self.expected_s(want, queue))

    def refuse_impatient(self, model: str, queue: ModelQueue) -> None:
        """End the wait of those in the queue that do not wait for a cold model."""
        for waiter in queue.waiters:
            if not waiter.want.patient:
                waiter.refuse(self._outlook.loading_error(model, queue))
