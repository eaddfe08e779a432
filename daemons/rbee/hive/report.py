"""Makes a worker's report out of what is known of it; pure."""

import hashlib
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import msgspec

from rbee.hive.definitions import Definition
from rbee.hive.state import progress_of, state_of
from rbee.host.units.facts import CLD_DUMPED, CLD_EXITED, CLD_KILLED, UnitFacts
from rbee.wire.messages import ExternalReady, Progress, WorkerFacts, WorkerHealth, WorkerReport, WorkerState
from rbee.wire.model_reference import model_name_of
from rbee.wire.worker_spec import Backend, WorkerSpec

_OF_MEMORY = (
    "threads", "max_context", "gpu_mem_limit_mb", "kv_cache_mb", "prefix_cache_mb", "max_batch_tokens", "max_batch",
)  # fmt: skip
"""The settings of a definition that the memory of its worker depends on, besides model, backend and slots."""


@dataclass(slots=True)
class Worker:
    """Everything that the hive knows of one worker; only the table changes it.

    ``last_pid`` is the process of the last life, for records of its end, never for a signal. ``ready_life`` and
    ``crashed_life`` are the invocations whose READY and whose crash were counted; ``last_log`` is the last line of the
    crashed one. ``last_progress`` is how far the
    loading of this life got, ``left_url`` the address that a life which ended has left. ``fetching`` is how far the
    download of its model is, before its unit starts; ``fetch_failure`` why it did not come. ``gpu_bytes`` is the memory
    of its GPU that the driver counted for it when it was ready, 0 where that is not known.
    """

    worker_id: str
    unit: UnitFacts
    definition: Definition | None = None
    facts: WorkerFacts | None = None
    facts_problem: str = ""
    external: ExternalReady | None = None
    health: WorkerHealth | None = None
    failures: int = 0
    unhealthy: bool = False
    stop_reason: str = ""
    last_pid: int = 0
    loading_url: str | None = None
    ready_life: str = ""
    crashed_life: str = ""
    last_log: str = ""
    since_unix: float = 0.0
    spawned_us: int = 0
    spawned_unix: float | None = None
    ready_unix: float | None = None
    last_progress: Progress | None = None
    left_url: str = ""
    fetching: Progress | None = None
    fetch_failure: str = ""
    gpu_bytes: int = 0
    report: WorkerReport | None = field(default=None)

    @property
    def busy_slots(self) -> int:
        """Slots in use at the last health check."""
        return 0 if self.health is None else self.health.slots_busy

    @property
    def serving(self) -> bool:
        """Whether its unit runs (or it lives outside systemd) and can be asked for its health."""
        return self.external is not None or self.unit.running

    @property
    def model(self) -> str:
        """The name of its model, or ``unknown``."""
        if self.facts is not None:
            return self.facts.model
        if self.external is not None:
            return self.external.model or PurePosixPath(self.external.model_ref).name
        spec = None if self.definition is None else self.definition.spec
        return "unknown" if spec is None else spec.name or model_name_of(spec.model)


def state_and_reason(worker: Worker) -> tuple[WorkerState, str]:
    """The worker's state with everything taken into account."""
    if worker.external is not None:
        if worker.unhealthy:
            return WorkerState.UNHEALTHY, "its HTTP does not answer"
        return (WorkerState.BUSY if worker.busy_slots else WorkerState.IDLE), ""
    state, reason = state_of(
        worker.unit,
        healthy=not worker.unhealthy,
        busy=worker.busy_slots > 0,
        stop_reason=worker.stop_reason,
    )
    if state.ended and worker.fetching is not None:
        return WorkerState.LOADING, ""
    if state is WorkerState.STOPPED and worker.fetch_failure:
        return WorkerState.FAILED, worker.fetch_failure
    if state.ready and worker.facts is None:
        return WorkerState.UNHEALTHY, worker.facts_problem or "worker.json is missing"
    return state, reason


