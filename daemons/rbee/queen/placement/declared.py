"""Models that the configuration declares: a worker of one is placed and started when the first request comes."""

import asyncio
import hashlib
import logging
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import msgspec

from rbee.queen.config import DeclaredModel
from rbee.queen.placement.decision import Need
from rbee.queen.placement.placements import REPORT_LIMIT_S, Placements
from rbee.queen.registry import Registry
from rbee.queen.rows import Change
from rbee.wire.errors import HiveUnreachable, RbeeError
from rbee.wire.log import log
from rbee.wire.messages import SpawnRequest
from rbee.wire.tasks import TaskOwner

LOGGER = logging.getLogger(__name__)
_SLUG = 40
Settled = Callable[[str, RbeeError | None], None]


@dataclass(slots=True, eq=False)
class _Placing:
    """One start of a model's worker under way; ``reported`` once its hive has told of the worker."""

    worker_id: str
    reported: asyncio.Event = field(default_factory=asyncio.Event)


class DeclaredModels:
    """Places workers of declared models, at most one at a time for each, however many requests wait."""

    def __init__(self, placements: Placements, registry: Registry, owner: TaskOwner, settled: Settled) -> None:
        """``settled`` is called when a start is no longer under way, with the error where there is no worker."""
        self._models: Mapping[str, DeclaredModel] = {}
        self._placements = placements
        self._registry = registry
        self._owner = owner
        self._settled = settled
        self._under_way: dict[str, _Placing] = {}
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
        declared = self._models.get(model)
        if declared is None or model in self._under_way:
            return
        placing = self._under_way[model] = _Placing(worker_id_of(model, declared))
        if self._owner.start(self._run(model, declared, placing), f"place {model}") is None:
            del self._under_way[model]

    def _on_change(self, change: Change) -> None:
        if self._under_way and not change.load_only:
            placing = self._under_way.get(change.worker.report.model or "")
            if placing is not None and change.worker.key.worker_id == placing.worker_id:
                placing.reported.set()

    async def _run(self, model: str, declared: DeclaredModel, placing: _Placing) -> None:
        error: RbeeError | None = None
        try:
            need = Need(declared.reference, declared.backend, declared.device, strategy=declared.placement)
            request = spawn_request(model, declared, placing.worker_id)
            log(LOGGER, logging.INFO, "placing a worker: its declared model is asked for and has none", model=model)
            hive, _ = await self._placements.spawn(need, request)
            async with asyncio.timeout(REPORT_LIMIT_S):
                await placing.reported.wait()
        except RbeeError as refused:
            error = refused
            log(LOGGER, logging.ERROR, "a declared model has no worker", model=model, code=refused.code,
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
        self._settled(model, error)


def worker_id_of(model: str, declared: DeclaredModel) -> str:
    """The id of the model's worker: what a person recognises, and a digest of the declaration.

    A changed declaration is another worker, which no definition of the former one stands in the way of.
    """
    slug = re.sub(r"[^A-Za-z0-9]+", "-", model)[:_SLUG].strip("-")
    digest = hashlib.sha256(model.encode() + b"\0" + msgspec.json.encode(declared)).hexdigest()[:8]
    return f"{slug}-{digest}"


def spawn_request(model: str, declared: DeclaredModel, worker_id: str) -> SpawnRequest:
    """What a hive is asked for; ephemeral, because the declaration and not the node remembers it."""
    return SpawnRequest(
        worker_id=worker_id,
        model_ref=declared.reference,
        name=model,
        task=declared.task,
        backend=declared.backend.value,
        device=declared.device,
        slots=declared.slots,
        idle_limit_s=declared.idle_limit_s,
        ephemeral=True,
        hive_id=declared.node,
    )
