"""A declared model's workers: what each is called, what a hive is asked for, and which of those there are it is."""

import hashlib
import re
import time
from collections.abc import Collection

import msgspec

from rbee.queen.placement.scaling import Replica
from rbee.queen.registry.rows import Worker
from rbee.queen.routing.decision import Key, startable
from rbee.wire.declarations import DeclaredModel, Replacement, Replicas
from rbee.wire.messages import SpawnRequest, WorkerState

DOUBTFUL_S = 600.0
"""A node that was silent within so many seconds may be so again."""
_SLUG = 40
_BY_PERSON = "requested"
"""A hive's reason of a worker that it was told to stop."""


def worker_id_of(model: str, declared: DeclaredModel, number: int = 1) -> str:
    """The id of one of the model's workers: what a person recognises, a digest of the declaration, and its number.

    A changed declaration is another worker, which no definition of the former one stands in the way of; how many
    there are to be, and how they are replaced, changes none of them.
    """
    declared = msgspec.structs.replace(declared, replicas=Replicas(), replacement=Replacement.AVAILABILITY)
    digest = hashlib.sha256(model.encode() + b"\0" + msgspec.json.encode(declared)).hexdigest()[:8]
    return f"{_slug(model)}-{digest}" if number == 1 else f"{_slug(model)}-{digest}-{number}"


def was_declared(model: str, worker_id: str) -> bool:
    """Whether an id is one that :func:`worker_id_of` gives the model by this or another declaration of it."""
    return re.fullmatch(rf"{re.escape(_slug(model))}-[0-9a-f]{{8}}(-[0-9]{{1,2}})?", worker_id) is not None


def _slug(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", model)[:_SLUG].strip("-")


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


def replicas_of(
    model: str, declared: DeclaredModel, workers: Collection[Worker], now: float, drains: Collection[Key] = ()
) -> list[Replica]:
    """The model's workers, in their order, as replicas of its declaration at ``now`` (monotonic seconds).

    Those in ``drains`` are told to stop already, whatever their hive says yet.
    """
    numbers = {worker_id_of(model, declared, number): number for number in range(1, declared.replicas.max + 1)}
    return [_replica(worker, model, numbers.get(worker.key.worker_id), now, worker.key in drains) for worker in workers]


def _replica(worker: Worker, model: str, number: int | None, now: float, drains: bool) -> Replica:
    state = WorkerState.DRAINING if drains and worker.state.ready else worker.state
    back = worker.hive.back_at
    return Replica(
        number,
        state,
        may_start=startable(worker),
        by_person=state is WorkerState.STOPPED and worker.report.reason == _BY_PERSON,
        former=number is None and worker.report.managed and was_declared(model, worker.key.worker_id),
        key=worker.key,
        in_flight=worker.in_flight,
        slots=worker.slots,
        idle_s=idle_s(worker, now),
        ready_unix=worker.report.ready_unix or 0.0,
        doubtful=back is not None and now - back < DOUBTFUL_S,
        reason=worker.report.reason,
    )


def idle_s(worker: Worker, now: float) -> float:
    """Seconds since the worker was last given a request, or became ready; ``now`` is monotonic."""
    if worker.used_at:
        return now - worker.used_at
    return max(0.0, time.time() - (worker.report.ready_unix or worker.report.since_unix))
