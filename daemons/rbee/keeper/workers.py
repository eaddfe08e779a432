"""Workers as the command sees them: the queen's or the hive's list, and how one is shown."""

import msgspec

from rbee.keeper.client import Daemon
from rbee.keeper.failure import CommandFailed
from rbee.keeper.text import duration
from rbee.wire.errors import BackendUnavailable, WorkerNotFound
from rbee.wire.messages import WorkerHealth, WorkerList, WorkerReport, WorkerState
from rbee.wire.worker_spec import Backend

HEALTH_HEADS = ("WORKER", "HIVE", "STATE", "ANSWERS", "SLOTS BUSY", "IDLE FOR", "REQUESTS")
UNHEALTHY = frozenset({WorkerState.FAILED, WorkerState.UNHEALTHY, WorkerState.STALE})
HEADS = ("WORKER", "HIVE", "STATE", "MODEL", "BACKEND", "SLOTS", "PID", "URL", "NOTE")


class Health(msgspec.Struct, frozen=True):
    """One worker's health: what it answered to the queen, None where it did not or has no address."""

    hive_id: str
    worker_id: str
    state: WorkerState
    reachable: bool
    health: WorkerHealth | None = None

    @property
    def bad(self) -> bool:
        """Whether something should be done: the worker should answer and does not, or has failed."""
        return self.state in UNHEALTHY or (self.state.ready and not self.reachable)


class HealthList(msgspec.Struct, frozen=True):
    """GET /v2/workers/health."""

    workers: list[Health]


def health_row(worker: Health) -> tuple[str, ...]:
    """One line of the table of health."""
    answers = "yes" if worker.reachable else "no"
    if worker.health is None:
        return (worker.worker_id, worker.hive_id, worker.state.value, answers, "-", "-", "-")
    slots = f"{worker.health.slots_busy}/{worker.health.slots_total}"
    idle, requests = duration(worker.health.idle_s), str(worker.health.requests_total)
    return (worker.worker_id, worker.hive_id, worker.state.value, answers, slots, idle, requests)


async def all_workers(daemon: Daemon, hive_id: str | None = None) -> list[WorkerReport]:
    """Every worker that ``daemon`` (a queen or a hive) knows, of ``hive_id`` only where one is named."""
    path = "/v2/workers/list" if daemon.place.name == "queen" else "/v1/workers/list"
    found = (await daemon.call("GET", path, WorkerList)).workers
    return sorted(
        (worker for worker in found if hive_id in (None, worker.hive_id)),
        key=lambda worker: (worker.hive_id, worker.worker_id),
    )


async def one_worker(daemon: Daemon, worker_id: str, hive_id: str | None = None) -> WorkerReport:
    """The worker of that id; raises WorkerNotFound, and CommandFailed when several hives have one of that name."""
    found = [worker for worker in await all_workers(daemon, hive_id) if worker.worker_id == worker_id]
    if not found:
        raise WorkerNotFound(f"there is no worker {worker_id}", details={"worker_id": worker_id})
    if len(found) > 1:
        hives = ", ".join(worker.hive_id for worker in found)
        raise CommandFailed(f"several hives have a worker {worker_id} ({hives}): say which with --node")
    return found[0]


def row(worker: WorkerReport) -> tuple[str, ...]:
    """One line of the table."""
    backend = f"{worker.backend.value}:{worker.device}" if worker.backend else "-"
    slots = f"{worker.slots_available}/{worker.slots_total}" if worker.slots_total else "-"
    return (
        worker.worker_id,
        worker.hive_id,
        worker.state.value,
        worker.model or "-",
        backend,
        slots,
        str(worker.pid or "-"),
        worker.url or "-",
        note_of(worker),
    )


def note_of(worker: WorkerReport) -> str:
    """What else is to be said of a worker: how far it loads, or why it is as it is."""
    if worker.state is WorkerState.LOADING and worker.progress is not None and worker.progress.total:
        share = 100 * worker.progress.done // worker.progress.total
        return f"{worker.progress.stage} {share} %"
    if worker.state is WorkerState.FAILED:
        # the worker's own last words name the file, the line and what to do
        why, said = worker.reason or worker.result, worker.status_text
        return said if why and said.startswith(f"{why}:") else ": ".join(filter(None, [why, said]))
    return worker.reason


def checked_backend(value: str | None) -> str | None:
    """Return ``value`` if this build knows the backend; raises BackendUnavailable listing those it knows."""
    if value is not None and value not in {backend.value for backend in Backend}:
        accepted = [backend.value for backend in Backend]
        raise BackendUnavailable(
            f"that backend is none of those this build has: {', '.join(accepted)}", details={"accepted": accepted}
        )
    return value
