"""The hive and the life of its workers, on a real systemd: hangs, stops, drains, kills, idleness."""

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee.hive.config import HiveConfig
from rbee.keeper.demo import faulty
from tests.behaviour.support.hazards import (
    LONG_NAME,
    hang,
    held_request,
    long_request,
    reset_units,
    set_unit,
    signal_worker,
)
from tests.behaviour.support.house import MODELS, House
from tests.behaviour.support.http import Answer, Stream, until
from tests.behaviour.support.watch import Seen, Watch
from tests.machines.testbed import Machine

scenarios("features/hive.feature")

TALK, TINY, SLOW = "bee-talk", "tiny-tensor", "slow-load"
CALM_S = 3.0
MANAGER = "/org/freedesktop/systemd1"
HIVE_CONFIG: dict[str, Any] = {
    "queen": {"callback_url": "http://127.0.0.1:8080"},
    "health_interval_s": 0.5,
    "heartbeat_interval_s": 1,
}
TENSOR = {
    "inputs": [
        {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]},
        {"name": "shift", "shape": [1, 1], "datatype": "INT64", "data": [0]},
    ]
}


@dataclass
class Tale:
    """What a scenario has seen so far; ``worker`` is the one it is about."""

    worker: str = ""
    hung: list[str] = field(default_factory=list)
    workers: list[str] = field(default_factory=list)
    lives: dict[str, dict[str, str]] = field(default_factory=dict)
    hive: dict[str, str] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    answer: Answer | None = None
    stream: Stream | None = None
    pid: int = 0
    since: float = 0.0
    took: float = 0.0
    health_checks: float = 0.0
    url: str = ""
    stranger: "subprocess.Popen[str] | None" = None
    trace: "subprocess.Popen[str] | None" = None

    def life(self, worker: str | None = None) -> dict[str, str]:
        return self.lives[worker or self.worker]


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes about 3 s to load."""
    folder = tmp_path_factory.mktemp(SLOW)
    faulty.build_slow_load(folder, 3.0)
    return folder


@pytest.fixture(scope="module")
def nest(shared_machine: Machine) -> House:
    """A machine with queen and hive running; the hive looks often."""
    made = House(shared_machine)
    made.configure("hive", HIVE_CONFIG)
    made.start()
    return made


@pytest.fixture
def tale() -> Tale:
    return Tale()


@pytest.fixture(autouse=True)
def left_as_found(nest: House, tale: Tale) -> Iterator[None]:
    """Queen and hive run before each scenario, and no worker is left after it."""
    nest.start()
    tale.hive = nest.machine.unit("rbee-hive.service")
    yield
    for process in (tale.stranger, tale.trace):
        if process is not None:
            end(process)
    nest.machine.systemctl("kill", "--signal=KILL", "rbee-worker@*", check=False)
    nest.machine.systemctl("stop", "rbee-worker@*", check=False)
    nest.machine.systemctl("reset-failed", check=False)
    nest.machine.run(["sh", "-c", "rm -f /etc/rbee/workers/*.yaml"])
    reset_units(nest)
    nest.start()
    until(lambda: not nest.hive_rows(), 20)


def end(process: "subprocess.Popen[str]") -> None:
    """End a command on the machine and close its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


@pytest.fixture
def watch(nest: House) -> Iterator[Watch]:
    with Watch(nest.admin) as made:
        yield made


@pytest.fixture
def things() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def run(nest: House, tale: Tale, worker: str, model: str = TINY, **fields: object) -> None:
    """Start a worker and remember its life."""
    nest.run_worker(worker, model, **fields)
    tale.worker = worker
    tale.workers.append(worker)
    tale.lives[worker] = nest.unit(worker)


def records(nest: House, tale: Tale, message: str, worker: str | None = None) -> list[dict[str, Any]]:
    """The hive's records with that message, of this life of the hive and of a worker."""
    found = nest.machine.journal("rbee-hive.service", "RBEE_COMPONENT=hive")
    return [
        record
        for record in found
        if record["MESSAGE"].startswith(message) and worker in (None, record.get("RBEE_WORKER"))
    ]


def log_has(nest: House, tale: Tale, message: str, worker: str | None = None) -> list[dict[str, Any]]:
    """The same, awaited."""
    found = until(lambda: records(nest, tale, message, worker), 30, every_s=0.2)
    assert isinstance(found, list)
    return found


