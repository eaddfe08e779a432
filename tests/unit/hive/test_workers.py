"""The table of workers: what it believes of worker.json, and which changes are news."""

import os
import time
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from rbee.hive.definitions import Definition
from rbee.hive.facts_file import FactsProblem, read_worker_facts
from rbee.hive.metrics import HiveMetrics
from rbee.hive.report import memory_settings
from rbee.hive.workers import Change, WorkerTable
from rbee.host.paths import Paths
from rbee.host.units.facts import UnitFacts
from rbee.wire.errors import WorkerNotFound
from rbee.wire.messages import ExternalReady, WorkerFacts, WorkerHealth, WorkerReport, WorkerState
from rbee.wire.worker_spec import Backend, Task, WorkerSpec

LIFE, NEXT_LIFE = "a" * 32, "b" * 32


def facts(**changes: object) -> WorkerFacts:
    made = WorkerFacts(
        worker_id="w", url="http://127.0.0.1:8081", socket="/s", model="tiny", model_ref="file:///m/tiny",
        task=Task.TENSOR, backend=Backend.CPU, device=0, slots_total=4, version="0.1.0", pid=7, invocation_id=LIFE,
        ready_monotonic_us=1,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def unit(active: str, sub: str, **rest: object) -> UnitFacts:
    return UnitFacts(
        worker_id="w",
        load_state="loaded",
        active_state=active,
        sub_state=sub,
        **({"invocation_id": LIFE, "main_pid": 7} | rest),  # type: ignore[arg-type]
    )


def health(**changes: object) -> WorkerHealth:
    return msgspec.structs.replace(WorkerHealth("healthy", WorkerState.IDLE, "w", "0.1.0", 4, 0, 1.0, 0), **changes)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.paths = Paths(folder, folder, folder)
        self.news: list[tuple[WorkerReport, Change]] = []
        self.resyncs = 0
        self.crashes: list[tuple[str, str]] = []
        self.registry = CollectorRegistry()
        self.table = WorkerTable(
            "h", "boot", self.paths, HiveMetrics(self.registry), self._heard, self._resync, self._crashed
        )

    def _heard(self, report: WorkerReport, change: Change) -> None:
        self.news.append((report, change))

    def _crashed(self, worker_id: str, invocation_id: str) -> None:
        self.crashes.append((worker_id, invocation_id))

    def _resync(self) -> None:
        self.resyncs += 1

    def write(self, made: WorkerFacts) -> None:
        path = self.paths.worker_facts("w")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.encode(made))

    def told(self) -> list[tuple[str, str]]:
        return [(report.state.value, change.value) for report, change in self.news]

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.table.go_live()
    return made


def started(bench: Bench) -> None:
    now_us = int(time.monotonic() * 1e6)
    bench.table.on_facts(unit("activating", "start", inactive_exit_monotonic_us=now_us - 500_000))
    bench.write(facts())
    bench.table.on_facts(
        unit("active", "running", inactive_exit_monotonic_us=now_us - 500_000, active_enter_monotonic_us=now_us)
    )


def test_a_life_from_loading_to_ready_to_stopped(bench: Bench) -> None:
    started(bench)
    bench.table.set_stop_reason("w", "idle")
    bench.table.on_facts(unit("deactivating", "stop-sigterm"))
    bench.table.on_facts(unit("inactive", "dead", main_pid=0))
    assert bench.told() == [("loading", "state"), ("idle", "ready"), ("draining", "state"), ("stopped", "state")]
    ready, stopped = bench.news[1][0], bench.news[3][0]
    assert (ready.url, ready.model, ready.pid, ready.slots_available) == ("http://127.0.0.1:8081", "tiny", 7, 4)
    assert (stopped.url, stopped.reason, stopped.pid) == (None, "idle", 0)
    assert [report.revision for report, _ in bench.news] == [1, 2, 3, 4]
    assert bench.value("worker_ready_latency_seconds_sum") == pytest.approx(0.5)
    assert bench.value("rbee_hive_ready_signal_seconds_count") == 1


