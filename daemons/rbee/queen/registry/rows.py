"""The rows of the registry: a hive, a worker, and what a change or a message did to them."""

import enum
from dataclasses import dataclass, field

import msgspec

from rbee.queen.registry.lives import Lives, Verdict
from rbee.queen.routing.breaker import Breaker, BreakerState
from rbee.queen.routing.decision import Key
from rbee.queen.routing.pool import Pool
from rbee.wire.messages import MachineFacts, WorkerReport, WorkerState

DEFAULT_INTERVAL_S = 5.0
_HALF_OPEN = BreakerState.HALF_OPEN


class Liveness(enum.StrEnum):
    """What a hive's silence means."""

    LIVE = "live"
    STALE = "stale"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class SilenceLimits:
    """Intervals of silence after which a hive is stale, and seconds after which it is forgotten."""

    stale_after_intervals: float = 3.0
    drop_after_s: float = 300.0

    def liveness(self, silent_s: float, interval_s: float) -> Liveness:
        """Judge a silence of ``silent_s`` of a hive that promised a message every ``interval_s``."""
        if silent_s >= self.drop_after_s:
            return Liveness.GONE
        return Liveness.STALE if silent_s >= self.stale_after_intervals * interval_s else Liveness.LIVE


@dataclass(slots=True, eq=False)
class Hive:
    """One machine's hive: its lives, what it last said, and when it was last heard (monotonic seconds).

    ``picture`` is a hash of the whole picture that was last taken, by which the same one is known when it comes again.
    ``back_at`` is when it was heard again after it had been stale, None where it never was (monotonic seconds).
    """

    hive_id: str
    heard: float
    lives: Lives = field(default_factory=Lives)
    picture_revision: int | None = None
    manual: bool = False
    stale: bool = False
    back_at: float | None = None
    api_url: str | None = None
    version: str = ""
    interval_s: float = DEFAULT_INTERVAL_S
    machine: MachineFacts | None = None
    workers: dict[Key, "Worker"] = field(default_factory=dict)
    picture: int | None = None

    @property
    def doubted(self) -> bool:
        """Whether some worker of it has an open breaker, on which the hive's next word bears."""
        return any(worker.suspect for worker in self.workers.values())


@dataclass(slots=True, eq=False)
class Worker:
    """One worker: its latest report and what the queen knows beside it.

    ``suspect`` says why the queen doubts the report while its ``breaker`` is open (the connection broke).
    ``proven_until`` is how long (monotonic) a direct answer of the worker stands in for its silent hive. ``work`` is
    the estimated cost, in tokens, of its requests in flight; ``loading_since`` is when it was first heard to load,
    ``used_at`` when it was last given a request, ``killed_at`` when the queen last heard that a life of it was killed
    for its memory, 0 before the first (monotonic). ``pools`` are those of its names while the registry has it.
    """

    key: Key
    report: WorkerReport
    hive: Hive
    held: bool = False
    suspect: str = ""
    breaker: Breaker = field(default_factory=Breaker)
    proven_until: float = 0.0
    in_flight: int = 0
    work: float = 0.0
    weight: float = 1.0
    served: int = 0
    turn: float = 0.0
    ready_at: float | None = None
    loading_since: float | None = None
    pools: tuple[Pool["Worker"], ...] = ()
    used_at: float = 0.0
    killed_at: float = 0.0

    @property
    def state(self) -> WorkerState:
        """The worker's state as the queen sees it now."""
        if self.proven_until:
            return WorkerState.BUSY if self.in_flight else WorkerState.IDLE
        state = self.report.state
        if self.hive.stale and state is not WorkerState.STOPPED:
            return WorkerState.STALE
        if not state.ready:
            return state
        if self.suspect:
            return WorkerState.UNHEALTHY
        return WorkerState.BUSY if self.in_flight or self.held else WorkerState.IDLE

    @property
    def slots(self) -> int:
        """Requests that it may run at once: its own number, one while a request tries whether it is well again."""
        slots = self.report.slots_total
        return slots if slots > 1 and self.breaker.state is not _HALF_OPEN else 1

    @property
    def on_trial(self) -> bool:
        """Whether its next request tells whether it is well again."""
        return self.breaker.state is _HALF_OPEN

    @property
    def url(self) -> str | None:
        """Where it answers."""
        return self.report.url

    def names(self) -> set[str]:
        """The names by which requests may ask for its model."""
        return {name for name in (self.report.model, self.report.model_ref) if name}

    def view(self) -> WorkerReport:
        """The report as the queen shows it: with her own state and count of free slots; only a ready one has any."""
        state = self.state
        available = max(0, self.report.slots_total - self.in_flight) if state.ready else 0
        reason = self.suspect or self.report.reason
        return msgspec.structs.replace(self.report, state=state, slots_available=available, reason=reason)


def tells_of_start(report: WorkerReport, before: WorkerReport | None) -> bool:
    """Whether a report speaks of a start, ``before`` being what was known: that, said once more or not, does not.

    A crashed worker stays failed, in reports that may differ, until its restart delay is over.
    """
    if report.state is WorkerState.STOPPED:
        return False
    return before is None or report.state is not before.state or report.invocation_id != before.invocation_id


class Change:
    """A worker changed; ``removed`` when it is gone."""

    __slots__ = ("removed", "worker")

    def __init__(self, worker: Worker, *, removed: bool = False) -> None:
        self.worker = worker
        self.removed = removed


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a message did, as a sentence, and the order it was judged to have."""

    verdict: Verdict
    message: str

    @property
    def applied(self) -> bool:
        """Whether it changed what is known."""
        return self.verdict.counts
