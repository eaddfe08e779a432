"""Workers and hives as the queen sees them: in RAM, rebuilt from the hives, changed by one thread of control.

Nothing here waits or does I/O: a message is applied and whoever listens is called before the call returns, which is
what lets a waiting request start as soon as its worker's callback arrives. Times are given by the caller
(``now`` is CLOCK_MONOTONIC in seconds).
"""

import enum
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field

import msgspec

from rbee.queen.lives import Lives, Verdict, judge
from rbee.queen.routing import Key
from rbee.wire.errors import Conflict, WorkerNotFound
from rbee.wire.messages import Heartbeat, MachineFacts, WorkerReport, WorkerState

MANUAL_BOOT = "manual"
DEFAULT_INTERVAL_S = 5.0
MOST_MANUAL = 1000


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
    """One machine's hive: its lives, what it last said, and when it was last heard (monotonic seconds)."""

    hive_id: str
    heard: float
    lives: Lives = field(default_factory=Lives)
    picture_revision: int | None = None
    manual: bool = False
    stale: bool = False
    api_url: str | None = None
    version: str = ""
    interval_s: float = DEFAULT_INTERVAL_S
    machine: MachineFacts | None = None


@dataclass(slots=True, eq=False)
class Worker:
    """One worker: its latest report and what the queen knows beside it.

    ``suspect`` says why the queen doubts the report (the connection broke); the next report clears it, and where there
    is no hive to report, time does (``forgiven_at``, monotonic). ``proven_until`` is how long (monotonic) a direct
    answer of the worker stands in for its silent hive.
    """

    key: Key
    report: WorkerReport
    hive: Hive
    held: bool = False
    suspect: str = ""
    forgiven_at: float = 0.0
    proven_until: float = 0.0
    in_flight: int = 0
    served: int = 0
    ready_at: float | None = None

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
        """Requests that it runs at once."""
        return max(1, self.report.slots_total)

    @property
    def url(self) -> str | None:
        """Where it answers."""
        return self.report.url

    def names(self) -> set[str]:
        """The names by which requests may ask for its model."""
        return {name for name in (self.report.model, self.report.model_ref) if name}

    def view(self) -> WorkerReport:
        """The report as the queen shows it: with her own state and count of free slots."""
        available = max(0, self.report.slots_total - self.in_flight)
        reason = self.suspect or self.report.reason
        return msgspec.structs.replace(self.report, state=self.state, slots_available=available, reason=reason)


