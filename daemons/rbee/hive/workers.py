"""The table of workers: derived from the supervisor, the definition files and worker.json; kept nowhere."""

import contextlib
import enum
import logging
import time
from collections.abc import Callable, Mapping

import msgspec

from rbee.hive.definitions import Definition
from rbee.hive.facts_file import FactsProblem, read_worker_facts
from rbee.hive.metrics import HiveMetrics
from rbee.hive.report import Worker, make_report
from rbee.hive.state import FORCE_KILLED, became_ready, crashed, progress_of
from rbee.host.paths import Paths
from rbee.host.units.facts import UnitFacts
from rbee.wire.errors import WorkerNotFound
from rbee.wire.log import log
from rbee.wire.messages import ExternalReady, Progress, WorkerHealth, WorkerReport, WorkerState

LOGGER = logging.getLogger(__name__)
_ALWAYS_DIFFERENT = ("revision", "sent_unix", "since_unix")
_DETAIL = ("status_text", "progress", "last_log")
_QUIET = ("slots_available", "memory_bytes", "memory_peak_bytes")


class Change(enum.Enum):
    """What kind of news a report is: READY and STATE are told at once, DETAIL once a second, QUIET by heartbeat."""

    READY = "ready"
    STATE = "state"
    DETAIL = "detail"
    QUIET = "quiet"


