"""What is owed to the queen: the latest report of each worker, delivered at once and for as long as it takes.

It is a map, not a queue: a newer report of a worker takes the place of an older one, so that what waits is bounded by
the number of workers and the hive never waits for the queen.
"""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import aiohttp
import msgspec

from rbee.hive.metrics import HiveMetrics
from rbee.hive.refusal import is_refusal, sentence
from rbee.hive.workers import Change
from rbee.wire.backoff import delays
from rbee.wire.errors import RbeeError
from rbee.wire.http.client import fetch_json
from rbee.wire.log import ALERT, log
from rbee.wire.messages import CallbackAnswer, WorkerReport
from rbee.wire.tasks import TaskOwner

LOGGER = logging.getLogger(__name__)
READY_PATH = "/v2/workers/ready"
STATE_PATH = "/v2/workers/state"
DETAIL_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class CallbackSettings:
    """How a callback is tried: a time limit a try, then retries with exponential backoff and jitter, in seconds."""

    timeout_s: float = 5.0
    retries: int = 3
    first_wait_s: float = 0.25
    factor: float = 2.0
    jitter: float = 0.2
    at_once: int = 16


@dataclass(frozen=True, slots=True)
class Owed:
    """A report that the queen has not accepted yet; ``ready``: it announces a life's readiness."""

    report: WorkerReport
    ready: bool

    def followed_by(self, report: WorkerReport, *, ready: bool) -> "Owed":
        """What is owed once a newer report came: a readiness not yet told stays one while that life is ready."""
        same_life = report.invocation_id == self.report.invocation_id
        return Owed(report, ready or (self.ready and report.state.ready and same_life))


def owing(previous: Owed | None, report: WorkerReport, *, ready: bool) -> Owed:
    """What is owed of a worker after ``report``."""
    return Owed(report, ready) if previous is None else previous.followed_by(report, ready=ready)


