"""Runs steps of sessions outside the event loop: threads that take steps from a queue, and one call back for each."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextvars import Context
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from rbee.wire.errors import DeviceBroken, Draining
from rbee.worker.engine.runtime import runtime
from rbee.worker.engine.sessions import RunOptions

T = TypeVar("T")


class Step(Generic[T]):
    """A step in a thread, made by :class:`Runner`. Once it has ended it has an ``error``, or else a ``result``."""

    __slots__ = ("_options", "_work", "began", "ended", "error", "loop", "result", "terminated")

    result: T

    def __init__(self, work: Callable[[RunOptions], T], ended: Callable[["Step[T]"], None], began: float) -> None:
        self._work = work
        self._options: RunOptions = runtime().RunOptions()
        self._options.log_severity_level = 4
        self.loop = asyncio.get_running_loop()
        self.ended = ended
        self.began = began
        self.error: BaseException | None = None
        self.terminated = False

    def run(self) -> None:
        """Do the work, in the calling thread."""
        try:
            self.result = self._work(self._options)
        except BaseException as error:  # noqa: BLE001 - the thread's last edge (a library's panic is no Exception)
            self.error = error

    def terminate(self) -> None:
        """Tell the runtime to stop at its next node, as nobody wants the result: the step ends soon, not at once."""
        self.terminated = True
        self._options.terminate = True


class Runner:
    """Runs steps of sessions in threads, one thread a slot, and knows since when each step runs.

    A step is a call that releases the GIL inside the runtime. The runner is the owner of its threads, and everything
    but the work itself happens in the event loop's. ``failure`` gets the error after which no step can be made.
    """

    def __init__(self, threads: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.failure: Future[None] = Future()
        self._most = threads
        self._threads = 0
        # bounded by its senders: a step is begun by a request that holds a slot, or by the runs that requests share
        self._queue: SimpleQueue[Step[Any] | None] = SimpleQueue()
        self._clock = clock
        self._steps: set[Step[Any]] = set()
        self._watched: list[Callable[[], float]] = []
        self._closed = False

    def begin(self, work: Callable[[RunOptions], T], ended: Callable[[Step[T]], None]) -> Step[T]:
        """Run ``work(run_options)`` in a thread; ``ended(step)`` is called in the loop, in no request's context.

        Where the runner is closed the step ends with Draining.
        """
        step = Step(work, ended, self._clock())
        self._steps.add(step)
        if self._closed:
            step.error = Draining("the worker is stopping and takes no new work: ask another worker")
            step.loop.call_soon(self._finished, step, context=Context())
            return step
        if self._threads < min(len(self._steps), self._most):
            self._threads += 1
            threading.Thread(target=self._live, name=f"step_{self._threads}", daemon=True).start()
        self._queue.put(step)
        return step

    async def step(self, work: Callable[[RunOptions], T]) -> T:
        """Run ``work(run_options)`` in a thread and await it; raises what it raises.

        When the awaiting task is cancelled the runtime is told to stop at its next node, and the thread's end is
        awaited, so that nothing of the step outlives its caller's slot.
        """
        loop = asyncio.get_running_loop()
        done = loop.create_future()

        def ended(_: Step[T]) -> None:
            if not done.done():
                done.set_result(None)

        step = self.begin(work, ended)
        try:
            await done
        except asyncio.CancelledError:
            if step in self._steps:
                done = loop.create_future()  # the one before was cancelled with its task
                step.terminate()
                await _whatever_comes(done)
            raise
        if step.error is not None:
            raise step.error
        return step.result

    async def off_loop(self, work: Callable[[], T], *, large: bool) -> T:
        """Do ``work``: in a thread where it is ``large``, else in the event loop, which it does not hold for long."""
        return await self.step(lambda _: work()) if large else work()

    def fail(self, error: Exception) -> None:
        """Nothing can be run any more: ``failure`` gets the reason, once; from any thread."""
        with contextlib.suppress(InvalidStateError):
            self.failure.set_exception(error)

    def longest_step_s(self) -> float:
        """How long the oldest step in flight has been running, in seconds; 0 when none is."""
        now = self._clock()
        own = max((now - step.began for step in self._steps), default=0.0)
        return max(own, *(age() for age in self._watched)) if self._watched else own

    def watch(self, age: Callable[[], float]) -> None:
        """Count steps of a thread that is not this runner's: ``age`` tells how long its step has been running."""
        self._watched.append(age)

    def close(self) -> None:
        """Begin no more steps and release the threads; a step that still runs is not awaited."""
        self._closed = True
        for _ in range(self._threads):
            self._queue.put(None)

    def _live(self) -> None:
        """A thread's life: one step after the other."""
        while (step := self._queue.get()) is not None:
            step.run()
            with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody is there to be told
                step.loop.call_soon_threadsafe(self._finished, step)
            del step  # or its tensors would be held until the next one comes

    def _finished(self, step: Step[Any]) -> None:
        self._steps.discard(step)
        if isinstance(step.error, DeviceBroken):
            self.fail(step.error)
        step.ended(step)


async def _whatever_comes(done: "asyncio.Future[None]") -> None:
    while not done.done():
        try:
            await asyncio.wait({done})
        except asyncio.CancelledError:
            continue  # the thread cannot be left behind: its slot would be free while it computes