def ending(nest: House, tale: Tale, worker: str) -> tuple[str, int]:
    """How the life of a worker that the scenario knows ended, in systemd's words, and when (monotonic microseconds).

    From the journal: systemd forgets a unit that ended well.
    """
    return ending_of(nest, tale.life(worker)["InvocationID"])


def ending_of(nest: House, invocation: str) -> tuple[str, int]:
    """The same for a unit's invocation."""
    life = f"INVOCATION_ID={invocation}"
    for record in nest.machine.journal(None, "_PID=1", life):
        said = str(record["MESSAGE"])
        if said.endswith(": Deactivated successfully."):
            return "success", int(record["__MONOTONIC_TIMESTAMP"])
        if ": Failed with result '" in said:
            return said.split("'")[1], int(record["__MONOTONIC_TIMESTAMP"])
    raise AssertionError(f"the journal has no end of {life}")


def infer(nest: House, model: str = TINY) -> Answer:
    return nest.client.post(f"/v2/models/{model}/infer", TENSOR)


# workers


@given(parsers.parse('a ready worker "{worker}"'))
def ready_worker(nest: House, tale: Tale, worker: str) -> None:
    run(nest, tale, worker, idle_limit_s=0)


@given(parsers.parse('a ready worker "{worker}" whose unit has "{line}"'))
def ready_with(nest: House, tale: Tale, worker: str, line: str) -> None:
    set_unit(nest, worker, line)
    run(nest, tale, worker, idle_limit_s=0)


@given(parsers.parse('{count:d} ready workers whose units have "{line}"'))
def several_ready(nest: House, tale: Tale, count: int, line: str) -> None:
    names = [f"w{number}" for number in range(1, count + 1)]
    for name in names:
        set_unit(nest, name, line)
        nest.define_worker(name, TINY, idle_limit_s=0)
    nest.machine.systemctl("start", *(f"rbee-worker@{name}" for name in names))
    for name in names:
        nest.wait_state(name, "idle")
        tale.lives[name] = nest.unit(name)
    tale.workers = names


@given(parsers.parse('a ready worker "{worker}" with an idle limit of {limit:d} s'))
def ready_with_limit(nest: House, tale: Tale, watch: Watch, worker: str, limit: int) -> None:
    run(nest, tale, worker, idle_limit_s=limit)


@given(parsers.parse('a ready worker "{worker}" without an idle limit of its own'))
def ready_without_limit(nest: House, tale: Tale, worker: str) -> None:
    run(nest, tale, worker)


@given(parsers.parse("{count:d} of them hang"))
def some_hang(nest: House, tale: Tale, count: int) -> None:
    tale.hung = tale.workers[:count]
    for worker in tale.hung:
        hang(nest, worker)


@given("its process hangs")
def it_hangs(nest: House, tale: Tale) -> None:
    hang(nest, tale.worker)


@when(parsers.parse("its process is stopped by SIGSTOP"))
def sigstop(nest: House, tale: Tale, watch: Watch) -> None:
    signal_worker(nest, tale.worker, "STOP")


# HIVE-01


@when("nothing happens for a while and every call to systemd over the bus is recorded")
def record_bus(nest: House, tale: Tale, things: ExitStack) -> None:
    monitor = nest.machine.popen(["busctl", "--json=short", "monitor"])
    things.callback(end, monitor)
    assert monitor.stdout is not None
    lines = iter(monitor.stdout)
    assert "Monitoring" in next(lines)

    def read() -> None:
        for line in lines:
            if line.startswith("{"):
                tale.calls.append(json.loads(line))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    things.callback(reader.join)
    things.callback(monitor.kill)
    tale.health_checks = nest.hive_admin.metric("rbee_hive_health_checks_total", result="healthy")
    tale.took = nest.hive_admin.metric("rbee_hive_heartbeats_total", status="success")
    time.sleep(CALM_S)  # the absence of something takes its time


@then("nobody asked systemd anything meanwhile, though health checks and heartbeats went on")
def no_polling(nest: House, tale: Tale) -> None:
    asked = [call for call in tale.calls if call["type"] == "method_call" and MANAGER in call.get("path", "")]
    assert asked == []
    hive = nest.hive_admin
    assert hive.metric("rbee_hive_health_checks_total", result="healthy") >= tale.health_checks + 2
    assert hive.metric("rbee_hive_heartbeats_total", status="success") >= tale.took + 1


@then("the hive is the same process, and its API answers at its socket and over TCP")
def hive_stays(nest: House, tale: Tale) -> None:
    assert same_hive(nest, tale)
    assert nest.hive_admin.get("/v1/health").json["status"] == "healthy"
    assert nest.hive_tcp.get("/v1/workers/list").status == 200


