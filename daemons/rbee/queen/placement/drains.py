"""Ends workers without failing a request: no new ones go there, those under way are awaited, then its hive stops it."""

import asyncio
import logging

from rbee.queen.hives.client import HiveClient
from rbee.queen.placement.scaling import Why
from rbee.queen.registry.registry import Registry
from rbee.queen.registry.rows import Change, Worker
from rbee.queen.routing.decision import Key
from rbee.queen.routing.metrics import PlacingMetrics
from rbee.wire.errors import RbeeError
from rbee.wire.log import log
from rbee.wire.tasks import TaskOwner

LOGGER = logging.getLogger(__name__)
QUIET_LIMIT_S = 600.0
"""Requests under way are awaited for so long; the worker itself cuts off what is left after its own limit."""
END_LIMIT_S = 60.0
"""A worker drains for 27 s and is killed after 30 s."""


class Drains:
    """Workers that are on their way out; each has one task."""

    def __init__(self, registry: Registry, hives: HiveClient, owner: TaskOwner, metrics: PlacingMetrics) -> None:
        self._registry = registry
        self._hives = hives
        self._owner = owner
        self._metrics = metrics
        self._changed: dict[Key, asyncio.Event] = {}
        registry.listen(self._on_change, loads=True)

    @property
    def under_way(self) -> frozenset[Key]:
        """Workers that drain, or are about to."""
        return frozenset(self._changed)

    def begin(self, key: Key, why: Why) -> None:
        """Begin to end a worker unless that is under way; returns at once."""
        worker = self._registry.worker(key)
        if worker is None or key in self._changed:
            return
        self._changed[key] = asyncio.Event()
        self._registry.hold(key, held=True)
        if self._owner.start(self._run(worker, why), f"drain {key}") is None:
            del self._changed[key]

    async def _run(self, worker: Worker, why: Why) -> None:
        key = worker.key
        log(LOGGER, logging.INFO, "a worker ends", worker=str(key), why=why.value, in_flight=worker.in_flight)
        try:
            await self._until_quiet(worker)
            await self._hives.stop(worker.hive, key.worker_id, forget=True)
            async with asyncio.timeout(END_LIMIT_S):
                while not self._is_over(worker):
                    await self._next(key)
            self._metrics.drains.labels(why.value).inc()
        except (RbeeError, TimeoutError) as error:
            log(LOGGER, logging.WARNING, "a worker did not end", worker=str(key), why=type(error).__name__)
            if self._registry.worker(key) is worker:
                self._registry.hold(key, held=False)
        finally:
            del self._changed[key]

    async def _until_quiet(self, worker: Worker) -> None:
        try:
            async with asyncio.timeout(QUIET_LIMIT_S):
                while worker.in_flight and not self._is_over(worker):
                    await self._next(worker.key)
        except TimeoutError:
            log(LOGGER, logging.WARNING, "requests go on for long at a worker that ends", worker=str(worker.key))

    async def _next(self, key: Key) -> None:
        await self._changed[key].wait()
        self._changed[key].clear()

    def _is_over(self, worker: Worker) -> bool:
        return self._registry.worker(worker.key) is not worker or worker.report.state.ended

    def _on_change(self, change: Change) -> None:
        if self._changed and change.worker.key in self._changed:
            self._changed[change.worker.key].set()
