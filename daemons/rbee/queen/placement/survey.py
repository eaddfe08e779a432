"""The facts that placement rests on: hives are asked for memory, GPUs, models and backends of this moment.

Hives are asked only when something is to be placed: a heartbeat every few seconds stays small for it.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from rbee.queen.hives.client import HiveClient
from rbee.queen.placement.decision import Device, Need, Node, Option
from rbee.queen.registry.rows import Hive
from rbee.wire.errors import RbeeError
from rbee.wire.messages import GpuFacts, MachineFacts
from rbee.wire.model_messages import ModelRow, ModelRows
from rbee.wire.worker_spec import Backend

ASKED_AT_ONCE = 32
ASK_LIMIT_S = 3.0
PROBE_LIMIT_S = 20.0
"""A hive tries its providers in a process of its own at the first question, and keeps the answer."""
_NO_MACHINE = MachineFacts("", 1, 0, 0, 0, 0)


class _Capabilities(msgspec.Struct, frozen=True):
    """What placement needs of a hive's GET /v1/capabilities."""

    backends: list[str]


@dataclass(frozen=True, slots=True)
class Survey:
    """What was found: the need with the size of the model where a hive knows it, the nodes, bytes by reference."""

    need: Need
    nodes: list[Node]
    sizes: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Answers:
    models: list[ModelRow] | None
    machine: MachineFacts
    backends: frozenset[Backend]


Promised = Mapping[str, list[Option]]
"""Places that workers on their way will take memory of, by node."""


async def survey(
    client: HiveClient, hives: Sequence[Hive], need: Need, promised: Callable[[], Promised], *, proven: bool = False
) -> Survey:
    """Ask ``hives`` what they have; ``promised`` is read when all have answered, for others are placed meanwhile.

    ``proven``: the need's backend started on them before, and they are not asked for those that do.
    """
    gate = asyncio.Semaphore(ASKED_AT_ONCE)

    async def ask(hive: Hive) -> _Answers:
        async with gate:
            models, machine = await asyncio.gather(_models(client, hive), _machine(client, hive))
            backends = frozenset(Backend) if proven else await _backends(client, hive, machine, need)
            return _Answers(models, machine, backends)

    answers = await asyncio.gather(*(ask(hive) for hive in hives))
    sizes = {row.reference: row.size_bytes for answer in answers for row in answer.models or () if row.size_bytes}
    owed = promised()
    known = dataclasses.replace(need, size_bytes=sizes.get(need.model_ref, need.size_bytes))
    nodes = [_node(hive, need, answer, owed.get(hive.hive_id, [])) for hive, answer in zip(hives, answers, strict=True)]
    return Survey(known, nodes, sizes)


async def _models(client: HiveClient, hive: Hive) -> list[ModelRow] | None:
    """The hive's catalogue, None where it does not say."""
    try:
        answer = await client.call(hive, "GET", "/v1/models", waits=(0.0,), limit_s=ASK_LIMIT_S)
        return msgspec.convert(answer, ModelRows).models
    except (RbeeError, msgspec.ValidationError):
        return None


async def _machine(client: HiveClient, hive: Hive) -> MachineFacts:
    """The machine now, or as its last heartbeat told it where it does not say."""
    try:
        answer = await client.call(hive, "GET", "/v1/resources", waits=(0.0,), limit_s=ASK_LIMIT_S)
        return msgspec.convert(answer, MachineFacts)
    except (RbeeError, msgspec.ValidationError):
        return hive.machine or _NO_MACHINE


async def _backends(client: HiveClient, hive: Hive, machine: MachineFacts, need: Need) -> frozenset[Backend]:
    """Backends that start on a hive's machine; the CPU's does wherever a worker is installed.

    One that shows GPUs and does not say in time which backends start is believed to have CUDA: its worker refuses to
    start otherwise, and says why.
    """
    if need.backend is Backend.CPU or not machine.gpus:
        return frozenset({Backend.CPU})
    try:
        answer = await client.call(hive, "GET", "/v1/capabilities", waits=(0.0,), limit_s=PROBE_LIMIT_S)
        named = msgspec.convert(answer, _Capabilities).backends
    except (RbeeError, msgspec.ValidationError):
        return frozenset(Backend)
    return frozenset(backend for backend in Backend if backend.value in named)


def _node(hive: Hive, need: Need, answers: _Answers, promised: list[Option]) -> Node:
    machine = answers.machine
    up = [worker.report for worker in hive.workers.values() if not worker.state.ended]
    return Node(
        name=hive.hive_id,
        ram_free_bytes=machine.ram_available_bytes - _owed(promised, None),
        disk_free_bytes=machine.disk_available_bytes,
        devices=tuple(_device(gpu, promised) for gpu in machine.gpus),
        backends=answers.backends,
        has_model=any(row.reference == need.model_ref for row in answers.models or ()),
        workers=len(up),
        replicas=sum(report.model_ref == need.model_ref for report in up),
        answers=answers.models is not None,
    )


def _device(gpu: GpuFacts, promised: list[Option]) -> Device:
    free = gpu.memory_total_bytes - gpu.memory_used_bytes - _owed(promised, gpu.index)
    return Device(gpu.index, free, gpu.temperature_c)


def _owed(promised: list[Option], device: int | None) -> int:
    return sum(option.required_bytes or 0 for option in promised if option.device == device)
