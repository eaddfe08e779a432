"""An owner of background tasks: it holds and names them, tells how they failed, and cancels and awaits them."""

import asyncio
import contextvars
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from rbee.wire.log import log

LOGGER = logging.getLogger(__name__)


class TaskOwner:
    """Tasks that outlive the call which started them, and live no longer than their owner; at most ``most`` at once.

    ``on_failure`` is called with the exception of a task that ended with one: a daemon whose part stopped silently is
    worse than its restart. Without it the failure is logged. ``of_requests``: a task carries on the correlation id of
    the request that started it; without it none.
    """

    def __init__(
        self,
        on_failure: Callable[[BaseException], None] | None = None,
        *,
        of_requests: bool = False,
        most: int = 10_000,
    ) -> None:
        self._on_failure = on_failure
        self._of_requests = of_requests
        self._most = most
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def start(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None] | None:
        """Run ``work`` until it ends or the owner closes; None (the work is dropped) when it is closed or full."""
        if self._closed or len(self._tasks) >= self._most:
            work.close()
            log(LOGGER, logging.WARNING, "background work not taken", work=name, closed=self._closed)
            return None
        context = contextvars.copy_context() if self._of_requests else contextvars.Context()
        task = asyncio.get_running_loop().create_task(work, name=name, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return
        if self._on_failure is not None:
            self._on_failure(error)
        else:
            LOGGER.error("background work failed: %s", task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Cancel every task and wait until each has ended."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
