"""Places workers: facts are gathered, decided upon, and what was promised is remembered until its worker has it."""

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import msgspec

from rbee.queen.hives.client import HiveClient, JsonObject
from rbee.queen.placement.decision import Decision, Need, Option, decide
from rbee.queen.placement.eviction import wants_memory
from rbee.queen.placement.measured import Measured
from rbee.queen.placement.refusals import NoPlace, refusal
from rbee.queen.placement.room import Room
from rbee.queen.placement.survey import survey
from rbee.queen.registry.registry import Registry
from rbee.queen.registry.rows import Change, Hive, Worker
from rbee.queen.routing.decision import Key
from rbee.queen.routing.metrics import PlacingMetrics
from rbee.wire.errors import Conflict, HiveUnreachable, InsufficientResources, RbeeError
from rbee.wire.log import log
from rbee.wire.messages import SpawnRequest, WorkerState
from rbee.wire.model_reference import Provider, parse
from rbee.wire.worker_spec import Backend

LOGGER = logging.getLogger(__name__)
REPORT_LIMIT_S = 15.0
"""How long a promise waits for the first word of its worker."""
REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class _Promise:
    option: Option
    made: float


class Placements:
    """Decides where workers start, one decision after the other's promise; ``told`` keeps the latest for who asks."""

    def __init__(self, registry: Registry, hives: HiveClient, metrics: PlacingMetrics, measured: Measured) -> None:
        self._registry = registry
        self._hives = hives
        self._metrics = metrics
        self._measured = measured
        self._room: Room | None = None
        self._making_room = asyncio.Lock()
        self._makers = 0
        self._promises: dict[Key, _Promise] = {}
        self._told: OrderedDict[Key, Decision] = OrderedDict()
        registry.listen(self._on_change)

    def use_room(self, room: Room) -> None:
        """What ends idle workers where nothing else helps."""
        self._room = room

    async def spawn(self, need: Need, request: SpawnRequest) -> tuple[Hive, JsonObject]:
        """Place the worker of a request and ask that hive to start it; returns the hive and its answer.

        Raises what :meth:`place` and HiveClient.call raise.
        """
        hive, chosen = await self.place(need, request.worker_id, request.hive_id)
        device = chosen.device if need.device is None else need.device
        return hive, await self._order(hive, msgspec.structs.replace(request, device=device))

    async def start(self, worker: Worker) -> JsonObject:
        """Ask the hive of a worker that ended to start it, where its memory is not known to be too little there.

        Nothing else is held against a place where it ran before: its hive says what it lacks. Returns the hive's
        answer; raises InsufficientRam, VramExhausted, and what HiveClient.call raises.
        """
        need = _need_of(worker)
        if need is not None:
            decision, sizes = await self._settle(need, [worker.hive], worker.key.worker_id, proven=True)
            if wants_memory(decision) and worker.report.state.ended:  # none has started it meanwhile
                error = refusal(decision)
                self._tell_refusal(error, worker.key.worker_id)
                raise error from NoPlace(decision, sizes)
        return await self._order(worker.hive, SpawnRequest(worker_id=worker.key.worker_id))

    async def _order(self, hive: Hive, request: SpawnRequest) -> JsonObject:
        try:
            return await self._hives.spawn(hive, request)
        except RbeeError:
            self._promises.pop(Key(hive.hive_id, request.worker_id), None)  # its memory is free again
            raise

    async def place(self, need: Need, worker_id: str, node: str | None = None) -> tuple[Hive, Option]:
        """The hive that is to start the worker, and the place there; its memory counts as taken from here on.

        ``node`` pins it. Raises HiveUnreachable (no such hive), Conflict (a folder that several machines may have),
        BackendUnavailable, InvalidDevice, GpuTooHot, InsufficientRam, VramExhausted, InsufficientResources; the cause
        of one that rests on what nodes have is a :class:`NoPlace`.
        """
        try:
            hives = self._candidates(node, need.labels)
            decision, sizes = await self._settle(need, hives, worker_id)
            if decision.chosen is None:
                raise refusal(decision) from NoPlace(decision, sizes)
        except RbeeError as error:
            self._tell_refusal(error, worker_id)
            raise
        return next(hive for hive in hives if hive.hive_id == decision.chosen.node), decision.chosen

    async def _settle(
        self, need: Need, hives: Sequence[Hive], worker_id: str, *, proven: bool = False
    ) -> tuple[Decision, dict[str, int]]:
        """The decision, its promise made, and sizes; idle workers end for it where there is no place otherwise."""
        decision, sizes = await self._decide(need, hives, proven=proven)
        if wants_memory(decision) and self._room is not None:
            async with self._turn_to_make_room() as waited:
                if waited:  # another one may have made room meanwhile, or taken it
                    decision, sizes = await self._decide(need, hives, proven=proven)
                if decision.chosen is None and await self._room.make(decision, sizes):
                    decision, sizes = await self._decide(need, hives, proven=proven)
        self._metrics.estimates.labels(decision.basis.value).inc()
        self._promise(decision, worker_id, len(hives))  # nothing was awaited since its facts came
        return decision, sizes

    @contextlib.asynccontextmanager
    async def _turn_to_make_room(self) -> AsyncIterator[bool]:
        """Make room within the block, nobody else doing so; yields whether it had to be waited for."""
        waits = self._makers > 0
        self._makers += 1
        try:
            async with self._making_room:
                yield waits
        finally:
            self._makers -= 1

    def _tell_refusal(self, error: RbeeError, worker_id: str) -> None:
        self._metrics.worker_placements.labels(error.code).inc()
        log(LOGGER, logging.WARNING, "a worker fits nowhere", worker=worker_id, code=error.code, why=error.message)

    async def _decide(
        self, need: Need, hives: Sequence[Hive], *, proven: bool = False
    ) -> tuple[Decision, dict[str, int]]:
        """The decision of this moment, and bytes of models by their reference; a promise of it is made at once."""
        found = await survey(self._hives, hives, need, self._promised, proven=proven)
        nodes = found.nodes
        if len(nodes) > 1 and parse(need.model_ref).provider is Provider.LOCAL:
            nodes = [one for one in nodes if one.has_model]
            if not nodes:
                raise _whose_folder(hives)
        peak = self._measured.peak_of(found.need, [one.name for one in nodes])
        return decide(dataclasses.replace(found.need, measured_bytes=peak), nodes), found.sizes

    def _promise(self, decision: Decision, worker_id: str, nodes: int) -> None:
        """Count the memory of the place that was chosen, if one was, of so many nodes, as taken."""
        chosen = decision.chosen
        if chosen is None:
            return
        key = Key(chosen.node, worker_id)
        self._promises[key] = _Promise(chosen, time.monotonic())
        self._told[key] = decision
        self._told.move_to_end(key)
        if len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        self._metrics.worker_placements.labels("placed").inc()
        log(
            LOGGER, logging.INFO, "a worker is placed", worker=str(key), backend=decision.backend.value,
            device=chosen.device, required_bytes=chosen.required_bytes, available_bytes=chosen.available_bytes,
            basis=decision.basis.value, model_there=chosen.has_model, nodes=nodes,
        )  # fmt: skip

    def _on_change(self, change: Change) -> None:
        worker = change.worker
        if change.removed:
            self._measured.forget(worker.key)
        elif worker.report.memory_peak_bytes and worker.report.state.ready:
            told = self._told.get(worker.key)
            self._measured.note(worker.report, None if told is None else told.size_bytes, time.time())

    def told(self, key: Key) -> Decision | None:
        """Why a worker is where it is, where that was decided here lately."""
        return self._told.get(key)

    def _candidates(self, node: str | None, labels: frozenset[str]) -> list[Hive]:
        hives = [hive for hive in self._registry.hives() if not hive.manual and node in (None, hive.hive_id)]
        heard = [hive for hive in hives if not hive.stale and hive.machine is not None]
        if not (heard or hives):
            raise no_hive(node)
        fit = [hive for hive in heard or hives if labels <= _labels(hive)]
        if not fit:
            raise InsufficientResources(
                f"no node that may be chosen has the labels {', '.join(sorted(labels))}: give one of them these labels "
                "in its hive.yaml, or declare the model without",
                details={"labels": sorted(labels), "nodes": {hive.hive_id: sorted(_labels(hive)) for hive in hives}},
            )
        return sorted(fit, key=lambda hive: hive.hive_id)

    def _promised(self) -> dict[str, list[Option]]:
        """Memory that workers on their way will take, by node: one that is ready, or ended, shows in the facts."""
        now = time.monotonic()
        owed: dict[str, list[Option]] = {}
        for key, promise in list(self._promises.items()):
            worker = self._registry.worker(key)
            loads = worker is not None and worker.state is WorkerState.LOADING
            silent = worker is None or worker.state.ended
            if loads or (silent and now - promise.made < REPORT_LIMIT_S):
                owed.setdefault(key.hive_id, []).append(promise.option)
            else:
                del self._promises[key]
        return owed


def _need_of(worker: Worker) -> Need | None:
    """What a worker that ended needs where it is; None where its hive does not say what it runs."""
    report = worker.report
    if report.model_ref is None or report.backend is None:
        return None
    device = report.device if report.backend is Backend.CUDA else None
    return Need(
        report.model_ref, report.backend, device, slots=report.slots_total, settings=report.memory_settings
    )  # fmt: skip


def _labels(hive: Hive) -> frozenset[str]:
    return frozenset() if hive.machine is None else frozenset(hive.machine.labels)


def no_hive(hive_id: str | None) -> HiveUnreachable:
    """No hive, or none of that id, reports here."""
    return HiveUnreachable(
        "no such hive reports here: start one with 'systemctl start rbee-hive' and give it queen.callback_url",
        details={"hive_id": hive_id},
    )


def _whose_folder(hives: Sequence[Hive]) -> Conflict:
    return Conflict(
        "several hives report here and none has catalogued that folder: name the one whose folder it is",
        details={"hives": [hive.hive_id for hive in hives]},
    )