@dataclass(frozen=True, slots=True)
class Change:
    """A worker changed; ``removed`` when it is gone. ``load_only``: nothing but its count of requests changed."""

    worker: Worker
    removed: bool = False
    load_only: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a message did, as a sentence, and the order it was judged to have."""

    verdict: Verdict
    message: str

    @property
    def applied(self) -> bool:
        """Whether it changed what is known."""
        return self.verdict.counts


class Registry:
    """All workers and hives. Changes are told to ``listeners`` in the order in which they were added."""

    def __init__(self, limits: SilenceLimits) -> None:
        self.limits = limits
        self._workers: dict[Key, Worker] = {}
        self._hives: dict[str, Hive] = {}
        self._by_name: dict[str, dict[Key, Worker]] = {}
        self._listeners: list[Callable[[Change], None]] = []

    def listen(self, listener: Callable[[Change], None]) -> None:
        """Call ``listener`` for each change; it must neither wait nor raise."""
        self._listeners.append(listener)

    # what is known

    def workers(self) -> Collection[Worker]:
        """Every worker."""
        return self._workers.values()

    def hives(self) -> Collection[Hive]:
        """Every hive, manual ones included."""
        return self._hives.values()

    def worker(self, key: Key) -> Worker | None:
        """The worker of that key."""
        return self._workers.get(key)

    def hive(self, hive_id: str) -> Hive | None:
        """The hive of that id."""
        return self._hives.get(hive_id)

    def serving(self, name: str) -> Collection[Worker]:
        """Workers, in any state, whose model has that name or reference."""
        return self._by_name.get(name, {}).values()

    def model_names(self) -> Iterator[str]:
        """The models that requests can name (references left out)."""
        return iter({worker.report.model for worker in self._workers.values() if worker.report.model})

    def find(self, worker_id: str, hive_id: str | None) -> Worker:
        """The worker of that id; raises WorkerNotFound, or Conflict when several hives have one and none is named."""
        found = [
            worker
            for worker in self._workers.values()
            if worker.key.worker_id == worker_id and hive_id in (None, worker.key.hive_id)
        ]
        if not found:
            raise WorkerNotFound(
                f"no worker '{worker_id}' is known here: GET /v2/workers/list names those that are",
                details={"worker_id": worker_id},
            )
        if len(found) > 1:
            hives = sorted(worker.key.hive_id for worker in found)
            raise Conflict("several hives have a worker of that id: name one as hive_id", details={"hives": hives})
        return found[0]

    # what hives say

    def apply(self, report: WorkerReport, now: float) -> Outcome:
        """Take one worker's report (a callback or a change of state)."""
        hive = self._hear(report.hive_id, now)
        life = hive.lives.enter(report.boot_id)
        if life is Verdict.SUPERSEDED:
            return Outcome(life, "ignored: this life of the hive has been superseded")
        if life is Verdict.NEW_LIFE:
            hive.picture_revision = None
        outcome = self._order(hive, report)
        if outcome.applied:
            self._store(hive, report)
        return outcome

    def _order(self, hive: Hive, report: WorkerReport) -> Outcome:
        known = self._workers.get(Key(report.hive_id, report.worker_id))
        if known is None:
            gone = hive.picture_revision is not None and report.revision <= hive.picture_revision
            if gone:
                return Outcome(Verdict.OLDER, "ignored: a later picture of the hive does not have this worker")
            return Outcome(Verdict.NEWER, "stored: a new worker")
        if known.report.boot_id != report.boot_id:
            return Outcome(Verdict.NEW_LIFE, "stored: a new life of the hive")
        verdict = judge(known.report.revision, report.revision)
        if verdict.counts:
            return Outcome(verdict, "stored")
        return Outcome(verdict, f"ignored: revision {known.report.revision} is known already")

    def heartbeat(self, beat: Heartbeat, now: float) -> Outcome:
        """Take a hive's whole picture: what it does not have is removed, unless something newer said otherwise."""
        hive = self._hear(beat.hive_id, now)
        life = hive.lives.enter(beat.boot_id)
        if life is Verdict.SUPERSEDED:
            return Outcome(life, "ignored: this life of the hive has been superseded")
        if life is Verdict.NEW_LIFE:
            hive.picture_revision = None
        verdict = judge(hive.picture_revision, beat.revision)
        if verdict is Verdict.OLDER:
            return Outcome(verdict, "ignored: a later picture is known already")
        hive.picture_revision = beat.revision
        hive.api_url, hive.version, hive.machine = beat.api_url, beat.version, beat.machine
        hive.interval_s = min(max(beat.interval_s, 0.05), 60.0)
        present = set()
        for report in beat.workers:
            key = Key(beat.hive_id, report.worker_id)
            present.add(key)
            self._take_from_picture(hive, report, key)
        for key, worker in list(self._workers.items()):
            if worker.hive is hive and key not in present and not self._newer_than(worker, beat):
                self._drop(worker)
        return Outcome(verdict if life is Verdict.SAME else life, "stored")

    def _take_from_picture(self, hive: Hive, report: WorkerReport, key: Key) -> None:
        known = self._workers.get(key)
        if known is None or known.report.boot_id != report.boot_id or report.revision > known.report.revision:
            self._store(hive, report)
        elif known.suspect and report.revision == known.report.revision:
            known.suspect = ""
            self._tell(Change(known))

    @staticmethod
    def _newer_than(worker: Worker, beat: Heartbeat) -> bool:
        return worker.report.boot_id == beat.boot_id and worker.report.revision > beat.revision

    def _hear(self, hive_id: str, now: float) -> Hive:
        hive = self._hives.get(hive_id)
        if hive is None or hive.manual:
            self._forget_manual(hive)
            hive = self._hives[hive_id] = Hive(hive_id, now)
        hive.heard = now
        if hive.stale:
            hive.stale = False
            self._tell_all_of(hive)
        return hive

    def _forget_manual(self, hive: Hive | None) -> None:
        if hive is not None:
            for worker in [one for one in self._workers.values() if one.hive is hive]:
                self._drop(worker)

    # what operators say

    def register(self, report: WorkerReport, now: float) -> Worker:
        """Upsert a worker by hand; raises Conflict when a hive of that id reports by itself, or over the limit."""
        hive = self._hives.get(report.hive_id) or Hive(report.hive_id, now, manual=True)
        if not hive.manual:
            raise Conflict(
                "a hive of that id reports its workers itself: let the worker tell its hive, or use another hive_id",
                details={"hive_id": report.hive_id},
            )
        known = self._workers.get(Key(report.hive_id, report.worker_id))
        if known is None and sum(worker.hive.manual for worker in self._workers.values()) >= MOST_MANUAL:
            raise Conflict(f"{MOST_MANUAL} workers are registered by hand: remove one, or let hives report them")
        revision = 1 if known is None else known.report.revision + 1
        self._hives[report.hive_id] = hive
        return self._store(hive, msgspec.structs.replace(report, boot_id=MANUAL_BOOT, revision=revision, managed=False))

    def hold(self, key: Key, held: bool) -> Worker:
        """Mark a worker busy (no new work) or idle again; raises WorkerNotFound."""
        worker = self.find(key.worker_id, key.hive_id)
        worker.held = held
        if not held:
            worker.suspect = ""
        self._tell(Change(worker))
        return worker

    def remove(self, key: Key) -> bool:
        """Take a worker out of the list; a hive that still has it brings it back with its next picture."""
        worker = self._workers.get(key)
        if worker is not None:
            self._drop(worker)
        return worker is not None

    # what the queen herself sees

    def take(self, worker: Worker) -> None:
        """Count a request that goes to the worker."""
        worker.in_flight += 1
        worker.served += 1
        if worker.in_flight == 1:
            self._tell(Change(worker, load_only=True))

    def give_back(self, worker: Worker) -> None:
        """Count a request that ended."""
        worker.in_flight -= 1
        if worker.in_flight == 0:
            self._tell(Change(worker, load_only=True))

    def doubt(self, worker: Worker, reason: str) -> None:
        """Route nothing to the worker until its hive speaks of it again."""
        if not worker.suspect:
            worker.suspect = reason
            worker.forgiven_at = worker.proven_until = 0.0
            self._tell(Change(worker))

    def prove(self, worker: Worker, until: float) -> None:
        """The worker itself said that it is ready while its hive was silent: routable until then (monotonic)."""
        worker.proven_until = until
        worker.suspect = ""
        self._tell(Change(worker))

    def sweep(self, now: float) -> list[Hive]:
        """Mark the workers of silent hives stale, drop those of hives silent for long; returns the hives dropped."""
        gone = []
        for hive in list(self._hives.values()):
            if hive.manual:
                continue
            liveness = self.limits.liveness(now - hive.heard, hive.interval_s)
            if liveness is Liveness.GONE:
                gone.append(hive)
                self._forget(hive)
            elif liveness is Liveness.STALE and not hive.stale:
                hive.stale = True
                self._tell_all_of(hive)
        for worker in self._workers.values():
            if worker.proven_until and now >= worker.proven_until:
                worker.proven_until = 0.0
                self._tell(Change(worker))
            if worker.hive.manual and worker.suspect:
                self._forgive(worker, now)
        return gone

    def _forgive(self, worker: Worker, now: float) -> None:
        """No hive will speak of a worker that was registered by hand: after a while it is tried anew."""
        if not worker.forgiven_at:
            worker.forgiven_at = now + DEFAULT_INTERVAL_S
        elif now >= worker.forgiven_at:
            worker.suspect = ""
            self._tell(Change(worker))

    def _forget(self, hive: Hive) -> None:
        for worker in [one for one in self._workers.values() if one.hive is hive]:
            self._drop(worker)
        self._hives.pop(hive.hive_id, None)

    # the rows themselves

    def _store(self, hive: Hive, report: WorkerReport) -> Worker:
        key = Key(report.hive_id, report.worker_id)
        worker = self._workers.get(key)
        if worker is None:
            worker = self._workers[key] = Worker(key, report, hive)
            worker.ready_at = hive.heard if report.state.ready else None
            self._index((), worker)
        else:
            before = worker.names()
            if not report.state.ready:
                worker.ready_at = None
            elif not worker.report.state.ready:
                worker.ready_at = hive.heard
            if not report.state.ready or report.invocation_id != worker.report.invocation_id:
                worker.held = False  # an operator's hold is for one life of the worker
            worker.report = report
            worker.suspect, worker.proven_until = "", 0.0
            self._index(before, worker)
        self._tell(Change(worker))
        return worker

    def _drop(self, worker: Worker) -> None:
        del self._workers[worker.key]
        self._unindex(worker.names(), worker.key)
        self._tell(Change(worker, removed=True))

    def _index(self, before: Iterable[str], worker: Worker) -> None:
        names = worker.names()
        self._unindex(set(before) - names, worker.key)
        for name in names:
            self._by_name.setdefault(name, {})[worker.key] = worker

    def _unindex(self, names: Iterable[str], key: Key) -> None:
        for name in names:
            rows = self._by_name.get(name, {})
            rows.pop(key, None)
            if not rows:
                self._by_name.pop(name, None)

    def _tell_all_of(self, hive: Hive) -> None:
        for worker in [one for one in self._workers.values() if one.hive is hive]:
            self._tell(Change(worker))

    def _tell(self, change: Change) -> None:
        if not change.removed and self._workers.get(change.worker.key) is not change.worker:
            return  # a request that ends may outlive its worker's row: that is no news of a worker
        for listener in self._listeners:
            listener(change)