def same_hive(nest: House, tale: Tale) -> bool:
    now = nest.machine.unit("rbee-hive.service")
    return all(now[name] == tale.hive[name] for name in ("MainPID", "InvocationID"))


@then("a worker that is started now is heard of, and the hive's call to start it is in the record")
def record_works(nest: House, tale: Tale) -> None:
    nest.define_worker("later", TINY)
    assert nest.hive_admin.post("/v1/workers/spawn", {"worker_id": "later"}).status == 202
    nest.wait_state("later", "idle")
    until(lambda: [call for call in tale.calls if call.get("member") == "StartUnit"], 5)


# HIVE-02, HIVE-12


@then(parsers.parse('the queen hears that it failed with the reason "{reason}"'))
def hears_failed(tale: Tale, watch: Watch, reason: str) -> None:
    row = watch.wait_state(tale.worker, "failed").row
    assert row["reason"] == reason, row
    assert row["pid"] == int(tale.life()["MainPID"])


@then("it becomes ready again as a new life with a restart counted")
def new_life(nest: House, tale: Tale, watch: Watch) -> None:
    old = tale.life()["InvocationID"]
    watch.wait(lambda seen: _new_life(seen, tale.worker, old), "a new life")
    assert int(nest.unit(tale.worker)["NRestarts"]) >= 1


def _new_life(seen: Seen, worker: str, old: str) -> bool:
    return seen.worker == worker and seen.state == "idle" and seen.row["invocation_id"] != old


@then("the queen hears that it is unhealthy since its HTTP does not answer")
def hears_unhealthy(tale: Tale, watch: Watch) -> None:
    row = watch.wait_state(tale.worker, "unhealthy", 20).row
    assert row["reason"] == "its HTTP does not answer"
    assert row["invocation_id"] == tale.life()["InvocationID"]


@then("a request for its model is answered by its next life")
def next_life_answers(nest: House, tale: Tale) -> None:
    answer = infer(nest)
    assert answer.status == 200, answer.body
    assert nest.unit(tale.worker)["InvocationID"] != tale.life()["InvocationID"]


@then("the hive's log counts 3 failures before it restarted the worker")
def three_failures(nest: House, tale: Tale) -> None:
    (unhealthy,) = records(nest, tale, "worker is unhealthy", tale.worker)
    assert unhealthy["RBEE_FAILURES"] == "3"
    (restart,) = records(nest, tale, "worker.restart", tale.worker)
    assert restart["RBEE_REASON"] == "unhealthy"
    assert int(restart["__REALTIME_TIMESTAMP"]) >= int(unhealthy["__REALTIME_TIMESTAMP"])


# HIVE-03, HIVE-07


@given(parsers.parse("a hive whose idle limit is {limit:d} s and which checks health twice a second"))
def hive_limit(nest: House, things: ExitStack, limit: int) -> None:
    def put(values: dict[str, Any]) -> None:
        nest.configure("hive", values)
        nest.machine.systemctl("reload", "rbee-hive.service")

    things.callback(put, HIVE_CONFIG)
    put(HIVE_CONFIG | {"idle_limit_s": limit})


@then(parsers.parse('"{first}" and "{second}" are stopped with the reason "idle", each past its limit'))
def stopped_idle(nest: House, tale: Tale, watch: Watch, first: str, second: str) -> None:
    for worker, limit in ((first, 1.0), (second, 3.0)):
        stopped = watch.wait_state(worker, "stopped", 20).row
        assert stopped["reason"] == "idle"
        (record,) = log_has(nest, tale, "worker is idle past its limit", worker)
        assert float(record["RBEE_IDLE_S"]) > limit - 0.1
        assert float(record["RBEE_LIMIT_S"]) == limit
        tale.hung.append(worker)


@then("their processes are gone and their units hold no memory")
def memory_free(nest: House, tale: Tale) -> None:
    for worker in tale.hung:
        unit = nest.unit(worker)
        assert (unit["MainPID"], unit["ActiveState"]) == ("0", "inactive")
        assert not nest.machine.path(f"/sys/fs/cgroup{tale.life(worker)['ControlGroup']}").exists()
        assert not nest.machine.path(f"/proc/{tale.life(worker)['MainPID']}").exists()


