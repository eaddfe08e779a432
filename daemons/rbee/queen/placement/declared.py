"""Models that are declared: workers of one are placed and started when requests come, or are kept."""

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import msgspec

from rbee.queen.placement.decision import Need
from rbee.queen.placement.placements import REPORT_LIMIT_S, Placements
from rbee.queen.placement.scaling import CROWDED_SWEEPS, Replica, further
from rbee.queen.registry.registry import Registry
from rbee.queen.registry.rows import Change, Worker
from rbee.queen.routing.decision import Key, startable
from rbee.wire.declarations import DeclaredModel, Replicas
from rbee.wire.errors import HiveUnreachable, RbeeError
from rbee.wire.log import log
from rbee.wire.messages import SpawnRequest, WorkerState
from rbee.wire.tasks import TaskOwner

LOGGER = logging.getLogger(__name__)
_SLUG = 40
ENDED_AGAIN_S = 30.0
"""A replica that ended, or could not be started, is started again once in so long."""
CROWDED_AGAIN_S = 10.0
"""A further replica shows what it is worth for so long before the next one."""
_BY_PERSON = "requested"
"""A hive's reason of a worker that it was told to stop."""
Settled = Callable[[str, Collection[Key], RbeeError | None], None]


@dataclass(slots=True, eq=False)
class _Placing:
    """One start of a model's worker under way; ``reported`` once its hive has told of the worker.

    ``ended`` are workers of the model in place of which it starts: the memory they had may be another one's now.
    """

    worker_id: str
    ended: set[Key] = field(default_factory=set)
    reported: asyncio.Event = field(default_factory=asyncio.Event)


class DeclaredModels:
    """Places workers of declared models, at most one at a time for each, however many requests wait."""

    def __init__(self, placements: Placements, registry: Registry, owner: TaskOwner, settled: Settled) -> None:
        """``settled`` is called when a start is no longer under way, with the workers that it was to replace.

        Its last argument is the error where none was started.
        """
        self._models: Mapping[str, DeclaredModel] = {}
        self._placements = placements
        self._registry = registry
        self._owner = owner
        self._settled = settled
        self._under_way: dict[str, _Placing] = {}
        self._not_before: dict[str, float] = {}
        self._crowded: dict[str, int] = {}
        registry.listen(self._on_change)

    def configure(self, models: Mapping[str, DeclaredModel]) -> None:
        """Put other declarations in force; workers of those that are gone go on until they are idle."""
        self._models = models

    def __contains__(self, model: str) -> bool:
        return model in self._models

    def names(self) -> Collection[str]:
        """The names of all declared models."""
        return self._models.keys()

    def task(self, model: str) -> str:
        """What the model does, as far as its declaration says."""
        return self._models[model].task.value

    def begin(self, model: str) -> None:
        """Begin to place a worker of the model unless that is under way; returns at once."""
        if model in self._models:
            self._begin(model, 1)

    def restart(self, key: Key) -> bool:
        """Begin to place a worker that ended anew, where it is one of a declared model; whether it is."""
        worker = self._registry.worker(key)
        model = "" if worker is None else worker.report.model or ""
        declared = self._models.get(model)
        if worker is None or declared is None:
            return False
        (replica,) = _replicas(model, declared, [worker])
        if replica.number is None:
            return False
        self._begin(model, replica.number)
        if model in self._under_way:
            self._under_way[model].ended.add(key)
        return True

    @property
    def starting(self) -> frozenset[Key]:
        """Workers that ended and are placed anew now."""
        return frozenset(key for placing in self._under_way.values() for key in placing.ended)

    def evictable(self) -> list[Worker]:
        """Workers that may end so that another one fits: those of declared models, past what is kept of each."""
        found = []
        for model, declared in self._models.items():
            workers = list(self._registry.serving(model))
            for worker, replica in zip(workers, _replicas(model, declared, workers), strict=True):
                if replica.number is not None and replica.number > declared.replicas.min:
                    found.append(worker)
        return found

    def sweep(self, now: float, waiting: Callable[[str], int]) -> None:
        """Start what is missing of each model's replicas; called once a second, ``now`` being monotonic seconds.

        ``waiting`` tells how many requests wait for a model.
        """
        if not any(not hive.manual for hive in self._registry.hives()):
            return
        for model, declared in self._models.items():
            limits = declared.replicas
            self._crowded[model] = self._crowded.get(model, 0) + 1 if waiting(model) else 0
            if model in self._under_way or now < self._not_before.get(model, 0.0):
                continue
            crowded = self._crowded[model] >= CROWDED_SWEEPS
            replicas = _replicas(model, declared, self._registry.serving(model))
            wanted = further(limits.min, limits.max, replicas, crowded=crowded)
            if wanted is None:
                continue
            if wanted.ended:
                self._not_before[model] = now + ENDED_AGAIN_S
            elif crowded:
                self._not_before[model] = now + CROWDED_AGAIN_S
            self._begin(model, wanted.number)

    def _begin(self, model: str, number: int) -> None:
        if model in self._under_way:
            return
        declared = self._models[model]
        placing = self._under_way[model] = _Placing(worker_id_of(model, declared, number))
        request = spawn_request(model, declared, number)
        if self._owner.start(self._run(model, declared, request, placing), f"place {model}") is None:
            del self._under_way[model]

    def _on_change(self, change: Change) -> None:
        if self._under_way and change.worker.report.state is not WorkerState.STOPPED:
            placing = self._under_way.get(change.worker.report.model or "")
            if placing is not None and change.worker.key.worker_id == placing.worker_id:
                placing.reported.set()

    async def _run(self, model: str, declared: DeclaredModel, request: SpawnRequest, placing: _Placing) -> None:
        error: RbeeError | None = None
        try:
            need = Need(
                declared.reference, declared.backend, declared.device, strategy=declared.placement,
                labels=frozenset(declared.labels),
            )  # fmt: skip
            log(LOGGER, logging.INFO, "placing a worker of a declared model", model=model, worker=request.worker_id)
            hive, _ = await self._placements.spawn(need, request)
            async with asyncio.timeout(REPORT_LIMIT_S):
                await placing.reported.wait()
        except RbeeError as refused:
            error = refused
            log(LOGGER, logging.ERROR, "a worker of a declared model was not started", model=model, code=refused.code,
                why=refused.message)  # fmt: skip
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
        if error is not None:
            self._not_before[model] = time.monotonic() + ENDED_AGAIN_S
        self._settled(model, placing.ended, error)


