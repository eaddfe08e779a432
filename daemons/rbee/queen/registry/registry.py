"""Workers and hives as the queen sees them: in RAM, rebuilt from the hives, changed by one thread of control.

Nothing here waits or does I/O: a message is applied and whoever listens is called before the call returns, which is
what lets a waiting request start as soon as its worker's callback arrives. Times are given by the caller
(``now`` is CLOCK_MONOTONIC in seconds).
"""

from collections.abc import Callable, Collection, Iterable, Iterator

import msgspec

from rbee.queen.registry.lives import Verdict, judge
from rbee.queen.registry.rows import Change, Hive, Liveness, Outcome, SilenceLimits, Worker
from rbee.queen.routing.decision import Key
from rbee.queen.routing.pool import Pool
from rbee.wire.errors import Conflict, WorkerNotFound
from rbee.wire.messages import Heartbeat, WorkerReport, WorkerState
from rbee.wire.shortage import OOM_KILL

__all__ = ["Change", "Hive", "Liveness", "Outcome", "Registry", "SilenceLimits", "Worker"]
MANUAL_BOOT = "manual"
MOST_MANUAL = 1000
_NOBODY: Pool[Worker] = Pool()


class Registry:
    """All workers and hives. Changes are told to ``listeners`` in the order in which they were added."""

    def __init__(self, limits: SilenceLimits) -> None:
        self.limits = limits
        self._workers: dict[Key, Worker] = {}
        self._hives: dict[str, Hive] = {}
        self._pools: dict[str, Pool[Worker]] = {}
        self._weigh: Callable[[Key], float] = lambda key: 1.0
        self._listeners: list[Callable[[Change], None]] = []
        self._load_listeners: list[Callable[[Change], None]] = []

    def listen(self, listener: Callable[[Change], None], *, loads: bool = False) -> None:
        """Call ``listener`` for each change; it must neither wait nor raise.

        ``loads``: also where a worker got its first request, or gave its last one back, and nothing else changed.
        """
        self._listeners.append(listener)
        if loads:
            self._load_listeners.append(listener)

    def weigh(self, weigh: Callable[[Key], float]) -> None:
        """Give each worker the weight that ``weigh`` says, those to come as well."""
        self._weigh = weigh
        for worker in self._workers.values():
            worker.weight = weigh(worker.key)
            self._touch(worker)

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
        return self.pool(name).rows()

    def pool(self, name: str) -> Pool[Worker]:
        """The same as an index by load, for a choice among them; not to be changed."""
        return self._pools.get(name, _NOBODY)

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
        hive.picture = None if life is Verdict.NEW_LIFE else hive.picture
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

    def repeated(self, hive_id: str, picture: int, now: float) -> Hive | None:
        """The hive, heard at ``now``, where its picture is the one taken last and there is nothing that it settles."""
        hive = self._hives.get(hive_id)
        if hive is None or hive.picture != picture or hive.stale or hive.doubted:
            return None
        hive.heard = now
        return hive

    def heartbeat(self, beat: Heartbeat, now: float, picture: int | None = None) -> Outcome:
        """Take a hive's whole picture: what it does not have is removed, unless something newer said otherwise.

        ``picture`` is its hash, by which :meth:`repeated` knows it again.
        """
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
        for key, worker in list(hive.workers.items()):
            if key not in present and not self._newer_than(worker, beat):
                self._drop(worker)
        hive.picture = picture
        return Outcome(verdict if life is Verdict.SAME else life, "stored")

    def _take_from_picture(self, hive: Hive, report: WorkerReport, key: Key) -> None:
        known = hive.workers.get(key)
        if known is None or known.report.boot_id != report.boot_id or report.revision > known.report.revision:
            self._store(hive, report)
        elif known.suspect and report.revision == known.report.revision and known.breaker.reassured():
            self._try_again(known)

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
            hive.stale, hive.back_at = False, now
            self._tell_all_of(hive)
        return hive

    def _forget_manual(self, hive: Hive | None) -> None:
        if hive is not None:
            for worker in list(hive.workers.values()):
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
            worker.breaker.close()
        self._tell(Change(worker))
        return worker

    def remove(self, key: Key) -> bool:
        """Take a worker out of the list; a hive that still has it brings it back with its next picture."""
        worker = self._workers.get(key)
        if worker is not None:
            self._drop(worker)
        return worker is not None

    # what the queen herself sees

    def take(self, worker: Worker, work: float = 1.0) -> None:
        """Count a request that goes to the worker, and its estimated cost in tokens."""
        worker.in_flight += 1
        worker.work += work
        worker.served += 1
        worker.turn += 1.0 / worker.weight
        self._load_changed(worker, told=worker.in_flight == 1)

    def give_back(self, worker: Worker, work: float = 1.0) -> None:
        """Count a request that ended."""
        worker.in_flight -= 1
        if worker.in_flight == 0:
            worker.work = 0.0
            self._load_changed(worker, told=True)
        else:
            worker.work -= work
            self._load_changed(worker, told=False)

    def _load_changed(self, worker: Worker, *, told: bool) -> None:
        for pool in worker.pools:
            pool.load_changed(worker)
        if told and self._workers.get(worker.key) is worker:
            change = Change(worker)
            for listener in self._load_listeners:
                listener(change)

    def doubt(self, worker: Worker, reason: str, now: float) -> bool:
        """Route nothing to the worker until its breaker lets a request try it; True when the breaker opened by this."""
        opened = worker.breaker.trip(now)
        if opened:
            self._suspect(worker, reason)
        return opened

    def bad_answer(self, worker: Worker, reason: str, now: float) -> bool:
        """The worker answered with an error of its own: several in a row are a doubt; True when this made it one."""
        opened = worker.breaker.bad_answer(now)
        if opened:
            self._suspect(worker, reason)
        return opened

    def good_answer(self, worker: Worker) -> None:
        """The worker answered: nothing speaks against it any more."""
        if worker.breaker.good_answer():
            worker.suspect = ""
            self._tell(Change(worker))

    def _suspect(self, worker: Worker, reason: str) -> None:
        worker.suspect = reason
        worker.proven_until = 0.0
        self._tell(Change(worker))

    def _try_again(self, worker: Worker) -> None:
        worker.suspect = ""
        self._tell(Change(worker))

    def prove(self, worker: Worker, until: float) -> None:
        """The worker itself said that it is ready while its hive was silent: routable until then (monotonic)."""
        worker.proven_until = until
        worker.suspect = ""
        worker.breaker.close()
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
            if worker.suspect and worker.breaker.cooled(now) and worker.breaker.half_open():
                self._try_again(worker)
        return gone

    def _forget(self, hive: Hive) -> None:
        for worker in list(hive.workers.values()):
            self._drop(worker)
        self._hives.pop(hive.hive_id, None)

    # the rows themselves

    def _store(self, hive: Hive, report: WorkerReport) -> Worker:
        key = Key(report.hive_id, report.worker_id)
        worker = self._workers.get(key)
        if worker is None:
            worker = self._workers[key] = hive.workers[key] = Worker(key, report, hive, weight=self._weigh(key))
            worker.ready_at = hive.heard if report.state.ready else None
            self._note_loading(worker)
            self._join(worker)
            self._index((), worker)
        else:
            self._replace(worker, report)
        self._tell(Change(worker))
        return worker

    def _replace(self, worker: Worker, report: WorkerReport) -> None:
        before, hive = worker.names(), worker.hive
        if not report.state.ready:
            worker.ready_at = None
        elif not worker.report.state.ready:
            worker.ready_at = hive.heard
        if not report.state.ready or report.invocation_id != worker.report.invocation_id:
            worker.held = False  # an operator's hold is for one life of the worker
        news = (report.result, report.invocation_id) != (worker.report.result, worker.report.invocation_id)
        if report.result == OOM_KILL and news:
            worker.killed_at = hive.heard
        worker.report = report
        worker.suspect, worker.proven_until = "", 0.0
        worker.breaker.close()
        self._note_loading(worker)
        if worker.ready_at == hive.heard:
            self._join(worker)
        self._index(before, worker)

    def _join(self, worker: Worker) -> None:
        """One that is new, or back, takes its turn beside the others: it owes no work for the time it was away."""
        for pool in map(self.pool, worker.names()):
            least = pool.least()
            worker.turn = max(worker.turn, pool.turn if least is None or least is worker else least.turn)

    @staticmethod
    def _note_loading(worker: Worker) -> None:
        if worker.report.state is not WorkerState.LOADING:
            worker.loading_since = None
        elif worker.loading_since is None:
            worker.loading_since = worker.hive.heard

    def _drop(self, worker: Worker) -> None:
        del self._workers[worker.key]
        worker.hive.workers.pop(worker.key, None)
        worker.hive.picture = None
        self._unindex(worker.names(), worker.key)
        worker.pools = ()
        self._tell(Change(worker, removed=True))

    def _index(self, before: Iterable[str], worker: Worker) -> None:
        names = worker.names()
        self._unindex(set(before) - names, worker.key)
        worker.pools = tuple(self._pools.setdefault(name, Pool()) for name in names)
        for pool in worker.pools:
            pool.put(worker)

    def _unindex(self, names: Iterable[str], key: Key) -> None:
        for name in names:
            pool = self._pools.get(name)
            if pool is not None:
                pool.remove(key)
                if not len(pool):
                    del self._pools[name]

    def _touch(self, worker: Worker) -> None:
        for pool in worker.pools:
            pool.touch(worker)

    def _tell_all_of(self, hive: Hive) -> None:
        for worker in list(hive.workers.values()):
            self._tell(Change(worker))

    def _tell(self, change: Change) -> None:
        if not change.removed and self._workers.get(change.worker.key) is not change.worker:
            return  # a request that ends may outlive its worker's row: that is no news of a worker
        self._touch(change.worker)
        for listener in self._listeners:
            listener(change)