@pytest.mark.parametrize("sub", ["reload", "reload-signal", "reload-notify"])
def test_a_worker_that_reloads_its_token_keeps_its_address(bench: Bench, sub: str) -> None:
    started(bench)
    bench.table.on_facts(unit("reloading", sub))
    bench.table.on_facts(unit("active", "running"))
    assert {(report.state.value, report.url) for report, _ in bench.news[1:]} == {("idle", "http://127.0.0.1:8081")}
    assert [change for _, change in bench.told()].count("ready") == 1


def test_the_same_facts_again_are_no_news(bench: Bench) -> None:
    started(bench)
    count = len(bench.news)
    for worker in bench.table.all():
        bench.table.on_facts(worker.unit)
    assert len(bench.news) == count


def test_each_life_is_ready_once(bench: Bench) -> None:
    started(bench)
    bench.table.on_facts(unit("active", "running", status_text="ready"))
    bench.table.on_facts(unit("activating", "auto-restart", main_pid=0, result="signal", exec_code=2, exec_status=9))
    bench.table.on_facts(unit("activating", "start", invocation_id=NEXT_LIFE, main_pid=8))
    bench.write(facts(pid=8, invocation_id=NEXT_LIFE))
    bench.table.on_facts(unit("active", "running", invocation_id=NEXT_LIFE, main_pid=8))
    assert [change for _, change in bench.told()].count("ready") == 2
    crashed = next(report for report, _ in bench.news if report.state is WorkerState.FAILED)
    assert (crashed.pid, crashed.exit_signal, crashed.reason) == (7, 9, "crashed: SIGKILL")
    assert bench.value("rbee_hive_worker_crashes_total", model="tiny") == 1


def test_the_last_line_of_a_life_that_crashed_is_told_until_one_is_ready(bench: Bench) -> None:
    started(bench)
    bench.table.on_facts(unit("activating", "auto-restart", main_pid=0, result="oom-kill", exec_code=2, exec_status=9))
    assert bench.crashes == [("w", LIFE)]
    bench.table.set_last_log("w", NEXT_LIFE, "of a life that is not over")
    assert bench.table.row("w").last_log == ""
    bench.table.set_last_log("w", LIFE, "its last words")
    assert (bench.news[-1][0].last_log, bench.news[-1][1]) == ("its last words", Change.DETAIL)
    bench.table.on_facts(unit("activating", "start", invocation_id=NEXT_LIFE, main_pid=8))
    assert bench.table.row("w").last_log == "its last words"
    bench.write(facts(pid=8, invocation_id=NEXT_LIFE))
    bench.table.on_facts(unit("active", "running", invocation_id=NEXT_LIFE, main_pid=8))
    assert bench.table.row("w").last_log == ""


