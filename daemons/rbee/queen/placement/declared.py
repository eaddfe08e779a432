"""Models that are declared: workers of one are placed and started when requests come, or are kept."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from rbee.queen.placement.decision import Need
from rbee.queen.placement.drains import Drains
from rbee.queen.placement.life import Failed, Life, Move
from rbee.queen.placement.placements import REPORT_LIMIT_S, Placements
from rbee.queen.placement.replicas import idle_s, replicas_of, spawn_request, was_declared, worker_id_of
from rbee.queen.placement.room import fits_without
from rbee.queen.placement.scaling import Drain, Further, Limits, Replica, Why
from rbee.queen.placement.warm import Kept, WarmTimes, kept_at
from rbee.queen.registry.registry import Registry
from rbee.queen.registry.rows import Change, Worker, tells_of_start
from rbee.queen.routing.decision import Key
from rbee.queen.routing.metrics import PlacingMetrics
from rbee.wire.declarations import DeclaredModel, Replacement
from rbee.wire.errors import HiveUnreachable, RbeeError
from rbee.wire.log import ALERT, log
from rbee.wire.messages import SpawnRequest, WorkerReport, WorkerState
from rbee.wire.tasks import TaskOwner

LOGGER = logging.getLogger(__name__)
MISSED_INTERVALS = 1.5
"""A word that is late by half an interval is missing."""
IDLE_S = 300.0
"""A worker that is not kept ends after so long without need where its declaration does not say.