@then(parsers.parse('"{worker}" is still ready, and the hive is the same process'))
def still_ready(nest: House, tale: Tale, worker: str) -> None:
    row = nest.rows()[worker]
    assert (row["state"], row["invocation_id"]) == ("idle", tale.life(worker)["InvocationID"])
    idle_s = nest.worker(worker).get("/health").json["idle_s"]
    assert idle_s > 2.0, "health checks went on every half second and are no activity"
    assert same_hive(nest, tale)


@then("each stop is one line of the hive's log, with the worker, its idle time and its limit")
def one_line(nest: House, tale: Tale) -> None:
    for worker in tale.hung:
        assert len(records(nest, tale, "worker is idle past its limit, stopping it", worker)) == 1
    assert records(nest, tale, "worker is idle past", "never") == []


@then(parsers.parse("a hive that is told nothing has an idle limit of {limit:d} s"))
def default_limit(limit: int) -> None:
    assert HiveConfig().idle_limit_s == limit


# HIVE-04, HIVE-14 to 16, HIVE-20, HIVE-22


@when("the hive is restarted")
def restart_hive(nest: House, tale: Tale) -> None:
    began = time.monotonic()
    nest.machine.systemctl("restart", "rbee-hive.service")
    tale.took = time.monotonic() - began


@then("both workers are ready in the queen's list, with the process and the life that they had")
def both_ready(nest: House, tale: Tale) -> None:
    boot = nest.hive_admin.get("/v1/health").json["boot_id"]
    for worker in tale.workers:
        row = until(lambda worker=worker: _of_boot(nest.rows()[worker], boot), 10)
        assert (row["state"], row["pid"]) == ("idle", int(tale.life(worker)["MainPID"]))
        assert row["invocation_id"] == tale.life(worker)["InvocationID"] == nest.unit(worker)["InvocationID"]
        assert nest.unit(worker)["MainPID"] == tale.life(worker)["MainPID"]


def _of_boot(row: dict[str, Any], boot: str) -> dict[str, Any] | None:
    return row if row["boot_id"] == boot else None


@then("the hive did not wait for anybody")
def hive_quick(nest: House, tale: Tale) -> None:
    assert not same_hive(nest, tale)
    assert tale.took < 10
    assert records(nest, tale, "shutting down") == []


@when("rbee.target is stopped")
def stop_target(nest: House, tale: Tale) -> None:
    nest.machine.systemctl("start", "rbee.target")
    tale.hive = nest.machine.unit("rbee-hive.service")
    began = time.monotonic()
    nest.machine.systemctl("stop", "rbee.target")
    units = [f"rbee-worker@{worker}.service" for worker in tale.workers]
    for unit in (*units, "rbee-hive.service", "rbee-queen.service"):
        until(lambda unit=unit: nest.machine.unit(unit)["ActiveState"] in ("inactive", "failed"), 40)
    tale.took = time.monotonic() - began


@then("everything is down before two of the hung ones could have been killed one after the other")
def all_at_once(tale: Tale) -> None:
    assert 4 <= tale.took < 8, tale.took


@then("the 3 that hung were killed together at the cap, the other 2 ended by themselves")
def killed_together(nest: House, tale: Tale) -> None:
    for worker in tale.workers:
        assert ending(nest, tale, worker)[0] == ("timeout" if worker in tale.hung else "success"), worker
    kills = [ending(nest, tale, worker)[1] for worker in tale.hung]
    assert max(kills) - min(kills) < 1_000_000


@then("the hive ended cleanly after the last worker")
def hive_last(nest: House, tale: Tale) -> None:
    result, ended = ending_of(nest, tale.hive["InvocationID"])
    assert result == "success"
    assert ended >= max(ending(nest, tale, worker)[1] for worker in tale.workers)


@then(parsers.parse('the hive\'s log says "{first}", counts them from 1/5 to 5/5, and ends with "{last}"'))
def progress_log(nest: House, tale: Tale, first: str, last: str) -> None:
    said = [
        record["MESSAGE"].partition(" workers=")[0]
        for record in nest.machine.journal("rbee-hive.service", f"_SYSTEMD_INVOCATION_ID={tale.hive['InvocationID']}")
        if "shut" in record["MESSAGE"]
    ]
    assert said == [first, *(f"shut down {number}/5" for number in range(1, 6)), last]


@then("the definitions, the models and the queen's database are still on disk")
def kept_on_disk(nest: House, tale: Tale) -> None:
    for worker in tale.workers:
        assert nest.machine.path(f"/etc/rbee/workers/{worker}.yaml").is_file()
    assert nest.machine.path(f"{MODELS}/{TINY}/model.onnx").is_file()
    assert list(nest.machine.path("/var/lib/rbee/queen").glob("*"))


