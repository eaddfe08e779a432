"""A declared model's workers: what each is called, what a hive is asked for, and which of those there are it is."""

import hashlib
import math
import re
import time
from collections.abc import Collection

import msgspec

from rbee.queen.placement.scaling import Replica
from rbee.queen.placement.warm import most_kept
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
    there are to be, and when, and how they are replaced, changes none of them.
    """
    declared = msgspec.structs.replace(declared, replicas=Replicas(), replacement=Replacement.AVAILABILITY, warm=[])
    digest = hashlib.sha256(model.encode() + b"\0" + msgspec.json.encode(declared)).hexdigest()[:8]
    return f"{_slug(model)}-{digest}" if number == 1 else f"{_slug(model)}-{digest}-{number}"


def was_declared(model: str, worker_id: str) -> bool:
    """Whether an id is one that :func:`worker_id_of` gives the model by this or another declaration of it."""
    return re.fullmatch(rf"{re.escape(_slug(model))}-[0-9a-f]{{8}}(-[0-9]{{1,2}})?", worker_id) is not None


def _slug(model: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", model)[:_SLUG].strip("-")


def spawn_request(model: str, declared: DeclaredModel, number: int) -> SpawnRequest:
    """What a hive is asked for; ephemeral, because the declaration and not the node remembers it.

    One of those that are kept, if only at times, has no limit of idleness, so that its hive does not stop what is
    started again: the queen ends it.
    """
    kept = number <= most_kept(declared)
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
    model: str,
    declared: DeclaredModel,
    workers: Collection[Worker],
    now: float,
    drains: Collection[Key] = (),
    kept_since: float = -math.inf,
) -> list[Replica]:
    """The model's workers, in their order, as replicas of its declaration at ``now`` (monotonic seconds).

    Those in ``drains`` are told to stop already, whatever their hive says yet. What a person stopped before
    ``kept_since`` (Unix seconds) was another time's.
    """
    numbers = {worker_id_of(model, declared, number): number for number in range(1, declared.replicas.max + 1)}
    return [
        _replica(worker, model, numbers.get(worker.key.worker_id), now, worker.key in drains, kept_since)
        for worker in workers
    ]


def _replica(worker: Worker, model: str, number: int | None, now: float, drains: bool, kept_since: float) -> Replica:
    state = WorkerState.DRAINING if drains and worker.state.ready else worker.state
    report, back = worker.report, worker.hive.back_at
    by_person = state is WorkerState.STOPPED and report.reason == _BY_PERSON and report.since_unix >= kept_since
    return Replica(
        number,
        state,
        may_start=startable(worker),
        by_person=by_person,
        former=number is None and report.managed and was_declared(model, worker.key.worker_id),
        key=worker.key,
        in_flight=worker.in_flight,
        slots=worker.slots,
        idle_s=idle_s(worker, now),
        ready_unix=report.ready_unix or 0.0,
        load_s=report.load_s if report.state.ready else None,
        doubtful=back is not None and now - back < DOUBTFUL_S,
        reason=report.reason,
    )


def idle_s(worker: Worker, now: float) -> float:
    """Seconds since the worker was last given a request, or became ready; ``now`` is monotonic."""
    if worker.used_at:
        return now - worker.used_at
    return max(0.0, time.time() - (worker.report.ready_unix or worker.report.since_unix))
