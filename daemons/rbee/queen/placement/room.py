"""Ends idle workers so that another one fits, and waits until each has ended."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping

from rbee.queen.hives.client import HiveClient
from rbee.queen.placement.decision import Decision, memory_of
from rbee.queen.placement.eviction import Idle, make_room
from rbee.queen.placement.refusals import NoPlace
from rbee.queen.placement.replicas import idle_s
from rbee.queen.registry.registry import Registry
from rbee.queen.registry.rows import Change, Worker
from rbee.queen.routing.decision import Key
from rbee.queen.routing.metrics import PlacingMetrics
from rbee.wire.errors import RbeeError
from rbee.wire.log import log
from rbee.wire.messages import WorkerState
from rbee.wire.worker_spec import Backend

LOGGER = logging.getLogger(__name__)
END_LIMIT_S = 60.0
"""A worker drains for 27 s and is killed after 30 s."""
_UNKNOWN_LOAD_S = 10.0


class Room:
    """``evictable`` names the workers that may end at all, ``idle_s`` how long one must have been idle."""

    def __init__(
        self, registry: Registry, hives: HiveClient, metrics: PlacingMetrics, evictable: Callable[[], Iterable[Worker]]
    ) -> None:
        self.idle_s = 30.0
        self._registry = registry
        self._hives = hives
        self._metrics = metrics
        self._evictable = evictable
        self._ending: dict[Key, asyncio.Event] = {}
        registry.listen(self._on_change)

    async def make(self, decision: Decision, sizes: Mapping[str, int]) -> bool:
        """End what has to end so that the decision's worker fits; whether anything ended.

        ``sizes`` are bytes of models by their reference: see :func:`held_by`. A worker of which nobody knows what it
        holds frees nothing that is known.
        """
        plan = make_room(decision, self._idle(sizes))
        if not plan:
            return False
        ended = await asyncio.gather(*(self._end(one, decision.model_ref) for one in plan))
        return any(ended)

    def _idle(self, sizes: Mapping[str, int]) -> list[Idle]:
        idle = []
        for worker in self._evictable():
            one = held_by(worker, sizes)
            if worker.state is WorkerState.IDLE and not worker.in_flight and one.idle_s >= self.idle_s:
                idle.append(one)
        return idle

    async def _end(self, one: Idle, model_ref: str) -> bool:
        key = Key(one.node, one.worker_id)
        worker = self._registry.worker(key)
        if worker is None or worker.in_flight:
            return False
        log(
            LOGGER, logging.INFO, "an idle worker ends to make room", worker=str(key), idle_s=round(one.idle_s, 1),
            load_s=round(one.load_s, 1), held_bytes=one.held_bytes, wanted_for=model_ref,
        )  # fmt: skip
        ended = self._ending.setdefault(key, asyncio.Event())
        try:
            # forgotten, for the declaration remembers it: one that is only stopped counts as stopped by a person
            await self._hives.stop(worker.hive, one.worker_id, forget=True)
            async with asyncio.timeout(END_LIMIT_S):
                await ended.wait()
        except (RbeeError, TimeoutError) as error:
            log(LOGGER, logging.WARNING, "an idle worker did not end", worker=str(key), why=type(error).__name__)
            return False
        finally:
            self._ending.pop(key, None)
        self._metrics.evictions.inc()
        return True

    def _on_change(self, change: Change) -> None:
        if self._ending and (change.removed or change.worker.report.state.ended):
            ended = self._ending.get(change.worker.key)
            if ended is not None:
                ended.set()


def fits_without(worker: Worker, refused: RbeeError) -> bool:
    """Whether what was refused for want of memory would fit in the memory of that worker."""
    found = refused.__cause__
    return isinstance(found, NoPlace) and bool(make_room(found.decision, [held_by(worker, found.sizes)]))


def held_by(worker: Worker, sizes: Mapping[str, int]) -> Idle:
    """What the worker's end would free, and cost: the memory that its hive reports, else as by its model's files.

    ``sizes`` are bytes of models by their reference.
    """
    report = worker.report
    since = report.ready_unix or report.since_unix
    load_s = since - report.spawned_unix if report.spawned_unix else _UNKNOWN_LOAD_S
    device = report.device if report.backend is Backend.CUDA else None
    held = report.memory_bytes or memory_of(sizes.get(report.model_ref or "", 0))
    return Idle(worker.key.hive_id, worker.key.worker_id, device, held, idle_s(worker, time.monotonic()), load_s)