@then("without that line of the test a worker has 30 s, and the hive stays for as long")
def shipped_limits(nest: House) -> None:
    assert nest.unit("untouched")["TimeoutStopUSec"] == "30s"
    assert nest.machine.unit("rbee-hive.service")["TimeoutStopUSec"] == "35s"


@when("all are stopped through the hive at once")
def stop_all(nest: House, tale: Tale) -> None:
    tale.since = time.monotonic()
    for worker in tale.workers:
        assert nest.hive_admin.call("DELETE", f"/v1/workers/{worker}").status == 202


@then(parsers.parse("all are stopped within {limit:d} s of the last order"))
def all_stopped(nest: House, tale: Tale, limit: int) -> None:
    until(lambda: all(row["state"] == "stopped" for row in nest.hive_rows().values()), 3 * limit)
    assert time.monotonic() - tale.since < 15
    exits = [ending(nest, tale, worker)[1] for worker in tale.workers]
    assert max(exits) - min(exits) < limit * 1_000_000


@then('each ended by itself with exit code 0, and the hive\'s log says "worker stopped" for each and never "killed"')
def none_killed(nest: House, tale: Tale) -> None:
    for worker in tale.workers:
        assert ended_well(nest, tale, worker)
        (record,) = log_has(nest, tale, "worker stopped", worker)[-1:]
        assert record["RBEE_PID"] == tale.life(worker)["MainPID"]
        life = {"RBEE_INVOCATION_ID": tale.life(worker)["InvocationID"]}.items()
        assert not [r for r in records(nest, tale, "worker force-killed", worker) if life <= r.items()]


def ended_well(nest: House, tale: Tale, worker: str) -> bool:
    row = nest.hive_rows()[worker]
    told = (row["result"], row["exit_status"], row["exit_signal"])
    return told == ("success", 0, 0) and ending(nest, tale, worker)[0] == "success"


# HIVE-05, HIVE-10, HIVE-11, HIVE-21


@when("it is stopped through the queen")
def stop_by_queen(nest: House, tale: Tale, watch: Watch) -> None:
    tale.since = time.monotonic()
    assert nest.admin.post("/v2/workers/shutdown", {"worker_id": tale.worker}).status == 202


@then(parsers.parse('the queen hears that it is draining, then that it failed with the reason "{reason}"'))
def draining_then_killed(tale: Tale, watch: Watch, reason: str) -> None:
    failed = watch.wait_state(tale.worker, "failed", 20)
    tale.took = failed.at - tale.since
    assert watch.states(tale.worker)[-2:] == ["draining", "failed"]
    assert failed.row["reason"] == reason
    assert (failed.row["result"], failed.row["exit_signal"]) == ("timeout", 9)
    assert failed.row["pid"] == int(tale.life()["MainPID"])


@then("systemd had sent it SIGKILL after its limit, not before")
def killed_at_limit(nest: House, tale: Tale) -> None:
    assert tale.took >= 1.9
    said = [record["MESSAGE"] for record in nest.machine.journal(f"rbee-worker@{tale.worker}.service", "_PID=1")]
    assert any("State 'stop-sigterm' timed out. Killing." in line for line in said), said
    assert any(f"Killing process {tale.life()['MainPID']}" in line for line in said), said


@then(parsers.parse('the hive\'s record "{message}" has the worker, its PID, the reason, signal 9 and a time'))
def kill_record(nest: House, tale: Tale, message: str) -> None:
    (record,) = log_has(nest, tale, message, tale.worker)
    assert record["RBEE_PID"] == tale.life()["MainPID"]
    assert (record["RBEE_REASON"], record["RBEE_EXIT_SIGNAL"]) == ("force-killed", "9")
    assert abs(int(record["__REALTIME_TIMESTAMP"]) / 1e6 - time.time()) < 60


@then(parsers.parse('"rbee worker list" shows it as failed and force-killed'))
def list_shows_kill(nest: House, tale: Tale) -> None:
    line = table_line(nest, tale.worker)
    assert "failed" in line
    assert "force-killed" in line


def table_line(nest: House, worker: str) -> str:
    shown = nest.machine.run(["rbee", "worker", "list"]).stdout
    (line,) = [line for line in shown.splitlines() if line.split()[:1] == [worker]]
    return line


# HIVE-06


