"""What a request is told that gets no worker: too many wait, all are busy, out of reach, still loading, or unknown."""

from collections.abc import Collection

from rbee.queen.admission.loads import LoadTimes, progress_share
from rbee.queen.admission.rates import retry_after_s
from rbee.queen.registry.rows import Worker
from rbee.queen.routing.decision import Start, Wait, Waiting, routable
from rbee.wire.errors import (
    AllSlotsBusy,
    HiveUnreachable,
    ModelLoading,
    ModelNotFound,
    RbeeError,
    TooManyRequests,
    WorkerUnreachable,
)
from rbee.wire.messages import WorkerState


def unknown(model: str) -> ModelNotFound:
    """No worker serves or could serve the model."""
    return ModelNotFound(
        "no worker serves that model: GET /v1/models lists those that can be asked for",
        details={"model": model[:128]},
        param="model",
    )


def too_many(model: str, waiting: int, wait_s: float | None) -> TooManyRequests:
    """The queue is full, or longer than a request may wait; ``wait_s`` is the expected wait, None where unknown."""
    details: dict[str, object] = {"model": model, "waiting": waiting}
    if wait_s is not None:
        details["expected_wait_s"] = round(wait_s, 3)
    return TooManyRequests(
        "too many requests wait for this model: come back after the time that Retry-After says, or add a worker",
        details=details,
        retry_after_s=retry_after_s(wait_s),
    )


def busy(model: str, workers: Collection[Worker], wait_s: float | None) -> AllSlotsBusy:
    """Every slot stayed busy for as long as a request waits; ``wait_s`` is the expected wait of another one."""
    ready = [worker for worker in workers if routable(worker)]
    return AllSlotsBusy(
        "every slot of the model's workers stayed busy: ask again later, or add a worker",
        details={
            "model": model,
            "slots_total": sum(worker.slots for worker in ready),
            "slots_busy": sum(min(worker.slots, worker.in_flight) for worker in ready),
        },
        retry_after_s=1 if wait_s is None else retry_after_s(wait_s),
    )


def out_of_reach(worker: Worker, now: float) -> RbeeError:
    """The model's workers may run and cannot be reached; ``worker`` is one of them, ``now`` monotonic seconds."""
    hive = worker.hive
    if worker.state is WorkerState.STALE:
        silent_s = round(now - hive.heard, 1)
        return HiveUnreachable(
            f"node {hive.hive_id} has been silent for {silent_s:g} s and the model's worker is there: see "
            f"'systemctl status rbee-hive' on {hive.hive_id}, or ask again with a deadline to wait for it",
            details={"node": hive.hive_id, "worker": str(worker.key), "silent_s": silent_s},
            retry_after_s=hive.interval_s,
        )
    why = worker.suspect or worker.report.reason or "its HTTP does not answer"
    return WorkerUnreachable(
        f"worker {worker.key} runs and cannot be reached: {why}; see 'journalctl -u rbee-worker@"
        f"{worker.key.worker_id}' on {hive.hive_id}",
        details={"worker": str(worker.key), "reason": why},
        retry_after_s=max(1.0, worker.breaker.until - now) if worker.suspect else hive.interval_s,
    )


def loading(model: str, step: object, worker: Worker | None, loads: LoadTimes, now: float) -> ModelLoading:
    """The honest answer to one who does not wait for a cold model: its state, node, progress, and when it is ready.

    ``step`` is what the model's requests wait for, ``worker`` the one that it names, ``now`` monotonic seconds.
    """
    details: dict[str, object] = {"model": model}
    eta_s: float | None = None
    if worker is not None and isinstance(step, Wait | Start):
        report = worker.report
        elapsed_s = 0.0 if worker.loading_since is None else now - worker.loading_since
        eta_s = loads.eta_s(report, elapsed_s)
        details["loading"] = {
            "state": worker.state.value,
            "node": worker.key.hive_id,
            "progress": progress_share(report),
            "stage": report.progress.stage if report.progress is not None else report.status_text,
            "eta_seconds": None if eta_s is None else round(eta_s, 1),
        }
    elif isinstance(step, Wait) and step.why is Waiting.PLACING:
        details["loading"] = {
            "state": WorkerState.LOADING.value, "node": None, "progress": None, "stage": "placing", "eta_seconds": None,
        }  # fmt: skip
    return ModelLoading(
        "the model is not ready yet: ask again after the time that Retry-After says, or wait for it",
        details=details,
        retry_after_s=10 if eta_s is None else eta_s,
    )
