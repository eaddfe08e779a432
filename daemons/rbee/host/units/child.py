"""The supervisor for machines without systemd: workers are child processes that speak the same sd_notify protocol."""

import asyncio
import collections
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence

import msgspec

from rbee.host.units.child_life import MOST_LINES, ChildLife, ChildSettings
from rbee.host.units.facts import UnitFacts, UnitWatcher
from rbee.wire.errors import WorkerNotFound
from rbee.wire.log import log
from rbee.wire.names import worker_id as checked_id
from rbee.wire.tasks import TaskOwner

LOGGER = logging.getLogger(__name__)
Line = tuple[float, str]


class ChildUnits:
    """UnitSupervisor of child processes; :meth:`close` stops them all.

    ``command`` makes the argument list of a worker's id; ``environment`` is all that the children see beside what the
    protocol adds. ``on_failure`` hears of a defect.
    """

    def __init__(
        self,
        on_failure: Callable[[BaseException], None],
        *,
        command: Callable[[str], Sequence[str]],
        environment: Mapping[str, str],
        settings: ChildSettings,
    ) -> None:
        self._tasks = TaskOwner(on_failure)
        self._command = command
        self._environment = environment
        self._settings = settings
        self._watcher: UnitWatcher | None = None
        self._units: dict[str, _ChildUnit] = {}
        self._closing = False

    async def start(self, watcher: UnitWatcher) -> None:
        """Nothing runs yet: only the watcher is kept."""
        self._watcher = watcher

    async def close(self) -> None:
        """Stop every worker, all at once, and say how far it is."""
        self._closing = True
        running = [unit for unit in self._units.values() if unit.alive]
        if running:
            log(LOGGER, logging.INFO, f"shutting down {len(running)}", workers=len(running))
            for unit in running:
                unit.stop()
            endings = [asyncio.create_task(unit.ended.wait()) for unit in running]
            for count, ending in enumerate(asyncio.as_completed(endings), start=1):
                await ending
                log(LOGGER, logging.INFO, f"shut down {count}/{len(running)}")
            log(LOGGER, logging.INFO, "all workers are shut down", workers=len(running))
        await self._tasks.close()

    async def list(self) -> "list[UnitFacts]":
        """Every worker that was ever started here."""
        return [unit.facts for unit in self._units.values()]

    async def read(self, worker_id: str) -> UnitFacts:
        """One worker's facts."""
        unit = self._units.get(worker_id)
        return unit.facts if unit is not None else UnitFacts(worker_id=worker_id)

    async def start_unit(self, worker_id: str) -> None:
        """Start the process; raises WorkerNotFound where the program is missing."""
        program = self._command(checked_id(worker_id))[0]
        if shutil.which(program) is None:
            raise WorkerNotFound("the program rbee-worker is not installed: apt install rbee-worker")
        unit = self._units.get(worker_id)
        if unit is None:
            unit = _ChildUnit(worker_id, self._settings, self._tell)
            self._units[worker_id] = unit
        if not unit.alive and not self._closing:
            unit.begin()
            self._tasks.start(unit.run(self._command(worker_id), self._environment), f"worker {worker_id}")

    async def stop_unit(self, worker_id: str) -> None:
        """Begin to stop; nothing happens where nothing runs."""
        unit = self._units.get(worker_id)
        if unit is not None:
            unit.stop()

    async def restart_unit(self, worker_id: str) -> None:
        """Stop, and start once it has ended."""
        unit = self._units.get(worker_id)
        if unit is not None and unit.alive:
            unit.stop()
            self._tasks.start(self._start_after(unit, worker_id), f"restart of {worker_id}")
        else:
            await self.start_unit(worker_id)

    async def _start_after(self, unit: "_ChildUnit", worker_id: str) -> None:
        await unit.ended.wait()
        await self.start_unit(worker_id)

    async def reset_failed(self, worker_id: str) -> None:
        """Forget a failure and the count of starts."""
        unit = self._units.get(worker_id)
        if unit is not None:
            unit.reset()

    def lines(self, worker_id: str, count: int) -> "Sequence[Line]":
        """The last lines that the worker wrote: (Unix time, text)."""
        unit = self._units.get(worker_id)
        return [*unit.lines][-count:] if unit is not None else []

    def _tell(self, facts: UnitFacts) -> None:
        if self._watcher is not None:
            self._watcher.on_facts(facts)


class _ChildUnit:
    """One worker over its lives: Restart=on-failure with a start limit."""

    def __init__(self, worker_id: str, settings: ChildSettings, tell: Callable[[UnitFacts], None]) -> None:
        self.facts = UnitFacts(worker_id=worker_id, load_state="loaded")
        self.lines: collections.deque[Line] = collections.deque(maxlen=MOST_LINES)
        self.ended = asyncio.Event()
        self.ended.set()
        self._settings = settings
        self._tell_watcher = tell
        self._life: ChildLife | None = None
        self._starts: collections.deque[float] = collections.deque(maxlen=settings.start_burst)
        self._stop = asyncio.Event()

    @property
    def alive(self) -> bool:
        """Whether it runs, stops, or waits to be started again."""
        return not self.ended.is_set()

    def begin(self) -> None:
        """Count as alive from here on; :meth:`run` follows."""
        self.ended.clear()
        self._stop.clear()

    async def run(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        """Live, and live again after a failure, until stopped or out of starts."""
        self.facts = msgspec.structs.replace(self.facts, restarts=0)
        try:
            while await self._one_life(command, environment):
                self._tell(
                    msgspec.structs.replace(
                        self.facts,
                        active_state="activating",
                        sub_state="auto-restart",
                        restarts=self.facts.restarts + 1,
                    )
                )
                if await self._stopped_within(self._settings.restart_delay_s):
                    self._tell(msgspec.structs.replace(self.facts, active_state="inactive", sub_state="dead"))
                    return
        finally:
            self._life = None
            self.ended.set()

    async def _one_life(self, command: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Run once; returns whether it is to be started again."""
        if self._stop.is_set():
            return False
        now = time.monotonic()
        if len(self._starts) == self._settings.start_burst and now - self._starts[0] < self._settings.start_interval_s:
            self._tell(
                msgspec.structs.replace(self.facts, active_state="failed", sub_state="failed", result="start-limit-hit")
            )
            return False
        self._starts.append(now)
        self._life = ChildLife(self.facts, self._settings, self._tell, self.lines)
        end = await self._life.run(command, environment)
        again = (
            end.active_state == "failed"
            and not self._life.stop_requested
            and end.exec_status not in self._settings.no_restart_codes
        )
        if again:
            self.facts = end
        else:
            self._tell(end)
        return again

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stop.wait()
        except TimeoutError:
            return False
        return True

    def stop(self) -> None:
        """Begin to stop, or give up waiting for the next life."""
        self._stop.set()
        if self._life is not None:
            self._life.stop()

    def reset(self) -> None:
        """Forget a failure and the count of starts."""
        self._starts.clear()
        if self.facts.active_state == "failed":
            self._tell(msgspec.structs.replace(self.facts, active_state="inactive", sub_state="dead"))

    def _tell(self, facts: UnitFacts) -> None:
        if facts != self.facts:
            self.facts = facts
            self._tell_watcher(facts)
