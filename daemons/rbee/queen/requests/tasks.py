"""Tasks: inference that outlives the connection that asked for it, with events that can be read again.

Bounded in number, in events kept for each, and in the time for which an ended one is kept.
"""

import asyncio
import enum
import itertools
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec

from rbee.queen.requests.dispatch import Refused, Upstream
from rbee.queen.requests.stories import TypedStory
from rbee.wire import context
from rbee.wire.errors import ErrorBody, InferenceCancelled, InternalError, RbeeError, TaskNotFound, TooManyRequests
from rbee.wire.sse import DONE, DONE_DATA, SseDecoder, encode
from rbee.wire.tasks import TaskOwner

MOST_BUFFERED_BYTES = 4 << 20
_ENDS = {"end", "error"}


class TaskState(enum.StrEnum):
    """How far a task is."""

    RUNNING = "running"
    ENDED = "ended"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Gap(msgspec.Struct, frozen=True):
    """The event ``gap``: ``missed`` events were let go before they were read."""

    missed: int


class Task:
    """One task and the events that it produced: a :class:`~rbee.queen.requests.reply.Sink` that keeps the latest."""

    def __init__(self, task_id: str, model: str, most_events: int) -> None:
        self.task_id = task_id
        self.model = model
        self.state = TaskState.RUNNING
        self.correlation_id = context.correlation_id.get()
        self.runner: asyncio.Task[None] | None = None
        self._decoder = SseDecoder()
        self._events: deque[tuple[int, bytes]] = deque()
        self._most = most_events
        self._bytes = 0
        self._last = 0
        self._stirred = asyncio.Event()
        self._complete = False

    @property
    def over(self) -> bool:
        """Whether its last event has been produced."""
        return self._complete

    # the sink

    @property
    def begun(self) -> bool:
        """Always: its errors are events."""
        return True

    async def begin(self, upstream: Upstream | None) -> None:
        """Nothing to send."""

    async def write(self, chunk: bytes) -> None:
        """Keep the events in ``chunk``."""
        for event in self._decoder.feed(chunk):
            if event.data != DONE_DATA:
                self._keep(event.event, event.data)

    async def end(self) -> None:
        """No further event comes from the worker; :meth:`conclude` follows when the runner is done."""

    def conclude(self, *, cancelled: bool) -> None:
        """The runner is done: see to it that the events end with exactly one end or error."""
        if self.state is TaskState.RUNNING and cancelled:
            self._tell_end(InferenceCancelled("the task was cancelled"))
            self.state = TaskState.CANCELLED
        elif self.state is TaskState.RUNNING:
            self._tell_end(InternalError("the task ended without a word: the queen's journal has the reason"))
        self._complete = True
        self._stir()

    def _tell_end(self, error: RbeeError) -> None:
        self._keep("error", msgspec.json.encode(ErrorBody(error.info(self.correlation_id))))

    def abort(self) -> None:
        """Nothing to break."""

    # its events

    def _keep(self, name: str, data: bytes) -> None:
        if self.state is not TaskState.RUNNING:
            return  # a worker that breaks after its end has ended well
        if name in _ENDS:
            self.state = TaskState.ENDED if name == "end" else TaskState.FAILED
        self._last += 1
        encoded = encode(name, data, str(self._last))
        self._events.append((self._last, encoded))
        self._bytes += len(encoded)
        while len(self._events) > self._most or (self._bytes > MOST_BUFFERED_BYTES and len(self._events) > 1):
            self._bytes -= len(self._events.popleft()[1])
        self._stir()

    def _stir(self) -> None:
        self._stirred.set()
        self._stirred = asyncio.Event()

    def _above(self, after: int) -> list[tuple[int, bytes]]:
        newer = list(itertools.takewhile(lambda event: event[0] > after, reversed(self._events)))
        newer.reverse()
        return newer

    async def follow(self, after: int) -> AsyncIterator[bytes]:
        """Events with an id above ``after`` as SSE bytes, as they come, to the last one and ``[DONE]``.

        Ids count from 1. Where events were let go in between, the event ``gap`` says how many.
        """
        while True:
            stirred = self._stirred
            over = self._complete
            batch = self._above(after)
            if batch:
                missed = batch[0][0] - after - 1
                if missed > 0:
                    yield encode("gap", msgspec.json.encode(Gap(missed)), str(batch[0][0] - 1))
                yield b"".join(encoded for _, encoded in batch)
                after = batch[-1][0]
            elif over:
                yield DONE
                return
            else:
                await stirred.wait()


class TaskRegistry:
    """All tasks. ``owner`` runs them; closing it cancels and awaits them."""

    def __init__(self, owner: TaskOwner, *, most: int, most_events: int, retention_s: float) -> None:
        self._owner = owner
        self._most = most
        self._most_events = most_events
        self._retention_s = retention_s
        self._tasks: dict[str, Task] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = False

    def get(self, task_id: str) -> Task:
        """The task; raises TaskNotFound."""
        task = self._tasks.get(task_id)
        if task is None:
            raise TaskNotFound(
                "no such task: it never was, or it ended and its events are gone", details={"task_id": task_id[:64]}
            )
        return task

    def start(self, task_id: str, model: str, run: Callable[[Task], Awaitable[Refused | None]]) -> Task:
        """Make a task and run it; raises TooManyRequests."""
        self._make_room()
        task = Task(task_id if task_id not in self._tasks else str(uuid.uuid4()), model, self._most_events)
        runner = self._owner.start(self._run(task, run), f"task {task.task_id}")
        if runner is None:
            raise TooManyRequests("the queen takes no further task now: ask again later", retry_after_s=5)
        task.runner = runner
        self._tasks[task.task_id] = task
        runner.add_done_callback(lambda ended: self._over(task, cancelled=ended.cancelled()))
        return task

    def _make_room(self) -> None:
        if len(self._tasks) < self._most:
            return
        ended = next((task for task in self._tasks.values() if task.over), None)
        if ended is None:
            raise TooManyRequests(
                "too many tasks run: wait for one to end", details={"tasks": len(self._tasks)}, retry_after_s=5
            )
        self._forget(ended.task_id)

    @staticmethod
    async def _run(task: Task, run: Callable[[Task], Awaitable[Refused | None]]) -> None:
        try:
            await run(task)
        except RbeeError as error:  # accounted for where it was raised; here it becomes the task's last event
            await task.write(TypedStory(task.task_id, task.model).error(error.info(task.correlation_id)))

    def _over(self, task: Task, *, cancelled: bool) -> None:
        task.conclude(cancelled=cancelled)
        if not self._closed:
            self._timers[task.task_id] = asyncio.get_running_loop().call_later(
                self._retention_s, self._forget, task.task_id
            )

    def _forget(self, task_id: str) -> None:
        self._tasks.pop(task_id, None)
        timer = self._timers.pop(task_id, None)
        if timer is not None:
            timer.cancel()

    def cancel(self, task_id: str) -> None:
        """Cancel a task; nothing happens to one that is over or unknown."""
        task = self._tasks.get(task_id)
        if task is not None and task.runner is not None:
            task.runner.cancel()

    def close(self) -> None:
        """Forget all; their owner cancels those that run."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
