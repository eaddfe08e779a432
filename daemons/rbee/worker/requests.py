"""The requests that run or wait for a slot: ids, deadlines, and the one way to cancel each of them."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from rbee.wire import context
from rbee.wire.deadline import Deadline
from rbee.wire.errors import AllSlotsBusy, Conflict, Draining, InferenceCancelled, InferenceError, RbeeError
from rbee.wire.log import Pace, log

LOGGER = logging.getLogger(__name__)
BUSY_RETRY_S = 1.0
MOST_RECORDS = 100


@dataclass(eq=False)
class RunningRequest:
    """One request in its slot. ``tokens`` and ``failure`` are filled in by its route for the record at its end."""

    request_id: str
    route: str
    client: str | None
    task: "asyncio.Task[object]"
    started: float
    tokens: int = 0
    failure: RbeeError | None = None
    cancelled: RbeeError | None = field(default=None, init=False)

    def cancel(self, why: RbeeError) -> None:
        """Stop the request at its next step; it ends with ``why``. A second call changes nothing."""
        if self.cancelled is None:
            self.cancelled = why
            self.task.cancel()


class RunningRequests:
    """Slots, what runs in them, and at most ``queue`` requests that wait for one, in the order they came.

    Everything happens in the loop's thread, so taking the last slot is atomic.
    """

    def __init__(
        self,
        slots: int,
        observe: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        queue: int = 0,
    ) -> None:
        self.slots = slots
        self.queue = queue
        self.total = 0
        self._tokens_of_ended = 0
        self.draining = False
        self._observe = observe
        self._clock = clock
        self._running: dict[str, RunningRequest] = {}
        self._busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._idle_since: float | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self._pace = Pace(MOST_RECORDS)

    @property
    def busy(self) -> int:
        """Slots in use."""
        return self._busy

    @property
    def tokens(self) -> int:
        """Tokens written by all requests so far, those that run included."""
        return self._tokens_of_ended + sum(running.tokens for running in self._running.values())

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._waiting)

    @property
    def idle_s(self) -> float:
        """Seconds since the last request ended, or since :meth:`open`; 0 while one runs and before that."""
        return 0.0 if self._running or self._idle_since is None else self._clock() - self._idle_since

    def open(self) -> None:
        """The model is there: the idle clock starts now, however long loading took."""
        self._idle_since = self._clock()

    @asynccontextmanager
    async def slot(
        self, request_id: str, route: str, *, client: str | None = None, deadline: Deadline | None = None
    ) -> AsyncIterator[RunningRequest]:
        """Hold a slot for the block, once one is free.

        Raises Draining, AllSlotsBusy, Conflict (the id runs already) or the deadline's error before the block; raises
        the error given to :meth:`RunningRequest.cancel` out of it.
        """
        running = self._admit(request_id, route, client, deadline)
        already_cancelling = running.task.cancelling()
        timer = self._arm(running, deadline)
        outcome, holds = "error", False
        try:
            await self._turn()
            holds = True
            yield running
            outcome = "ok" if running.failure is None else running.failure.code.lower()
        except asyncio.CancelledError:
            if running.cancelled is None:
                outcome = "client_gone"
                raise
            outcome = running.cancelled.code.lower()
            running.task.uncancel()
            if running.task.cancelling() > already_cancelling:
                raise  # the client left as well: there is nobody to tell
            raise running.cancelled from None
        except ConnectionError:
            outcome = "client_gone"
            raise
        except RbeeError as error:
            outcome = error.code.lower()
            if isinstance(error, InferenceError):
                LOGGER.error("inference failed", exc_info=error)  # noqa: TRY400 - the stack is the cause's
            raise
        finally:
            if timer is not None:
                timer.cancel()
            if holds:
                self._pass_on()
            self._release(running, outcome)

    def cancel(self, request_id: str) -> bool:
        """Cancel a request by its id; False where none of that id runs (it may have ended: that is no error)."""
        running = self._running.get(request_id)
        if running is None:
            return False
        running.cancel(InferenceCancelled("the request was cancelled", details={"request_id": request_id}))
        return True

    async def drain(self, limit_s: float, cancel_limit_s: float = 1.5) -> int:
        """Take no new work, let what runs go on for ``limit_s`` seconds, then cancel it; returns how many were cut."""
        self.draining = True
        if await self._ended_within(limit_s):
            return 0
        left = list(self._running.values())
        for running in left:
            running.cancel(InferenceCancelled("the worker stops and the time to finish is over: ask another worker"))
        await self._ended_within(cancel_limit_s)
        return len(left)

    async def _ended_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._empty.wait()
        except TimeoutError:
            return False
        return True

    def _admit(self, request_id: str, route: str, client: str | None, deadline: Deadline | None) -> RunningRequest:
        task = asyncio.current_task()
        if task is None:
            raise Conflict("a request runs in a task")
        if deadline is not None and deadline.remaining(time.time()) <= 0:
            raise deadline.passed_error()
        if self.draining:
            raise Draining(
                "the worker is stopping and takes no new work: ask another worker", retry_after_s=BUSY_RETRY_S
            )
        if request_id in self._running:
            raise Conflict("a request of this id runs already: use a new id", details={"request_id": request_id})
        if self.busy >= self.slots and self.waiting >= self.queue:
            raise self._full()
        running = RunningRequest(request_id, route, client, task, self._clock())
        self._running[request_id] = running
        self._empty.clear()
        self.total += 1
        return running

    def _full(self) -> AllSlotsBusy:
        details: dict[str, object] = {"slots_total": self.slots, "slots_busy": self.busy}
        queue = ""
        if self.queue:
            details |= {"waiting": self.waiting, "queue": self.queue}
            queue = f" and {self.waiting} requests wait"
        return AllSlotsBusy(
            f"all {self.slots} slots are busy{queue}: try again in a moment, or ask another worker",
            details=details,
            retry_after_s=BUSY_RETRY_S,
        )

    async def _turn(self) -> None:
        """Take a slot, waiting for one where all are busy; the request's deadline and its client bound the wait."""
        if self._busy < self.slots:
            self._busy += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()  # the slot came and the request went in the same moment
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def _pass_on(self) -> None:
        """Give a slot that is free to whoever has waited longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else its request was cancelled, and has not run since
                turn.set_result(None)
                return
        self._busy -= 1

    def _arm(self, running: RunningRequest, deadline: Deadline | None) -> asyncio.TimerHandle | None:
        if deadline is None:
            return None
        loop = asyncio.get_running_loop()
        return loop.call_later(deadline.remaining(time.time()), running.cancel, deadline.passed_error())

    def _release(self, running: RunningRequest, outcome: str) -> None:
        del self._running[running.request_id]
        self._tokens_of_ended += running.tokens
        if not self._running:
            self._idle_since = self._clock()
            self._empty.set()
        self._observe(running.route, outcome)
        self._record(running, outcome)

    def _record(self, running: RunningRequest, outcome: str) -> None:
        """Past 100 a second, requests that ended well are counted, not named."""
        now = self._clock()
        counted = "requests ended well, and not recorded one by one"
        if outcome == "ok" and not self._pace.passes(LOGGER, logging.INFO, now, counted=counted):
            return
        log(
            LOGGER,
            logging.INFO,
            "request ended",
            request_id=running.request_id,
            route=running.route,
            outcome=outcome,
            tokens=running.tokens,
            duration_ms=round((now - running.started) * 1000, 1),
            caller=context.caller.get(),
            client=running.client,
        )