@given(parsers.parse('a ready worker "{worker}" with a request that its client does not read on'))
def with_request(nest: House, tale: Tale, things: ExitStack, watch: Watch, worker: str) -> None:
    run(nest, tale, worker, TALK, name=LONG_NAME, idle_limit_s=0)
    body = long_request(nest.worker(worker))
    tale.stream = things.enter_context(held_request(nest.worker(worker), body))
    assert nest.worker(worker).get("/health").json["slots_busy"] == 1


@when("it is stopped with systemctl")
def stop_no_block(nest: House, tale: Tale) -> None:
    nest.machine.systemctl("stop", "--no-block", f"rbee-worker@{tale.worker}")


@then("the queen and the hive say that it is draining")
def is_draining(nest: House, tale: Tale, watch: Watch) -> None:
    watch.wait_state(tale.worker, "draining")
    assert nest.rows()[tale.worker]["state"] == "draining"
    assert nest.hive_rows()[tale.worker]["state"] == "draining"


@then("a new request to it gets 503 WORKER_DRAINING")
def refused(nest: House, tale: Tale) -> None:
    answer = nest.worker(tale.worker).post("/v1/inference", {"prompt": "Hello!"})
    assert (answer.status, answer.error["code"]) == (503, "WORKER_DRAINING")


@when("the client reads on")
def read_on(tale: Tale) -> None:
    assert tale.stream is not None
    tale.calls = [{"data": event.data} for event in tale.stream]


@then("its answer is whole")
def whole(tale: Tale) -> None:
    chunks = [json.loads(call["data"]) for call in tale.calls if call["data"] != b"[DONE]"]
    assert tale.calls[-1]["data"] == b"[DONE]"
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk.get("choices")]
    assert [reason for reason in reasons if reason] == ["length"]
    assert len(chunks) > 500


@then("the worker ended by itself with exit code 0 and is stopped")
def ended_itself(nest: House, tale: Tale, watch: Watch) -> None:
    watch.wait_state(tale.worker, "stopped")
    assert ended_well(nest, tale, tale.worker)


# HIVE-08, HIVE-09


@then("the hive's list, the queen's list and \"rbee worker list\" show systemd's MainPID")
def pid_shown(nest: House, tale: Tale) -> None:
    pid = tale.life()["MainPID"]
    assert nest.hive_rows()[tale.worker]["pid"] == nest.rows()[tale.worker]["pid"] == int(pid)
    assert pid in table_line(nest, tale.worker).split()


@given(parsers.parse('a worker "{worker}" that takes seconds to load'))
def slow_worker(nest: House, tale: Tale, slow_model: Path, worker: str) -> None:
    if not nest.machine.path(f"{MODELS}/{SLOW}").exists():
        nest.machine.put(slow_model, f"{MODELS}/{SLOW}")
        nest.machine.run(["chmod", "-R", "a+rX", f"{MODELS}/{SLOW}"])
    nest.define_worker(worker, SLOW, idle_limit_s=0)
    tale.worker = worker


@when("it is started and the queen is watched")
def start_watched(nest: House, tale: Tale, watch: Watch) -> None:
    nest.start_worker(tale.worker)
    watch.wait_state(tale.worker, "idle")
    tale.lives[tale.worker] = nest.unit(tale.worker)


@then("it was loading, then idle, with one MainPID and one InvocationID, which are systemd's")
def one_life(tale: Tale, watch: Watch) -> None:
    rows = [seen.row for seen in watch.seen if seen.worker == tale.worker and seen.state in ("loading", "idle")]
    assert [row["state"] for row in rows if row["state"] == "loading"]
    lives = {(str(row["pid"]), row["invocation_id"]) for row in rows}
    assert lives == {(tale.life()["MainPID"], tale.life()["InvocationID"])}


@when("it is restarted with systemctl")
def restart_worker(nest: House, tale: Tale) -> None:
    nest.machine.systemctl("restart", f"rbee-worker@{tale.worker}")


@then("it is ready again with another InvocationID and another time of its start")
def another_life(nest: House, tale: Tale, watch: Watch) -> None:
    old = tale.life()["InvocationID"]
    row = watch.wait(lambda seen: _new_life(seen, tale.worker, old), "a new life").row
    assert row["invocation_id"] == nest.unit(tale.worker)["InvocationID"]
    first = watch.wait_state(tale.worker, "idle").row
    assert row["spawned_unix"] > first["spawned_unix"]
    assert watch.states(tale.worker)[-3:] == ["stopped", "loading", "idle"] or "draining" in watch.states(tale.worker)


