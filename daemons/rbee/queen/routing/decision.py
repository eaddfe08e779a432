"""Pure decisions of routing: which worker takes a request, and what to do while none can."""

import enum
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from rbee.wire.errors import LoadingTimeout, RbeeError, WorkerFailed
from rbee.wire.messages import WorkerReport, WorkerState
from rbee.wire.shortage import reported

EXIT_UNAVAILABLE = 69
EXIT_CONFIG = 78
_HOPELESS = (EXIT_UNAVAILABLE, EXIT_CONFIG)


class Key(NamedTuple):
    """A worker's identity in the queen: ids are scoped by their hive, so two hives never collide."""

    hive_id: str
    worker_id: str

    def __str__(self) -> str:
        return f"{self.hive_id}/{self.worker_id}"


class Candidate(Protocol):
    """What routing looks at in a worker: rows of the registry fit."""

    @property
    def key(self) -> Key: ...
    @property
    def state(self) -> WorkerState:
        """As the queen sees it now (stale, unhealthy included)."""

    @property
    def held(self) -> bool:
        """Whether an operator marked it busy: no new work."""

    @property
    def slots(self) -> int:
        """Requests that it may run at once now."""

    @property
    def in_flight(self) -> int: ...
    @property
    def work(self) -> float:
        """What its requests in flight are estimated to cost, in tokens."""

    @property
    def weight(self) -> float:
        """How much of the work it is to have, beside workers of weight 1."""

    @property
    def turn(self) -> float:
        """Grows by each request that it is given, by less with more weight: breaks ties so that work spreads."""

    @property
    def report(self) -> WorkerReport: ...


class Waiting(enum.StrEnum):
    """Why a request waits."""

    BUSY = "busy"
    LOADING = "loading"
    PLACING = "placing"
    SILENT = "silent"

    @property
    def cold(self) -> bool:
        """Whether the wait is for a start rather than for a slot."""
        return self is not Waiting.BUSY


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait: a change of ``key`` (or any) will tell more; None while no worker is placed yet."""

    why: Waiting
    key: Key | None


@dataclass(frozen=True, slots=True)
class Start:
    """Ask the hive of ``key`` to start it."""

    key: Key


@dataclass(frozen=True, slots=True)
class Fail:
    """No worker can serve: ``report`` is the latest that failed, None when no worker is known."""

    report: WorkerReport | None


def routable(worker: Candidate) -> bool:
    """Whether the worker is ready, can be reached and is not held back, its slots aside."""
    return worker.state.ready and not worker.held and worker.report.url is not None


def free(worker: Candidate) -> bool:
    """Whether the worker may have one more request."""
    return worker.in_flight < worker.slots and routable(worker)


Load = tuple[float, float, float]
"""What a worker has to do: work, then requests, each by what it can take, then whose turn it is. Less is better."""


def load(worker: Candidate) -> Load:
    """The load of a worker: work outstanding by its slots and weight; equals are told apart by requests, then turns."""
    room = worker.slots * worker.weight
    return (worker.work / room, worker.in_flight / room, worker.turn)


def prefers(affine: Candidate, least: Candidate, slack: float) -> bool:
    """Whether a request goes to the worker that has its prompt's beginning, past the one with the least to do.

    It does while that worker has a free slot and is busier by no more than ``slack``, a share of its slots: what a
    cache saves is less than what an overloaded worker costs.
    """
    if not free(affine):
        return False
    return load(affine)[1] <= load(least)[1] + slack


class Reason(enum.StrEnum):
    """Why a worker was chosen."""

    LEAST_WORK = "least_work"
    PREFIX = "prefix"
    TRIAL = "trial"


def startable(worker: Candidate) -> bool:
    """Whether asking its hive to start it makes sense: stopped, or failed by something that a new start may cure."""
    if not worker.report.managed:
        return False
    if worker.state is WorkerState.STOPPED:
        return True
    return worker.state is WorkerState.FAILED and worker.report.exit_status not in _HOPELESS


def next_step(workers: Collection[Candidate], tried: Collection[Key], starting: Collection[Key]) -> Wait | Start | Fail:
    """What a model's waiting requests need when no worker has a free slot for them.

    ``tried`` are workers whose start these requests have seen (asked for or under way): each is started once for
    them. ``starting`` are workers whose hive has been asked and has not reported yet.
    """
    for worker in workers:
        if routable(worker):
            return Wait(Waiting.BUSY, worker.key)
    for worker in workers:
        if worker.state is WorkerState.LOADING or worker.key in starting:
            return Wait(Waiting.LOADING, worker.key)
    fresh = [worker for worker in workers if startable(worker) and worker.key not in tried]
    if fresh:
        return Start(min(fresh, key=_start_order).key)
    for worker in workers:
        if worker.state.ready:  # held by an operator, or its address is still to come
            return Wait(Waiting.BUSY, worker.key)
        if worker.state is WorkerState.DRAINING and worker.key not in tried:
            return Wait(Waiting.LOADING, worker.key)
        if worker.state in (WorkerState.UNHEALTHY, WorkerState.STALE):
            return Wait(Waiting.SILENT, worker.key)
    failed = max((worker.report for worker in workers), key=lambda report: report.since_unix, default=None)
    return Fail(failed)


def _start_order(worker: Candidate) -> tuple[bool, int, Key]:
    return (worker.state is WorkerState.FAILED, worker.report.restarts, worker.key)


def failure(report: WorkerReport) -> RbeeError:
    """The error of requests whose worker did not come up, with the worker's own reason from its report."""
    details = {
        "worker": str(Key(report.hive_id, report.worker_id)),
        "state": report.state.value,
        "reason": report.reason,
        "result": report.result,
        "exit_status": report.exit_status,
    }
    hint = f"see 'journalctl -u rbee-worker@{report.worker_id}' on {report.hive_id}"
    short = reported(report)
    if short is not None:
        return type(short)(f"{short.message}; {hint}", details=details | short.details, retry_after_s=30)
    if report.reason == LoadingTimeout.code or report.result == "timeout":
        return LoadingTimeout(
            f"worker {report.worker_id} made no progress while loading; {hint}", details=details, retry_after_s=30
        )
    why = report.reason or report.result or report.state.value
    return WorkerFailed(f"worker {report.worker_id} is not ready: {why}; {hint}", details=details, retry_after_s=30)
