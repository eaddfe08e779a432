"""An owner of background tasks: it holds them, logs what ends badly, and cancels and awaits them at its close."""

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from rbee.wire.log import log

LOGGER = logging.getLogger(__name__)


class Owner:
    """Tasks that outlive the call which started them; at most ``most`` at once."""

    def __init__(self, most: int = 10_000) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self._most = most
        self._closed = False

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        """Run ``work``; None (and the work is dropped) when the owner is closed or full."""
        if self._closed or len(self._tasks) >= self._most:
            work.close()
            log(LOGGER, logging.WARNING, "background work not taken", work=name, closed=self._closed)
            return None
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            LOGGER.error("background work failed: %s", task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Cancel what runs and wait for its end."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
