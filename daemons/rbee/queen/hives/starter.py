"""Starts of workers that waiting requests need: at most one under way for each worker, however many wait."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from rbee.queen.placement.placements import Placements
from rbee.queen.registry.registry import Registry
from rbee.queen.registry.rows import Change, tells_of_start
from rbee.queen.routing.decision import Key
from rbee.wire.errors import RbeeError
from rbee.wire.log import log
from rbee.wire.messages import WorkerReport
from rbee.wire.tasks import TaskOwner

LOGGER = logging.getLogger(__name__)
REPORT_LIMIT_S = 15.0
"""How long a hive that accepted a start may take to report a change of the worker."""
Settled = Callable[[Key, RbeeError | None], None]


@dataclass(slots=True, eq=False)
class _Start:
    before: WorkerReport
    reported: asyncio.Event = field(default_factory=asyncio.Event)


class Starter:
    """Asks hives to start workers and holds each start as under way until its worker's next report."""

    def __init__(self, registry: Registry, placements: Placements, owner: TaskOwner, settled: Settled) -> None:
        """``settled`` is called when a start is no longer under way, with the error where it was refused."""
        self._registry = registry
        self._placements = placements
        self._owner = owner
        self._settled = settled
        self._under_way: dict[Key, _Start] = {}
        registry.listen(self._on_change)

    @property
    def under_way(self) -> frozenset[Key]:
        """Workers whose start was asked for and that have not reported since."""
        return frozenset(self._under_way)

    def start(self, key: Key) -> None:
        """Begin to start the worker unless that is under way; returns at once."""
        worker = self._registry.worker(key)
        if key in self._under_way or worker is None:
            return
        self._under_way[key] = _Start(worker.report)
        if self._owner.start(self._run(key), f"start {key}") is None:
            self._under_way.pop(key, None)

    def _on_change(self, change: Change) -> None:
        start = self._under_way.get(change.worker.key)
        if start is not None and (change.removed or tells_of_start(change.worker.report, start.before)):
            start.reported.set()

    async def _run(self, key: Key) -> None:
        error: RbeeError | None = None
        try:
            await self._ask(key)
            async with asyncio.timeout(REPORT_LIMIT_S):
                await self._under_way[key].reported.wait()
        except RbeeError as refused:
            error = refused
            log(LOGGER, logging.ERROR, "start refused", worker=str(key), code=refused.code, why=refused.message)
        except TimeoutError:
            log(LOGGER, logging.WARNING, "no report since the start was accepted", worker=str(key))
        finally:
            self._under_way.pop(key, None)
        self._settled(key, error)

    async def _ask(self, key: Key) -> None:
        worker = self._registry.worker(key)
        if worker is None:
            return
        log(LOGGER, logging.INFO, "asking hive to start worker: a request waits for its model", worker=str(key))
        await self._placements.start(worker)