def make_report(worker: Worker, hive_id: str, boot_id: str, revision: int) -> WorkerReport:
    """The report of this moment; ``sent_unix`` is left for the sender."""
    state, reason = state_and_reason(worker)
    if worker.external is not None:
        return _external_report(worker, worker.external, state, reason, hive_id, boot_id, revision)
    unit, facts = worker.unit, worker.facts
    spec = None if worker.definition is None else worker.definition.spec
    told = worker.definition.problem if worker.definition is not None and state.ended else ""
    resident, peak = _memory(worker, state)
    runs = facts if spec is None or not state.ended else None  # one that ended is what its next start would be
    return WorkerReport(
        worker_id=worker.worker_id,
        hive_id=hive_id,
        boot_id=boot_id,
        revision=revision,
        state=state,
        url=_address(worker, state),
        model=worker.model if facts is not None or spec is not None else None,
        model_ref=runs.model_ref if runs is not None else _reference(spec.model) if spec is not None else None,
        task=facts.task if facts is not None else None if spec is None else spec.task,
        backend=runs.backend if runs is not None else None if spec is None else spec.backend,
        device=runs.device if runs is not None else 0 if spec is None else spec.device,
        slots_total=runs.slots_total if runs is not None else 0 if spec is None else spec.slots,
        slots_available=_slots_available(worker, state),
        invocation_id=unit.invocation_id,
        pid=worker.last_pid if state is WorkerState.FAILED else unit.main_pid,
        progress=_progress(worker, state),
        status_text=(unit.status_text or told)[:512],
        result=unit.result,
        exit_status=unit.exec_status if unit.exec_code == CLD_EXITED else 0,
        exit_signal=unit.exec_status if unit.exec_code in (CLD_KILLED, CLD_DUMPED) else 0,
        restarts=unit.restarts,
        reason=reason[:512],
        last_log=worker.last_log,
        version="" if facts is None else facts.version,
        capabilities=[] if facts is None else facts.capabilities,
        since_unix=worker.since_unix,
        spawned_unix=worker.spawned_unix,
        ready_unix=worker.ready_unix,
        memory_bytes=resident,
        memory_peak_bytes=peak,
        memory_settings="" if spec is None else memory_settings(spec),
    )


def _external_report(
    worker: Worker,
    external: ExternalReady,
    state: WorkerState,
    reason: str,
    hive_id: str,
    boot_id: str,
    revision: int,
) -> WorkerReport:
    return WorkerReport(
        worker_id=worker.worker_id,
        hive_id=hive_id,
        boot_id=boot_id,
        revision=revision,
        state=state,
        url=external.url,
        model=worker.model,
        model_ref=external.model_ref,
        task=external.task,
        backend=Backend(external.backend),
        device=external.device,
        slots_total=external.slots_total,
        slots_available=max(0, external.slots_total - worker.busy_slots) if state.ready else 0,
        reason=reason,
        managed=False,
        version="" if worker.health is None else worker.health.version,
        since_unix=worker.since_unix,
        ready_unix=worker.ready_unix,
    )


def _address(worker: Worker, state: WorkerState) -> str | None:
    """Where it listens; told of a unit that lives only, because what answers there afterwards is not ours."""
    if state is WorkerState.LOADING:
        return worker.loading_url
    return worker.facts.url if worker.facts is not None and worker.unit.running else None


def _slots_available(worker: Worker, state: WorkerState) -> int:
    if not state.ready or worker.facts is None:
        return 0
    return max(0, worker.facts.slots_total - worker.busy_slots)


def _progress(worker: Worker, state: WorkerState) -> Progress | None:
    """How far loading is; of a life that failed before it was ready, how far it got."""
    if state is WorkerState.LOADING:
        return worker.fetching or progress_of(worker.unit.status_text)
    unready = worker.ready_life != worker.unit.invocation_id
    return worker.last_progress if state is WorkerState.FAILED and unready else None


def _memory(worker: Worker, state: WorkerState) -> tuple[int, int]:
    """Bytes that it held when it became ready, and the most until then; of its GPU where it runs on one."""
    if worker.facts is None or state.ended:
        return 0, 0
    if worker.facts.backend is Backend.CUDA:
        return worker.gpu_bytes, worker.gpu_bytes
    return worker.facts.memory_bytes, worker.facts.memory_peak_bytes


def memory_settings(spec: WorkerSpec) -> str:
    """A digest of those settings that memory depends on and that are not the defaults; empty where all are."""
    default = WorkerSpec(spec.model)
    chosen = [(name, getattr(spec, name)) for name in _OF_MEMORY if getattr(spec, name) != getattr(default, name)]
    return hashlib.sha256(msgspec.json.encode(chosen)).hexdigest()[:16] if chosen else ""


def _reference(model: str) -> str:
    return f"file://{model}" if model.startswith("/") else model