# HIVE-12, a stranger


@given(parsers.parse('a ready worker "{worker}" whose unit is stopped then'))
def stopped_worker(nest: House, tale: Tale, worker: str) -> None:
    run(nest, tale, worker, idle_limit_s=0)
    tale.url = nest.rows()[worker]["url"]


@when("a stranger's HTTP server takes its address")
def stranger(nest: House, tale: Tale) -> None:
    port = tale.url.rpartition(":")[2]
    script = (
        "import http.server, subprocess, sys\n"
        "class Stranger(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        print(self.command, self.path, flush=True)\n"
        "        self.send_response(200); self.end_headers()\n"
        "    do_POST = do_GET\n"
        "    def log_message(self, *_): pass\n"
        "subprocess.run(['systemctl', 'stop', sys.argv[2]], check=True)\n"
        "server = http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Stranger)\n"
        "print('listening', flush=True)\n"
        "server.serve_forever()\n"
    )
    unit = f"rbee-worker@{tale.worker}.service"
    tale.stranger = nest.machine.popen(["python3", "-c", script, port, unit])
    assert tale.stranger.stdout is not None
    assert tale.stranger.stdout.readline() == "listening\n"


@then("the hive says in its log that this is not ours")
def not_ours(nest: House, tale: Tale) -> None:
    (record,) = log_has(nest, tale, "something answers on the address of a worker whose unit is gone", tale.worker)
    assert record["RBEE_URL"] == tale.url


@then("the worker has no address in the hive's list and in the queen's")
def no_address(nest: House, tale: Tale) -> None:
    for row in (nest.hive_rows()[tale.worker], nest.rows()[tale.worker]):
        assert (row["state"], row["url"]) == ("stopped", None)


@then("a request for its model is answered by its next life at another address, and none reached the stranger")
def never_asked(nest: House, tale: Tale) -> None:
    answer = infer(nest)
    assert answer.status == 200, answer.body
    row = nest.wait_state(tale.worker, "idle", "busy")
    assert row["url"] not in (None, tale.url)
    assert tale.stranger is not None
    assert tale.stranger.stdout is not None
    tale.stranger.kill()
    asked = tale.stranger.stdout.read().splitlines()
    assert set(asked) <= {"GET /health"}, asked


# HIVE-13


@given(
    parsers.re(r'a worker "(?P<worker>\w+)" that takes seconds to load, and that gives up after 1.5 s without progress')
)
def gives_up(nest: House, tale: Tale, slow_model: Path, worker: str) -> None:
    set_unit(nest, worker, "RestartSec=60")
    slow_worker(nest, tale, slow_model, worker)
    nest.define_worker(worker, SLOW, load_stall_s=1.5)


@given(
    parsers.re(
        r'a worker "(?P<worker>\w+)" that takes seconds to load, '
        r"that is stopped by SIGSTOP while it loads, for systemd's limit"
    )
)
def stopped_in_load(nest: House, tale: Tale, slow_model: Path, worker: str) -> None:
    set_unit(nest, worker, "RestartSec=60", "TimeoutStartSec=3")
    slow_worker(nest, tale, slow_model, worker)
    # systemd's limit is pushed on by 10 s more than this, so that the worker is the first to end a stall
    nest.define_worker(worker, SLOW, load_stall_s=1.5)
    tale.hung = [worker]


@when("it is started without waiting")
def start_no_wait(nest: House, tale: Tale, watch: Watch) -> None:
    nest.start_worker(tale.worker, wait=False)
    if tale.hung:
        watch.wait(lambda seen: "creating" in str(seen.row["progress"]), "the session is being created", 20)
        signal_worker(nest, tale.worker, "STOP")


@then(parsers.parse('it fails with the reason "{reason}" and its last progress "{progress}"'))
def load_timed_out(nest: House, tale: Tale, watch: Watch, reason: str, progress: str) -> None:
    row = watch.wait_state(tale.worker, "failed", 40).row
    assert row["reason"] == reason, row
    assert row["progress"]["stage"] == progress, row
    assert nest.unit(tale.worker)["Result"] == ("timeout" if tale.hung else "exit-code")
    assert row["pid"] > 0


# HIVE-17