So does any worker whose declaration is gone, and was to go on without need for ever.
"""
Settled = Callable[[str, Collection[Key], RbeeError | None], None]


@dataclass(slots=True, eq=False)
class _Placing:
    """One start of a model's worker under way; ``reported`` once its hive has told of the start.

    ``before`` are the last reports of workers that had its id. ``ended`` are workers of the model in place of which it
    starts: the memory they had may be another one's now.
    """

    worker_id: str
    before: Mapping[Key, WorkerReport]
    ended: set[Key] = field(default_factory=set)
    reported: asyncio.Event = field(default_factory=asyncio.Event)


class DeclaredModels:
    """Places workers of declared models, at most one at a time for each, however many requests wait."""

    def __init__(
        self,
        placements: Placements,
        drains: Drains,
        registry: Registry,
        owner: TaskOwner,
        settled: Settled,
        metrics: PlacingMetrics,
    ) -> None:
        """``settled`` is called when a start is no longer under way, with the workers that it was to replace.

        Its last argument is the error where none was started. ``clock`` is the one on the wall, which warm times go by.
        """
        self.clock: Callable[[], float] = time.time
        self._models: Mapping[str, DeclaredModel] = {}
        self._warm: dict[str, WarmTimes] = {}
        self._placements = placements
        self._drains = drains
        self._registry = registry
        self._owner = owner
        self._settled = settled
        self._metrics = metrics
        self._under_way: dict[str, _Placing] = {}
        self._lives: dict[str, Life] = {}
        self._ended: Mapping[str, float | None] = {}
        self._let_go: set[Key] = set()
        registry.listen(self._on_change)

    def configure(self, models: Mapping[str, DeclaredModel], ended: Mapping[str, float | None]) -> None:
        """Put other declarations in force; ``ended`` are models of former ones, with the idle limits of these.

        Workers of a changed one are replaced, one after the other; those of one that is gone go on until they are idle.
        """
        for model, life in list(self._lives.items()):
            declared = models.get(model)
            if declared is None:
                del self._lives[model]
            elif declared != self._models.get(model):
                life.renew(declared.replicas.max if self._alike(model, declared) else 0)
        self._warm = {model: self._warm_times(model, declared) for model, declared in models.items() if declared.warm}
        self._models, self._ended = models, ended

    def _alike(self, model: str, declared: DeclaredModel) -> bool:
        """Whether workers of the model's declaration in force are those of ``declared``."""
        known = self._models.get(model)
        return known is not None and worker_id_of(model, known) == worker_id_of(model, declared)

    def _warm_times(self, model: str, declared: DeclaredModel) -> WarmTimes:
        """Those that there are where the declaration is as it was: what they found out of the calendar holds."""
        known = self._warm.get(model)
        return WarmTimes(declared) if known is None or declared != self._models.get(model) else known

    def __contains__(self, model: str) -> bool:
        return model in self._models

    def names(self) -> Collection[str]:
        """The names of all declared models."""
        return self._models.keys()

    def task(self, model: str) -> str:
        """What the model does, as far as its declaration says."""
        return self._models[model].task.value

    def note(self, model: str) -> str:
        """What keeps the model's workers from being what its declaration says, or is done about it; else empty."""
        life = self._lives.get(model)
        if life is None:
            return ""
        return life.problem or ("" if life.replacing is None else f"replacing {life.replacing.former}")

    def warm_note(self, model: str) -> str:
        """What the model's warm times say now, empty where it has none."""
        warm = self._warm.get(model)
        return "" if warm is None else warm.note(self._load_s(model), self.clock())

    def kept(self) -> int:
        """How many workers are kept now, of all models."""
        return sum(self._kept(model, declared).least for model, declared in self._models.items())

    def _load_s(self, model: str) -> float | None:
        life = self._lives.get(model)
        return None if life is None else life.load_s

    def _kept(self, model: str, declared: DeclaredModel) -> Kept:
        now, warm = self.clock(), self._warm.get(model)
        return kept_at(declared, None if warm is None else warm.span(now), self._load_s(model), now)

    def problems(self) -> list[str]:
        """A sentence for each model that lacks a worker that is to be kept, or whose change is not in force."""
        found = []
        for model, life in self._lives.items():
            if life.stuck:
                found.append(f"model {model}: its changed declaration is not in force, 'rbee model list' tells why")
            elif life.problem and self._kept(model, self._models[model]).least:
                found.append(f"model {model}: a worker of it is missing, 'rbee model list' tells why")
        return found

    def _may_start(self, model: str, beside: str | None = None) -> bool:
        """Whether a worker of the model may start on a node that is heard, and is not ``beside``."""
        declared = self._models.get(model)
        return declared is not None and any(
            not hive.manual and not hive.stale and hive.hive_id != beside and declared.node in (None, hive.hive_id)
            for hive in self._registry.hives()
        )

    def takes_over(self, model: str, worker: Worker) -> bool:
        """Whether the worker's node is silent, and one of the model may start on another instead."""
        return worker.hive.stale and self._may_start(model)

    def may_take_over(self, model: str, worker: Worker, now: float) -> bool:
        """Whether that is to be expected: the node missed a word at ``now`` (monotonic seconds)."""
        hive = worker.hive
        missed = not hive.manual and now - hive.heard > MISSED_INTERVALS * hive.interval_s
        return missed and self._may_start(model, beside=hive.hive_id)

    def begin(self, model: str) -> None:
        """Begin to place a worker of the model unless that is under way; returns at once."""
        if model in self._models:
            self._begin(model, self._free_number(model))

    def restart(self, key: Key) -> bool:
        """Begin to place a worker that ended anew, where it is one of a declared model; whether it is."""
        worker = self._registry.worker(key)
        model = "" if worker is None else worker.report.model or ""
        declared = self._models.get(model)
        if worker is None or declared is None:
            return False
        (replica,) = replicas_of(model, declared, [worker], time.monotonic())
        if replica.number is None and not replica.former:
            return False
        self._begin(model, self._free_number(model) if replica.number is None else replica.number)
        if model in self._under_way:
            self._under_way[model].ended.add(key)
        return True

    def _free_number(self, model: str) -> int:
        """The first number of which no worker is up, 1 where all are."""
        declared = self._models[model]
        up = {one.number for one in self._replicas(model, declared, time.monotonic()) if one.up}
        return next((number for number in range(1, declared.replicas.max + 1) if number not in up), 1)

    @property
    def starting(self) -> frozenset[Key]:
        """Workers that ended and are placed anew now."""
        return frozenset(key for placing in self._under_way.values() for key in placing.ended)

    @property
    def under_way(self) -> int:
        """How many starts were begun and have neither been reported nor come to nothing."""
        return len(self._under_way)

    def evictable(self) -> list[Worker]:
        """Workers that may end so that another one fits: those of declared models, past what is kept of each."""
        found = []
        for model, declared in self._models.items():
            workers = list(self._registry.serving(model))
            least = self._kept(model, declared).least
            for worker, replica in zip(workers, self._replicas(model, declared, time.monotonic()), strict=True):
                if replica.number is not None and replica.number > least:
                    found.append(worker)
        return found

    def sweep(self, now: float, waiting: Callable[[str], int]) -> None:
        """See what each model's workers need next; called once a second, ``now`` being monotonic seconds.

        ``waiting`` tells how many requests wait for a model.
        """
        for model, declared in self._models.items():
            life = self._lives.setdefault(model, Life())
            kept = self._kept(model, declared)
            limits, replicas = _limits(declared, kept.least), self._replicas(model, declared, now, kept.since)
            life.look(limits, replicas, now, waiting(model))
            if model in self._under_way or not self._may_start(model):
                continue
            move = life.step(limits, replicas, now)
            if move is not None:
                self._make(model, life, move, now)
        for model, limit_s in self._ended.items():
            self._end_idle(model, limit_s or IDLE_S, now)

    def _end_idle(self, model: str, limit_s: float, now: float) -> None:
        """End those workers of a model that is no longer declared that had no request for ``limit_s``.

        One that has stopped is forgotten as well, once: requests would have it started again for good.
        """
        for worker in self._registry.serving(model):
            ours = worker.report.managed and was_declared(model, worker.key.worker_id)
            idle = worker.state is WorkerState.IDLE and idle_s(worker, now) >= limit_s
            stopped = worker.state is WorkerState.STOPPED and worker.key not in self._let_go
            if ours and (idle or stopped) and not worker.hive.stale:
                self._let_go.add(worker.key)
                self._drains.begin(worker.key, Why.IDLE)

    def _make(self, model: str, life: Life, move: Move, now: float) -> None:
        match move:
            case Further():
                self._begin(model, move.number)
            case Drain():
                self._drains.begin(move.key, move.why)
            case Failed():
                self._failed(model, life, f"the changed declaration's worker did not become ready: {move.why}", now)

    def _failed(self, model: str, life: Life, why: str, now: float) -> None:
        """Remember why a start came to nothing; who is to know is told where the declaration's change stops by it."""
        if life.failed(now, why):
            self._metrics.replacements_failed.inc()
            log(LOGGER, ALERT, "a changed declaration is not in force: its workers are not replaced", model=model,
                why=why)  # fmt: skip

    def _replicas(
        self, model: str, declared: DeclaredModel, now: float, kept_since: float = -math.inf
    ) -> list[Replica]:
        workers = self._registry.serving(model)
        return replicas_of(model, declared, workers, now, self._drains.under_way, kept_since)

    def _begin(self, model: str, number: int) -> None:
        if model in self._under_way:
            return
        declared = self._models[model]
        worker_id = worker_id_of(model, declared, number)
        known = {one.key: one.report for one in self._registry.serving(model) if one.key.worker_id == worker_id}
        placing = self._under_way[model] = _Placing(worker_id, known)
        request = spawn_request(model, declared, number)
        if self._owner.start(self._run(model, declared, request, placing), f"place {model}") is None:
            del self._under_way[model]

    def _on_change(self, change: Change) -> None:
        key, report = change.worker.key, change.worker.report
        if change.removed:
            self._let_go.discard(key)
        placing = self._under_way.get(report.model or "")
        if placing is None or key.worker_id != placing.worker_id:
            return
        if tells_of_start(report, placing.before.get(key)):
            placing.reported.set()

    async def _run(self, model: str, declared: DeclaredModel, request: SpawnRequest, placing: _Placing) -> None:
        error: RbeeError | None = None
        try:
            need = _need(declared)
            log(LOGGER, logging.INFO, "placing a worker of a declared model", model=model, worker=request.worker_id)
            hive, _ = await self._placements.spawn(need, request)
            async with asyncio.timeout(REPORT_LIMIT_S):
                await placing.reported.wait()
        except RbeeError as refused:
            if not self._made_way(model, declared, refused):
                error = refused
                log(LOGGER, logging.ERROR, "a worker of a declared model was not started", model=model,
                    code=refused.code, why=refused.message)  # fmt: skip
        except TimeoutError:
            error = HiveUnreachable(
                f"hive {hive.hive_id} took the start of a worker and has not told of it since: see "
                f"'systemctl status rbee-hive' on {hive.hive_id}",
                details={"hive_id": hive.hive_id, "timeout_s": REPORT_LIMIT_S},
                retry_after_s=10,
            )
            log(LOGGER, logging.WARNING, "no report since the start was accepted", model=model, hive=hive.hive_id)
        finally:
            del self._under_way[model]
        self._came_of(model, error)
        self._settled(model, placing.ended, error)

    def _made_way(self, model: str, declared: DeclaredModel, refused: RbeeError) -> bool:
        """Begin to end the former worker whose replacement fits only in its memory; False where it is to go on."""
        life = self._lives.get(model)
        former = None if life is None or life.replacing is None else self._registry.worker(life.replacing.former)
        if life is None or former is None or declared != self._models.get(model) or not fits_without(former, refused):
            return False
        replicas = self._replicas(model, declared, time.monotonic())
        move = life.make_way(replicas, even_the_last=declared.replacement is Replacement.PROGRESS)
        if move is None:
            return False
        log(LOGGER, ALERT, "a worker ends before its replacement starts: both do not fit", model=model,
            worker=str(move.key), others_serve=any(one.state.ready for one in replicas if one.key != move.key),
        )  # fmt: skip
        self._drains.begin(move.key, move.why)
        return True

    def _came_of(self, model: str, error: RbeeError | None) -> None:
        if model in self._models:
            life = self._lives.setdefault(model, Life())
            if error is None:
                life.well()
            else:
                self._failed(model, life, f"no worker was started: {error.message}", time.monotonic())


def _need(declared: DeclaredModel) -> Need:
    return Need(
        declared.reference, declared.backend, declared.device, strategy=declared.placement,
        labels=frozenset(declared.labels), slots=declared.slots,
    )  # fmt: skip


def _limits(declared: DeclaredModel, least: int) -> Limits:
    idle_s = IDLE_S if declared.idle_limit_s is None else declared.idle_limit_s
    return Limits(least, declared.replicas.max, idle_s)
