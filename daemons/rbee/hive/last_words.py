"""The last log line of each worker's life that ended badly, read when it has ended and put into its report."""

import asyncio
import logging
from collections.abc import Callable

from rbee.hive.logs import LogSource
from rbee.wire.errors import Unavailable
from rbee.wire.log import log
from rbee.wire.tasks import TaskOwner

LOGGER = logging.getLogger(__name__)
_READ_LIMIT_S = 5.0
MOST_TOLD = 512
Told = Callable[[str, str, str], None]
"""Called with the worker's id, the life's invocation id, and the line."""


class LastWords:
    """Reads one journal at a time. What waits is the latest life of each worker, so it is bounded by their number."""

    def __init__(self, logs: LogSource, tasks: TaskOwner, told: Told) -> None:
        self._logs = logs
        self._tasks = tasks
        self._told = told
        self._ended: dict[str, str] = {}
        self._reading = False

    def ended(self, worker_id: str, invocation_id: str) -> None:
        """A life ended badly; returns at once."""
        self._ended[worker_id] = invocation_id
        if not self._reading:
            self._reading = self._tasks.start(self._read_all(), "last words of workers") is not None

    async def _read_all(self) -> None:
        try:
            while self._ended:
                worker_id = next(iter(self._ended))
                invocation_id = self._ended.pop(worker_id)
                line = await self._read(worker_id, invocation_id)
                if line:
                    log(LOGGER, logging.WARNING, "last log line of a worker that failed", worker=worker_id, line=line)
                    self._told(worker_id, invocation_id, line)
        finally:
            self._reading = False

    async def _read(self, worker_id: str, invocation_id: str) -> str:
        line = ""
        try:
            async with asyncio.timeout(_READ_LIMIT_S):
                async for each in self._logs.last(worker_id, invocation_id):
                    line = each.message
        except (Unavailable, TimeoutError):
            log(LOGGER, logging.WARNING, "the last log line of a worker cannot be read", worker=worker_id)
        return line[:MOST_TOLD]
