"""What the requests of a model may hope for: whether anybody serves it, and what has to happen next."""

import time
from collections.abc import Callable

from rbee.queen.admission import refusals
from rbee.queen.admission.declared import Declared, NoneDeclared
from rbee.queen.admission.loads import LoadTimes
from rbee.queen.admission.waiting import ModelQueue
from rbee.queen.hives.fallback import may_yet_be_ready
from rbee.queen.registry.registry import Registry
from rbee.queen.registry.rows import Worker
from rbee.queen.routing.decision import Fail, Key, Start, Wait, Waiting, next_step
from rbee.wire.errors import ModelLoading

PLACING = Wait(Waiting.PLACING, None)


class Outlook:
    """The prospects of every model, by the registry and by what starts and places workers.

    ``declared`` are the models for which a worker can be placed, ``starting`` tells the starts under way, and
    ``settling`` whether hives known from before have not reported yet: an unknown model may still turn up.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.loads = LoadTimes()
        self.declared: Declared = NoneDeclared()
        self.starting: Callable[[], frozenset[Key]] = frozenset
        self.settling: Callable[[], bool] = lambda: False

    def known(self, model: str) -> bool:
        """Whether some worker serves, or could serve, the model, or one can be placed for it."""
        return bool(self._registry.serving(model)) or model in self.declared

    def step(self, model: str, queue: ModelQueue | None) -> Wait | Start | Fail:
        """What has to happen before one of those who wait in ``queue`` can be served."""
        workers = self._registry.serving(model)
        step = next_step(workers, queue.tried if queue is not None else set(), self.starting())
        if isinstance(step, Fail) and step.report is None and self.known(model):
            return PLACING
        silent = isinstance(step, Wait) and step.why is Waiting.SILENT
        if silent and any(self.declared.takes_over(model, worker) for worker in workers):
            return PLACING
        return step

    def may_help(self, model: str, worker: Worker, now: float) -> bool:
        """Whether a worker that cannot be reached may soon be ready, or be replaced on another node."""
        return may_yet_be_ready(worker, now) or self.declared.may_take_over(model, worker, now)

    def loading_error(self, model: str, queue: ModelQueue | None) -> ModelLoading:
        """The honest answer to one who does not wait for a cold model: its state, node, progress, and when to come."""
        step = self.step(model, queue)
        key = step.key if isinstance(step, Wait | Start) else None
        worker = None if key is None else self._registry.worker(key)
        return refusals.loading(model, step, worker, self.loads, time.monotonic())