@given("every system call of the hive that sends a signal is recorded")
def trace_signals(nest: House, tale: Tale) -> None:
    calls = "trace=kill,tkill,tgkill,rt_sigqueueinfo,rt_tgsigqueueinfo,pidfd_send_signal,connect"
    command = f"strace -f -e {calls} -e signal=none -o /run/hive.trace -p {tale.hive['MainPID']}"
    tale.trace = nest.machine.popen(["sh", "-c", f"echo $$; exec {command}"])
    assert tale.trace.stdout is not None
    tale.pid = int(tale.trace.stdout.readline())
    assert "attached" in tale.trace.stdout.readline()


@when("it is stopped while it hangs, started, killed from outside, restarted and stopped through the hive")
def many_ends(nest: House, tale: Tale, watch: Watch) -> None:
    hive, worker = nest.hive_admin, tale.worker
    hang(nest, worker)
    assert hive.call("DELETE", f"/v1/workers/{worker}").status == 202
    watch.wait_state(worker, "failed")
    assert hive.post("/v1/workers/spawn", {"worker_id": worker}).status == 202
    second = nest.wait_state(worker, "idle")
    checks = hive.metric("rbee_hive_health_checks_total", result="healthy")
    until(lambda: hive.metric("rbee_hive_health_checks_total", result="healthy") > checks)
    signal_worker(nest, worker, "KILL")
    third = watch.wait(
        lambda seen: _new_life(seen, worker, second["invocation_id"]) and seen.row["restarts"] > 0, "a third life"
    )
    assert hive.post(f"/v1/workers/{worker}/restart", {}).status == 202
    watch.wait(lambda seen: _new_life(seen, worker, third.row["invocation_id"]) and seen.at > third.at, "a fourth life")
    assert hive.call("DELETE", f"/v1/workers/{worker}").status == 202
    watch.wait_state(worker, "stopped")


@then("the hive sent no signal to any process")
def no_signals(nest: House, tale: Tale) -> None:
    assert tale.trace is not None
    nest.machine.run(["kill", "-INT", str(tale.pid)])
    tale.trace.wait(10)
    lines = nest.machine.read("/run/hive.trace").splitlines()
    assert any("worker.sock" in line for line in lines), lines[-20:]
    assert [line for line in lines if "kill(" in line or "send_signal(" in line or "queueinfo(" in line] == []
    assert same_hive(nest, tale)


@then("a stopped worker has no PID in the hive's list")
def no_pid(nest: House, tale: Tale) -> None:
    until(lambda: nest.hive_rows()[tale.worker]["state"] == "stopped")
    assert nest.hive_rows()[tale.worker]["pid"] == 0


# HIVE-18, HIVE-19


@when("its process is killed by SIGKILL")
def sigkill(nest: House, tale: Tale, watch: Watch) -> None:
    tale.since = time.monotonic()
    tale.pid = signal_worker(nest, tale.worker, "KILL")


@then(
    parsers.parse(
        "within {limit:d} s the queen hears that it failed: crashed by SIGKILL, with its PID, result and signal"
    )
)
def crashed(tale: Tale, watch: Watch, limit: int) -> None:
    failed = watch.wait_state(tale.worker, "failed", 20)
    row = failed.row
    assert (row["reason"], row["pid"], row["result"], row["exit_signal"]) == ("crashed: SIGKILL", tale.pid, "signal", 9)
    assert failed.at - tale.since < limit


@then("there is no zombie on the machine")
def no_zombie(nest: House, tale: Tale) -> None:
    states = nest.machine.run(["ps", "-A", "-o", "stat=,pid=,comm="]).stdout.splitlines()
    assert len(states) > 5
    assert [line for line in states if line.startswith("Z")] == []
    assert not nest.machine.path(f"/proc/{tale.pid}").exists()


@then("the hive's log has the crash with the PID")
def crash_logged(nest: House, tale: Tale) -> None:
    (record,) = log_has(nest, tale, "worker failed", tale.worker)
    assert (record["RBEE_PID"], record["RBEE_EXIT_SIGNAL"]) == (str(tale.pid), "9")
    assert int(record["PRIORITY"]) == 4


@when("its unit is stopped and its definition removed")
def removed(nest: House, tale: Tale) -> None:
    nest.machine.systemctl("stop", f"rbee-worker@{tale.worker}")
    nest.machine.systemctl("reset-failed", f"rbee-worker@{tale.worker}", check=False)
    nest.machine.path(f"/etc/rbee/workers/{tale.worker}.yaml").unlink()


@then("hive and queen do not list it any more")
def forgotten(nest: House, tale: Tale) -> None:
    until(lambda: tale.worker not in nest.hive_rows(), 15)
    until(lambda: tale.worker not in nest.rows(), 15)