def test_what_was_there_before_goes_with_the_first_heartbeat(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    started(bench)
    assert {change for _, change in bench.news} == {Change.QUIET}
    assert [report.state for report in bench.table.reports()] == [WorkerState.IDLE]


def test_idle_and_busy_wait_for_the_heartbeat(bench: Bench) -> None:
    started(bench)
    bench.table.on_health("w", health(slots_busy=3))
    report, change = bench.news[-1]
    assert (report.state, report.slots_available, change) == (WorkerState.BUSY, 1, Change.QUIET)


def test_three_failures_make_it_unhealthy_and_a_success_heals(bench: Bench) -> None:
    started(bench)
    assert [bench.table.on_health_failure("w", "no", 3) for _ in range(6)] == [False, False, True, False, False, True]
    assert bench.told()[-1] == ("unhealthy", "state")
    bench.table.on_health("w", health())
    assert bench.told()[-1] == ("idle", "state")


def test_loading_progress_is_detail_and_survives_a_timeout(bench: Bench) -> None:
    bench.table.on_facts(unit("activating", "start", inactive_exit_monotonic_us=5))
    bench.table.on_facts(
        unit("activating", "start", inactive_exit_monotonic_us=5, status_text="loading: weights 28/32 layers")
    )
    bench.table.on_facts(unit("failed", "failed", inactive_exit_monotonic_us=5, result="timeout", main_pid=0))
    assert bench.told() == [("loading", "state"), ("loading", "detail"), ("failed", "state")]
    failed = bench.news[-1][0]
    assert failed.reason == "LOADING_TIMEOUT"
    assert failed.progress is not None
    assert (failed.progress.done, failed.progress.total) == (28, 32)


def test_a_ready_worker_without_facts_is_not_routable_until_they_are_there(bench: Bench) -> None:
    bench.table.on_facts(unit("active", "running"))
    assert bench.told() == [("unhealthy", "state")]
    assert "worker.json" in bench.news[0][0].reason
    bench.write(facts())
    bench.table.read_missing_facts("w")
    assert bench.told()[-1] == ("idle", "ready")


@pytest.mark.parametrize(
    ("made", "why"),
    [
        (facts(worker_id="other"), "another worker"),
        (facts(invocation_id=NEXT_LIFE), "another life"),
        (facts(pid=8), "another process"),
        (facts(url="http://192.0.2.1:8081"), "not of this machine"),
        (facts(url="http://example.org:8081"), "not of this machine"),
    ],
)
def test_facts_that_do_not_fit_are_not_believed(bench: Bench, made: WorkerFacts, why: str) -> None:
    bench.write(made)
    with pytest.raises(FactsProblem, match=why):
        read_worker_facts(bench.paths.worker_facts("w"), unit("active", "running"))


def test_a_trap_in_the_place_of_worker_json_neither_blocks_nor_is_followed(bench: Bench, tmp_path: Path) -> None:
    path = bench.paths.worker_facts("w")
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(FactsProblem, match="no regular file"):
        read_worker_facts(path, unit("active", "running"))
    path.unlink()
    real = tmp_path / "real.json"
    real.write_bytes(msgspec.json.encode(facts()))
    path.symlink_to(real)
    with pytest.raises(FactsProblem, match="cannot be read"):
        read_worker_facts(path, unit("active", "running"))
    path.unlink()
    path.write_text("{")
    with pytest.raises(FactsProblem, match="does not fit"):
        read_worker_facts(path, unit("active", "running"))


def test_definitions_bring_workers_and_take_them(bench: Bench, tmp_path: Path) -> None:
    spec = WorkerSpec(model="/models/tiny", slots=2)
    bench.table.set_definitions({"w": Definition(tmp_path / "w.yaml", spec)})
    row = bench.table.row("w")
    assert (row.state, row.model, row.model_ref, row.slots_total) == (
        WorkerState.STOPPED,
        "tiny",
        "file:///models/tiny",
        2,
    )
    assert bench.told() == [("stopped", "quiet")]
    started(bench)
    bench.table.set_definitions({})
    assert bench.table.row("w").state is WorkerState.IDLE
    bench.table.on_facts(unit("inactive", "dead", main_pid=0).unloaded(""))
    bench.table.set_definitions({})
    with pytest.raises(WorkerNotFound):
        bench.table.row("w")


def test_the_memory_of_a_life_is_told_from_ready_to_its_end(bench: Bench) -> None:
    bench.table.on_facts(unit("activating", "start"))
    bench.write(facts(memory_bytes=100, memory_peak_bytes=120))
    bench.table.on_facts(unit("active", "running"))
    bench.table.on_facts(unit("inactive", "dead", main_pid=0))
    amounts = [(report.memory_bytes, report.memory_peak_bytes) for report, _ in bench.news]
    assert amounts == [(0, 0), (100, 120), (0, 0)]


def test_the_memory_of_a_gpu_is_the_drivers_word_and_goes_with_the_heartbeat(bench: Bench) -> None:
    bench.table.on_facts(unit("activating", "start"))
    bench.write(facts(backend=Backend.CUDA, memory_bytes=100, memory_peak_bytes=120))
    bench.table.on_facts(unit("active", "running"))
    bench.table.set_gpu_bytes("w", NEXT_LIFE, 7)  # of another life
    assert bench.table.row("w").memory_bytes == 0  # what it has of the machine's memory is not asked about
    bench.table.set_gpu_bytes("w", LIFE, 5000)
    assert bench.told()[-1] == ("idle", "quiet")
    assert bench.table.row("w").memory_peak_bytes == 5000
    bench.table.on_facts(unit("activating", "start", invocation_id=NEXT_LIFE))
    bench.write(facts(backend=Backend.CUDA, invocation_id=NEXT_LIFE))
    bench.table.on_facts(unit("active", "running", invocation_id=NEXT_LIFE))
    assert bench.table.row("w").memory_bytes == 0


def test_settings_that_memory_depends_on_are_told_apart() -> None:
    plain = WorkerSpec(model="/m/tiny", name="other", slots=9, idle_limit_s=3.0)
    assert memory_settings(plain) == memory_settings(WorkerSpec(model="hf:org/x", prefix_cache_mb=256)) == ""
    changed = [WorkerSpec(model="/m", kv_cache_mb=512), WorkerSpec(model="/m", max_context=512)]
    assert len({memory_settings(spec) for spec in (plain, *changed)}) == 3
    assert memory_settings(changed[0]) == memory_settings(msgspec.structs.replace(changed[0], model="/n", queue=7))


def test_a_worker_that_ended_is_what_its_definition_says_now(bench: Bench, tmp_path: Path) -> None:
    bench.table.set_definitions({"w": Definition(tmp_path / "w.yaml", WorkerSpec(model="/m/tiny"))})
    started(bench)
    changed = WorkerSpec(model="/m/other", backend=Backend.CUDA, device=3, slots=9)
    bench.table.set_definitions({"w": Definition(tmp_path / "w.yaml", changed)})
    row = bench.table.row("w")  # it runs by the former one
    assert (row.model_ref, row.backend, row.device, row.slots_total) == ("file:///m/tiny", Backend.CPU, 0, 4)
    bench.table.on_facts(unit("inactive", "dead", main_pid=0))
    row = bench.table.row("w")
    assert (row.model_ref, row.backend, row.device, row.slots_total) == ("file:///m/other", Backend.CUDA, 3, 9)
    assert row.task is Task.TENSOR  # which the definition leaves to the model's files


def test_a_left_address_is_looked_at_unless_one_of_ours_has_it(bench: Bench) -> None:
    started(bench)
    bench.table.on_facts(unit("inactive", "dead", main_pid=0))
    assert bench.table.take_left_addresses() == [("w", "http://127.0.0.1:8081")]
    assert bench.table.take_left_addresses() == []
    bench.table.on_facts(unit("activating", "start", invocation_id=NEXT_LIFE))
    bench.write(facts(invocation_id=NEXT_LIFE))
    bench.table.on_facts(unit("active", "running", invocation_id=NEXT_LIFE))
    bench.table.on_facts(unit("inactive", "dead", invocation_id=NEXT_LIFE, main_pid=0))
    external = ExternalReady("x", "http://127.0.0.1:8081", "file:///m/tiny", "cpu")
    bench.table.register_external(external)
    assert bench.table.take_left_addresses() == []


def test_a_left_address_waits_for_a_worker_that_begins_and_may_have_taken_it(bench: Bench) -> None:
    started(bench)
    bench.table.on_facts(unit("inactive", "dead", main_pid=0))
    other = msgspec.structs.replace(unit("activating", "start"), worker_id="v")
    bench.table.on_facts(other)
    assert bench.table.take_left_addresses() == []
    bench.table.on_facts(msgspec.structs.replace(other, active_state="failed", sub_state="failed", main_pid=0))
    assert bench.table.take_left_addresses() == [("w", "http://127.0.0.1:8081")]


def test_a_worker_from_outside(bench: Bench) -> None:
    ready = ExternalReady("x", "http://127.0.0.1:9001", "file:///m/tiny", "cpu", slots_total=2)
    row = bench.table.register_external(ready)
    assert (row.state, row.managed, row.url, row.model) == (WorkerState.IDLE, False, "http://127.0.0.1:9001", "tiny")
    assert bench.told() == [("idle", "ready")]
    bench.table.register_external(ready)
    assert len(bench.news) == 1
    gone = bench.table.unregister_external("x")
    assert (gone.state, gone.url) == (WorkerState.STOPPED, None)
    assert bench.table.find("x") is None


def test_a_resync_is_passed_on(bench: Bench) -> None:
    bench.table.on_resync()
    assert bench.resyncs == 1