class WorkerTable:
    """Every worker of this machine. Hears the supervisor (UnitWatcher) and tells ``on_report`` what changed."""

    def __init__(
        self,
        hive_id: str,
        boot_id: str,
        paths: Paths,
        metrics: HiveMetrics,
        on_report: Callable[[WorkerReport, Change], None],
        on_resync: Callable[[], None],
        on_crash: Callable[[str, str], None],
    ) -> None:
        """``on_crash`` hears of each life that ended badly: its worker's id, its invocation id."""
        self.hive_id = hive_id
        self.boot_id = boot_id
        self.revision = 0
        self._paths = paths
        self._metrics = metrics
        self._on_report = on_report
        self._resynced = on_resync
        self._on_crash = on_crash
        self._workers: dict[str, Worker] = {}
        self._live = False

    def go_live(self) -> None:
        """From here on changes are news; what was listed before goes out with the first heartbeat."""
        self._live = True

    # What the supervisor says.

    def on_facts(self, facts: UnitFacts) -> None:
        """A unit changed."""
        worker = self._workers.get(facts.worker_id)
        if worker is None:
            worker = Worker(facts.worker_id, facts)
            self._workers[facts.worker_id] = worker
            new_life = True
        else:
            new_life = bool(facts.invocation_id) and facts.invocation_id != worker.unit.invocation_id
        worker.unit = facts
        if facts.active_state != "inactive" or facts.job_result:
            worker.fetching = None
        if new_life:
            _forget_last_life(worker)
        worker.last_pid = facts.main_pid or worker.last_pid
        if worker.spawned_us != facts.inactive_exit_monotonic_us:
            worker.spawned_us = facts.inactive_exit_monotonic_us
            worker.spawned_unix = _unix_of(worker.spawned_us)
        if facts.running:
            self._on_running(worker)
        elif facts.active_state == "activating":
            worker.last_progress = progress_of(facts.status_text) or worker.last_progress
            self._read_address(worker)
        elif worker.facts is not None and facts.active_state in ("inactive", "failed"):
            worker.left_url = worker.facts.url
        if crashed(facts) and worker.crashed_life != facts.invocation_id:
            worker.crashed_life = facts.invocation_id
            if self._live:
                self._metrics.crashes.labels(worker.model).inc()
                self._on_crash(facts.worker_id, facts.invocation_id)
        self._publish(worker)

    def on_resync(self) -> None:
        """The supervisor was out of touch: the whole picture goes out."""
        self._resynced()

    def _on_running(self, worker: Worker) -> None:
        if worker.facts is None:
            self._read_facts(worker)
        if worker.ready_life == worker.unit.invocation_id:
            return
        worker.ready_life, worker.last_log = worker.unit.invocation_id, ""
        worker.ready_unix = _unix_of(worker.unit.active_enter_monotonic_us)
        if self._live and became_ready(worker.unit):
            unit = worker.unit
            self._metrics.ready_signal.observe(max(0.0, time.monotonic() - unit.active_enter_monotonic_us / 1e6))
            loading_us = unit.active_enter_monotonic_us - unit.inactive_exit_monotonic_us
            self._metrics.ready_latency.observe(loading_us / 1e6)

    def _read_facts(self, worker: Worker) -> bool:
        try:
            worker.facts = read_worker_facts(self._paths.worker_facts(worker.worker_id), worker.unit)
            worker.facts_problem = ""
            return True
        except FactsProblem as problem:
            if worker.facts_problem != str(problem):
                log(
                    LOGGER, logging.WARNING, "a ready worker is not routable", worker=worker.worker_id, why=str(problem)
                )
            worker.facts_problem = str(problem)
            return False

    def _read_address(self, worker: Worker) -> None:
        """Know where a worker that loads listens: the queen asks there herself, should this hive fall silent."""
        if worker.loading_url is None and worker.unit.main_pid:
            with contextlib.suppress(FactsProblem):  # not written yet: the next word of its progress comes here too
                worker.loading_url = read_worker_facts(self._paths.worker_facts(worker.worker_id), worker.unit).url

    # What the health checks say.

    def on_health(self, worker_id: str, health: WorkerHealth) -> None:
        """The worker's HTTP answered."""
        worker = self._workers.get(worker_id)
        if worker is None or not worker.serving:
            return
        worker.health, worker.failures, worker.unhealthy = health, 0, False
        self._publish(worker)

    def on_health_failure(self, worker_id: str, why: str, limit: int) -> bool:
        """The worker's HTTP did not answer; returns whether it is time to restart it (again)."""
        worker = self._workers.get(worker_id)
        if worker is None or not worker.serving:
            return False
        worker.failures += 1
        if worker.failures % limit:
            return False
        worker.unhealthy = True
        log(LOGGER, logging.WARNING, "worker is unhealthy", worker=worker_id, failures=worker.failures, why=why)
        self._publish(worker)
        return True

    def read_missing_facts(self, worker_id: str) -> None:
        """Look for worker.json again where a ready worker had none that could be believed."""
        worker = self._workers.get(worker_id)
        missing = worker is not None and worker.unit.running and worker.facts is None
        if worker is not None and missing and self._read_facts(worker):
            self._publish(worker)

    # What the files and the callers say.

    def set_definitions(self, found: Mapping[str, Definition]) -> None:
        """Take over what the definition folders hold now; a worker without definition and unit is forgotten."""
        for worker_id in found.keys() - self._workers.keys():
            self._workers[worker_id] = Worker(worker_id, UnitFacts(worker_id=worker_id))
        for worker_id, worker in list(self._workers.items()):
            worker.definition = found.get(worker_id)
            if worker.definition is None and worker.external is None and _at_rest(worker.unit):
                del self._workers[worker_id]
                self.revision += 1
            else:
                self._publish(worker)

    def set_definition(self, worker_id: str, definition: Definition | None) -> None:
        """One worker's definition was written or removed."""
        worker = self._workers.setdefault(worker_id, Worker(worker_id, UnitFacts(worker_id=worker_id)))
        worker.definition = definition
        self._publish(worker)

    def register_external(self, ready: ExternalReady) -> WorkerReport:
        """A worker outside the supervisor is ready."""
        worker = self._workers.get(ready.worker_id)
        if worker is None or worker.external is None:
            worker = Worker(ready.worker_id, UnitFacts(worker_id=ready.worker_id), ready_unix=time.time())
            self._workers[ready.worker_id] = worker
        worker.external, worker.failures, worker.unhealthy = ready, 0, False
        self._publish(worker)
        return self.row(ready.worker_id)

    def unregister_external(self, worker_id: str) -> WorkerReport:
        """Forget a worker outside the supervisor; returns its last report, as stopped."""
        worker = self.get(worker_id)
        worker.external = None
        worker.stop_reason = "unregistered"
        self._publish(worker)
        row = self.row(worker_id)
        del self._workers[worker_id]
        return row

    def set_stop_reason(self, worker_id: str, reason: str) -> None:
        """Why this hive asks for the end of the worker's present life."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.stop_reason = reason

    def set_gpu_bytes(self, worker_id: str, invocation_id: str, size: int) -> None:
        """The memory of its GPU that the driver counts for that life of a worker, which is ready."""
        worker = self._workers.get(worker_id)
        if worker is not None and worker.unit.invocation_id == invocation_id:
            worker.gpu_bytes = size
            self._publish(worker)

    def set_last_log(self, worker_id: str, invocation_id: str, line: str) -> None:
        """The last line of a life that ended badly; it is told until another one is ready."""
        worker = self._workers.get(worker_id)
        if worker is not None and worker.crashed_life == invocation_id:
            worker.last_log = line
            self._publish(worker)

    def set_fetching(self, worker_id: str, progress: Progress | None) -> None:
        """How far the download of a worker's model is; None: it is not waited for."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.fetching, worker.fetch_failure = progress, ""
            self._publish(worker)

    def set_fetch_failure(self, worker_id: str, why: str) -> None:
        """Why the model of a worker did not come; empty: it is asked for again, and its next state is the news."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.fetch_failure = why
        if worker is not None and why:
            worker.fetching = None
            self._publish(worker)

    # What others read.

    def get(self, worker_id: str) -> Worker:
        """The worker; raises WorkerNotFound."""
        worker = self._workers.get(worker_id)
        if worker is None:
            raise WorkerNotFound(
                f"there is no worker {worker_id} on this machine: GET /v1/workers/list shows those there are"
            )
        return worker

    def find(self, worker_id: str) -> Worker | None:
        """The worker, or None."""
        return self._workers.get(worker_id)

    def take_left_addresses(self) -> "list[tuple[str, str]]":
        """(worker, url) of units that ended since the last call, where no other worker of ours has the address.

        They wait for the next call while a worker begins that has not told its own address yet: it takes the first
        free one, which is often the one just left.
        """
        if any(_listens_unheard(worker) for worker in self._workers.values()):
            return []
        used = {report.url for report in self.reports()}
        left = [(worker.worker_id, worker.left_url) for worker in self._workers.values() if worker.left_url]
        for worker_id, _ in left:
            self._workers[worker_id].left_url = ""
        return [(worker_id, url) for worker_id, url in left if url not in used]

    def all(self) -> "list[Worker]":
        """Every worker, by id."""
        return [self._workers[worker_id] for worker_id in sorted(self._workers)]

    def row(self, worker_id: str) -> WorkerReport:
        """The worker's report as of now; raises WorkerNotFound."""
        worker = self.get(worker_id)
        if worker.report is None:
            self._publish(worker)
        if worker.report is None:
            raise WorkerNotFound(f"there is no report of worker {worker_id} yet")
        return worker.report

    def reports(self) -> list[WorkerReport]:
        """Every worker's report, by id."""
        return [worker.report for worker in self.all() if worker.report is not None]

    def count(self, *states: WorkerState) -> int:
        """How many workers are in one of ``states``."""
        return sum(1 for worker in self._workers.values() if worker.report and worker.report.state in states)

    # What is told.

    def _publish(self, worker: Worker) -> None:
        """Make the report anew; where it says something new, number it and tell."""
        previous = worker.report
        report = make_report(worker, self.hive_id, self.boot_id, self.revision + 1)
        if previous is None or previous.state is not report.state or previous.invocation_id != report.invocation_id:
            worker.since_unix = time.time()
        report = msgspec.structs.replace(report, since_unix=worker.since_unix)
        change = change_between(previous, report)
        if change is None:
            return
        self.revision += 1
        worker.report = report
        if change in (Change.READY, Change.STATE):
            _log_change(report, worker.last_pid)
        self._on_report(report, change if self._live else Change.QUIET)