class Callbacks:
    """Delivers reports to ``url``; ``on_degraded`` hears when delivery fails persistently and when it works again."""

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        tasks: TaskOwner,
        metrics: HiveMetrics,
        on_degraded: Callable[[], None],
        settings: CallbackSettings | None = None,
    ) -> None:
        self._url = url
        self._session = session
        self._tasks = tasks
        self._metrics = metrics
        self._on_degraded = on_degraded
        self._settings = settings or CallbackSettings()
        self._owed: dict[str, Owed] = {}
        self._sending: set[str] = set()
        self._idle = asyncio.Event()
        self._failed: set[str] = set()
        self._refused = False
        self._detail_due: dict[str, asyncio.TimerHandle] = {}
        self._detail_sent: dict[str, float] = {}
        self.degraded_why = ""

    @property
    def degraded(self) -> bool:
        """Whether reports fail with all their tries, or are not tried because the queen refuses the token."""
        return self._refused or bool(self._failed)

    @property
    def waiting(self) -> int:
        """How many reports the queen has not accepted yet."""
        return len(self._owed)

    def owe(self, report: WorkerReport, change: Change) -> None:
        """A worker's report is news; it is sent at once, mere progress at most once a second."""
        worker = report.worker_id
        self._owed[worker] = owing(self._owed.get(worker), report, ready=change is Change.READY)
        if change is Change.DETAIL:
            self._pace(worker)
        else:
            self._cancel_pace(worker)
            self._send(worker)

    def refuse(self, why: str) -> None:
        """The queen refuses this hive's token: nothing is sent until she takes a heartbeat, which calls retry()."""
        was_degraded, self._refused = self.degraded, True
        self._now_degraded(why, was_degraded=was_degraded)

    def retry(self) -> None:
        """Try again what failed; called at the pace of the heartbeat, after one that the queen took."""
        if self._refused:
            self._refused = False
            self._perhaps_recovered()
        for worker in list(self._owed):
            if worker not in self._detail_due:
                self._send(worker)

    def _pace(self, worker: str) -> None:
        loop = asyncio.get_running_loop()
        due = self._detail_sent.get(worker, 0.0) + DETAIL_INTERVAL_S
        if due <= loop.time():
            self._detail_sent[worker] = loop.time()
            self._send(worker)
        elif worker not in self._detail_due:
            self._detail_due[worker] = loop.call_at(due, self._detail_now, worker)

    def _detail_now(self, worker: str) -> None:
        self._detail_due.pop(worker, None)
        if worker in self._owed:
            self._pace(worker)

    def _cancel_pace(self, worker: str) -> None:
        timer = self._detail_due.pop(worker, None)
        if timer is not None:
            timer.cancel()

    def _send(self, worker: str) -> None:
        if self._refused or worker not in self._owed or worker in self._sending:
            return
        if len(self._sending) < self._settings.at_once:
            self._sending.add(worker)
            self._tasks.start(self._deliver(worker), f"callback of {worker}")

    async def _deliver(self, worker: str) -> None:
        """Send what is owed of one worker until the queen has the latest, or the tries are used up."""
        try:
            while (owed := self._owed.get(worker)) is not None:
                sent = await self._try(worker, owed)
                if isinstance(sent, RbeeError):
                    self._on_failed(worker, sent)
                    return
                if self._owed.get(worker) is sent:
                    del self._owed[worker]
                self._on_delivered(worker)
                if worker in self._detail_due:
                    return  # what came meanwhile is mere progress: its timer sends it
        finally:
            self._sending.discard(worker)
            self._idle.set()
            self._send_next()

    def _send_next(self) -> None:
        """Use the place that became free; what failed already waits for the heartbeat's pace."""
        for worker in self._owed:
            if worker not in self._sending and worker not in self._failed and worker not in self._detail_due:
                self._send(worker)
                return

    async def _try(self, worker: str, owed: Owed) -> Owed | RbeeError:
        """Post the latest of a worker, again after each wait; returns what the queen accepted, or the last failure."""
        settings = self._settings
        # What failed with all its tries has one a heartbeat from then on.
        retries = 0 if worker in self._failed else settings.retries
        waits = delays(retries, settings.first_wait_s, settings.factor, settings.jitter, random.random)
        for attempt in itertools.count(1):
            owed = self._owed.get(worker, owed)
            try:
                await self._post(owed)
            except RbeeError as error:
                if owed.ready:
                    self._metrics.ready_callbacks.labels("failure").inc()
                wait = None if self._refused else next(waits, None)
                log(
                    LOGGER,
                    logging.WARNING,
                    "callback failed",
                    worker=worker,
                    attempt=attempt,
                    of=retries + 1,
                    retry_in_s=None if wait is None else round(wait, 3),
                    why=sentence(error),
                )
                if wait is None:
                    return error
                await asyncio.sleep(wait)
            else:
                if owed.ready:
                    self._metrics.ready_callbacks.labels("success").inc()
                    self._now_told(worker, owed)
                break
        return owed

    def _now_told(self, worker: str, told: Owed) -> None:
        """A readiness that was told is not owed again by a newer report of the same life."""
        newer = self._owed.get(worker)
        if newer is not None and newer is not told and newer.report.invocation_id == told.report.invocation_id:
            self._owed[worker] = replace(newer, ready=False)

    async def _post(self, owed: Owed) -> None:
        path = READY_PATH if owed.ready else STATE_PATH
        body = msgspec.structs.replace(owed.report, sent_unix=time.time())
        started = time.perf_counter()
        answer = await fetch_json(
            self._session,
            "POST",
            self._url + path,
            CallbackAnswer,
            body=body,
            timeout_s=self._settings.timeout_s,
        )
        took = time.perf_counter() - started
        self._metrics.callback.observe(took)
        log(
            LOGGER,
            logging.INFO if owed.ready else logging.DEBUG,
            "callback delivered",
            worker=owed.report.worker_id,
            state=owed.report.state.value,
            revision=owed.report.revision,
            took_ms=round(took * 1000, 2),
            answer=answer.message,
        )

    def _on_failed(self, worker: str, error: RbeeError) -> None:
        was_degraded = self.degraded
        self._failed.add(worker)
        self._refused = self._refused or is_refusal(error)
        self._now_degraded(sentence(error), was_degraded=was_degraded)

    def _now_degraded(self, why: str, *, was_degraded: bool) -> None:
        self.degraded_why = why
        if was_degraded:
            return
        self._metrics.callback_degraded.set(1)
        log(
            LOGGER,
            ALERT,
            "the queen cannot be told of this machine's workers: "
            "check the queen, queen.callback_url and the token hive_callback_token",
            alert=1,
            why=why,
        )
        self._on_degraded()

    def _perhaps_recovered(self) -> None:
        if not self.degraded:
            self.degraded_why = ""
            self._metrics.callback_degraded.set(0)
            log(LOGGER, logging.INFO, "callbacks are delivered again")
            self._on_degraded()

    def _on_delivered(self, worker: str) -> None:
        if worker in self._failed:
            self._failed.discard(worker)
            self._perhaps_recovered()
        if worker not in self._owed and worker not in self._detail_due:
            self._forget_old_paces()

    def _forget_old_paces(self) -> None:
        """Keep the table of last times as small as what it is for."""
        before = asyncio.get_running_loop().time() - DETAIL_INTERVAL_S
        self._detail_sent = {worker: sent for worker, sent in self._detail_sent.items() if sent > before}

    async def flush(self, limit_s: float) -> None:
        """Wait, at most ``limit_s``, until nothing is being sent: the last words before an end."""
        for worker in list(self._detail_due):
            self._cancel_pace(worker)
            self._send(worker)
        try:
            async with asyncio.timeout(limit_s):
                while self._sending:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            log(LOGGER, logging.WARNING, "the queen was not told everything before the end", waiting=self.waiting)

    def close(self) -> None:
        """Forget the timers; the tasks belong to their owner."""
        for timer in self._detail_due.values():
            timer.cancel()
        self._detail_due.clear()