def _replicas(model: str, declared: DeclaredModel, workers: Collection[Worker]) -> list[Replica]:
    """The model's workers as replicas of its declaration."""
    numbers = {worker_id_of(model, declared, number): number for number in range(1, declared.replicas.max + 1)}
    return [
        Replica(
            numbers.get(worker.key.worker_id),
            worker.state,
            may_start=startable(worker),
            by_person=worker.state is WorkerState.STOPPED and worker.report.reason == _BY_PERSON,
        )
        for worker in workers
    ]


def worker_id_of(model: str, declared: DeclaredModel, number: int = 1) -> str:
    """The id of one of the model's workers: what a person recognises, a digest of the declaration, and its number.

    A changed declaration is another worker, which no definition of the former one stands in the way of; how many
    there are to be changes none of them.
    """
    declared = msgspec.structs.replace(declared, replicas=Replicas())
    slug = re.sub(r"[^A-Za-z0-9]+", "-", model)[:_SLUG].strip("-")
    digest = hashlib.sha256(model.encode() + b"\0" + msgspec.json.encode(declared)).hexdigest()[:8]
    return f"{slug}-{digest}" if number == 1 else f"{slug}-{digest}-{number}"


def spawn_request(model: str, declared: DeclaredModel, number: int) -> SpawnRequest:
    """What a hive is asked for; ephemeral, because the declaration and not the node remembers it.

    One of those that are kept running has no limit of idleness, so that its hive does not stop what is started again.
    """
    kept = number <= declared.replicas.min
    return SpawnRequest(
        worker_id=worker_id_of(model, declared, number),
        model_ref=declared.reference,
        name=model,
        task=declared.task,
        backend=declared.backend.value,
        device=declared.device,
        slots=declared.slots,
        idle_limit_s=0.0 if kept else declared.idle_limit_s,
        ephemeral=True,
        hive_id=declared.node,
    )