def change_between(previous: WorkerReport | None, report: WorkerReport) -> Change | None:
    """What kind of news ``report`` is after ``previous``; None where it says nothing new.

    Between idle and busy the queen knows better than the hive: that goes with the heartbeat.
    """
    if previous is None:
        if report.state is WorkerState.STOPPED:
            return Change.QUIET  # it came to be defined: nothing happened to it
        return Change.READY if report.state.ready else Change.STATE
    different = {
        name
        for name in report.__struct_fields__
        if name not in _ALWAYS_DIFFERENT and getattr(previous, name) != getattr(report, name)
    }
    if not different:
        return None
    both_ready = previous.state.ready and report.state.ready
    new_life = previous.invocation_id != report.invocation_id
    if report.state.ready and (new_life or previous.state is WorkerState.LOADING or previous.url != report.url):
        return Change.READY
    if different <= {*_QUIET, *(("state",) if both_ready else ())}:
        return Change.QUIET
    if not different <= {*_DETAIL, *_QUIET}:
        return Change.STATE
    # the text of a worker that serves waits for the heartbeat: it says nothing that anybody acts upon
    return Change.QUIET if both_ready else Change.DETAIL


def _at_rest(unit: UnitFacts) -> bool:
    """Whether nothing of the unit runs, will run or failed."""
    return unit.load_state == "not-loaded" or (unit.active_state == "inactive" and not unit.job_result)


def _listens_unheard(worker: Worker) -> bool:
    return worker.unit.active_state == "activating" and worker.unit.main_pid != 0 and worker.loading_url is None


def _forget_last_life(worker: Worker) -> None:
    worker.facts, worker.facts_problem = None, ""
    worker.health, worker.failures, worker.unhealthy = None, 0, False
    worker.stop_reason = ""
    worker.ready_unix, worker.last_progress, worker.left_url, worker.loading_url = None, None, "", None
    worker.last_pid, worker.gpu_bytes = 0, 0


def _unix_of(monotonic_us: int) -> float | None:
    """CLOCK_MONOTONIC microseconds as Unix time; None for 0 (never)."""
    return time.time() - time.monotonic() + monotonic_us / 1e6 if monotonic_us else None


def _log_change(report: WorkerReport, last_pid: int) -> None:
    level = logging.WARNING if report.state in (WorkerState.FAILED, WorkerState.UNHEALTHY) else logging.INFO
    ends = report.state in (WorkerState.DRAINING, WorkerState.STOPPED)
    unasked = report.managed and ends and not report.reason
    message = "worker force-killed" if report.reason == FORCE_KILLED else f"worker {report.state.value}"
    log(
        LOGGER,
        level,
        message,
        worker=report.worker_id,
        pid=report.pid or last_pid or None,
        invocation_id=report.invocation_id or None,
        reason=report.reason or None,
        asked_by="not this hive: systemctl, or systemd itself" if unasked else None,
        result=report.result if report.result not in ("", "success") else None,
        exit_status=report.exit_status or None,
        exit_signal=report.exit_signal or None,
        restarts=report.restarts or None,
    )
