"""An owner of background tasks: it names them, cancels and awaits them, and is told when one dies of a defect."""

import asyncio
import contextvars
from collections.abc import Callable, Coroutine
from typing import Any


class TaskOwner:
    """Holds tasks that live as long as their owner.

    ``on_failure`` is called with the exception of a task that ended with one: the daemon ends itself then, because
    a part of it that stopped silently is worse than a restart.
    """

    def __init__(self, on_failure: Callable[[BaseException], None]) -> None:
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    def start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run ``work`` until it ends or the owner closes; a closed owner starts nothing.

        The context is an empty one: what outlives a request does not carry its correlation id.
        """
        if self._closed:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work, name=name, context=contextvars.Context())
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(error)

    async def close(self) -> None:
        """Cancel every task and wait until each has ended."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
