"""The hive on a real systemd and D-Bus: what it knows of its workers, whatever happens to bus, systemd or itself."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.machines.testbed import Machine, Network, wait_until
from tests.machines.testbed.project import Installation

HIVE = "/run/rbee/hive.sock"
QUEEN = "/run/rbee/queen.sock"
MODEL = "/var/lib/rbee/models/tiny-tensor"
WORKERS = ("w1", "w2", "w3")
Row = dict[str, Any]


@pytest.fixture(scope="module")
def node(installation: Installation) -> Iterator[Machine]:
    with Network() as network:
        machine = network.add("node", layers=installation.layers())
        machine.write("/etc/rbee/hive.yaml", "health_interval_s: 1\nqueen: {callback_url: 'http://127.0.0.1:8080'}\n")
        for worker in WORKERS:
            machine.write(f"/etc/rbee/workers/{worker}.yaml", f"model: {MODEL}\n")
        machine.systemctl("start", "rbee-queen.service", "rbee-hive.service")
        yield machine


@pytest.fixture(autouse=True)
def all_stopped(node: Machine) -> Iterator[None]:
    yield
    units = [f"rbee-worker@{worker}" for worker in WORKERS]
    node.systemctl("stop", "rbee-worker@*")
    node.systemctl("reset-failed", *units, check=False)
    wait_until(lambda: all(row["state"] == "stopped" for row in rows(node).values()), "all workers are stopped")


def rows(node: Machine, where: str = HIVE) -> dict[str, Row]:
    path = "/v1/workers/list" if where == HIVE else "/v2/workers/list"
    answer = node.http("GET", where, path)
    assert answer.status == 200, answer.body
    return {row["worker_id"]: row for row in json.loads(answer.body)["workers"]}


def state(node: Machine, worker: str, where: str = HIVE) -> str | None:
    return rows(node, where).get(worker, {}).get("state")


def until(node: Machine, worker: str, wanted: str, where: str = HIVE, limit: float = 30) -> Row:
    wait_until(lambda: state(node, worker, where) == wanted, f"{worker} is {wanted} at {where}", limit)
    return rows(node, where)[worker]


def metric(node: Machine, name: str) -> float:
    answer = node.http("GET", HIVE, "/metrics")
    for line in answer.body.decode().splitlines():
        if line.startswith(name + " "):
            return float(line.split()[1])
    raise AssertionError(f"there is no metric {name}")


def metrics_pass(node: Machine, name: str) -> Callable[[], bool]:
    before = metric(node, name)
    return lambda: metric(node, name) > before


def start(node: Machine, *workers: str) -> None:
    node.systemctl("start", *(f"rbee-worker@{worker}" for worker in workers))
    for worker in workers:
        until(node, worker, "idle")


def test_an_operators_start_is_as_good_as_ours(node: Machine) -> None:
    start(node, "w1")
    row, unit = rows(node)["w1"], node.unit("rbee-worker@w1")
    assert row["pid"] == int(unit["MainPID"])
    assert row["invocation_id"] == unit["InvocationID"]
    assert row["url"].startswith("http://127.0.0.1:")
    assert until(node, "w1", "idle", QUEEN)["invocation_id"] == row["invocation_id"]
    node.systemctl("stop", "rbee-worker@w1")
    assert until(node, "w1", "stopped")["url"] is None
    until(node, "w1", "stopped", QUEEN)


def test_readiness_is_heard_in_milliseconds_and_told_once(node: Machine) -> None:
    told = metric(node, 'rbee_hive_worker_ready_callbacks_total{status="success"}')
    count, total = (metric(node, f"rbee_hive_ready_signal_seconds_{part}") for part in ("count", "sum"))
    for _ in range(10):
        start(node, "w1")
        node.systemctl("stop", "rbee-worker@w1")
        until(node, "w1", "stopped")
    heard = metric(node, "rbee_hive_ready_signal_seconds_count") - count
    assert heard == 10
    assert (metric(node, "rbee_hive_ready_signal_seconds_sum") - total) / heard < 0.05
    assert metric(node, 'rbee_hive_worker_ready_callbacks_total{status="success"}') - told == 10


def test_spawn_and_stop_by_the_unprivileged_hive(node: Machine) -> None:
    order = {"worker_id": "spawned", "model_ref": f"file://{MODEL}"}
    answer = node.http("POST", HIVE, "/v1/workers/spawn", json_body=order)
    assert answer.status == 202, answer.body
    assert json.loads(answer.body)["state"] == "loading"
    until(node, "spawned", "idle")
    again = node.http("POST", HIVE, "/v1/workers/spawn", json_body=order)
    assert again.status == 200
    stop = node.http("DELETE", HIVE, "/v1/workers/spawned?forget=true")
    assert stop.status == 202, stop.body
    wait_until(lambda: state(node, "spawned") in (None, "stopped"), "the spawned worker is stopped")
    assert not node.path("/var/lib/rbee/workers/spawned.yaml").exists()
    wait_until(lambda: "spawned" not in rows(node), "the spawned worker is forgotten")


def test_a_kill_from_outside_is_a_crash_and_heals(node: Machine) -> None:
    start(node, "w1")
    life = rows(node)["w1"]
    began = time.monotonic()
    node.run(["kill", "-KILL", str(life["pid"])])
    row = until(node, "w1", "failed", limit=1.0)
    assert time.monotonic() - began < 1.0
    assert (row["reason"], row["exit_signal"], row["pid"]) == ("crashed: SIGKILL", 9, life["pid"])
    until(node, "w1", "idle")
    assert rows(node)["w1"]["invocation_id"] != life["invocation_id"]


def test_a_wrong_definition_is_said_and_not_tried_again(node: Machine) -> None:
    node.write("/etc/rbee/workers/wrong.yaml", "model: /nowhere\nslots: many\n")
    node.systemctl("start", "rbee-worker@wrong", check=False)
    row = until(node, "wrong", "failed")
    assert row["exit_status"] == 78
    assert row["restarts"] == 0
    assert "wrong.yaml:2: slots" in row["status_text"]
    node.path("/etc/rbee/workers/wrong.yaml").unlink()
    node.systemctl("reset-failed", "rbee-worker@wrong")
    wait_until(lambda: "wrong" not in rows(node), "the worker without a definition is forgotten")


def test_daemon_reload_is_no_news(node: Machine) -> None:
    start(node, *WORKERS)
    time.sleep(1.5)
    before = {worker: (row["since_unix"], row["revision"]) for worker, row in rows(node).items()}
    for _ in range(3):
        node.systemctl("daemon-reload")
    time.sleep(0.5)
    after = {worker: (row["since_unix"], row["revision"]) for worker, row in rows(node).items()}
    assert after == before


def test_daemon_reexec_loses_nothing(node: Machine) -> None:
    start(node, "w1")
    life = rows(node)["w1"]["invocation_id"]
    node.systemctl("daemon-reexec")
    node.systemctl("start", "rbee-worker@w2")
    until(node, "w2", "idle", limit=5)
    assert rows(node)["w1"]["invocation_id"] == life
    node.systemctl("stop", "rbee-worker@w1")
    until(node, "w1", "stopped", limit=5)


def test_a_lost_bus_loses_nothing(node: Machine) -> None:
    start(node, "w1")
    healed = metrics_pass(node, "rbee_hive_bus_reconnects_total")
    pid = node.unit("dbus.service")["MainPID"]
    w1 = rows(node)["w1"]["pid"]
    node.run(["sh", "-c", f"kill -KILL {pid}; kill -TERM {w1}"])
    wait_until(healed, "the hive is on the new bus", 5)
    until(node, "w1", "stopped", limit=5)
    node.systemctl("start", "rbee-worker@w2")
    until(node, "w2", "idle", limit=5)


def test_a_killed_hive_finds_its_workers_again(node: Machine) -> None:
    start(node, *WORKERS)
    lives = {worker: rows(node)[worker]["invocation_id"] for worker in WORKERS}
    node.systemctl("kill", "--signal=KILL", "rbee-hive")
    wait_until(lambda: node.unit("rbee-hive")["ActiveState"] == "activating", "the hive died", 5, 0.01)
    node.wait_for_unit("rbee-hive", limit=10)
    began = time.monotonic()
    wait_until(lambda: {w: r["invocation_id"] for w, r in rows(node).items() if r["state"] == "idle"} == lives, "whole")
    assert time.monotonic() - began < 2.0
    for worker in WORKERS:
        until(node, worker, "idle", QUEEN, limit=2)


def test_a_killed_queen_is_told_everything_again(node: Machine) -> None:
    start(node, *WORKERS)
    node.systemctl("kill", "--signal=KILL", "rbee-queen")
    wait_until(lambda: node.unit("rbee-queen")["ActiveState"] == "activating", "the queen died", 5, 0.01)
    node.wait_for_unit("rbee-queen", limit=10)
    began = time.monotonic()
    for worker in WORKERS:
        until(node, worker, "idle", QUEEN, limit=2)
    assert time.monotonic() - began < 2.0


def test_the_hive_is_small_and_its_status_says_how_it_is(node: Machine) -> None:
    start(node, *WORKERS)
    wait_until(lambda: "3 workers ready; queen reachable" in node.unit("rbee-hive")["StatusText"], "status", 30)
    pid = node.unit("rbee-hive")["MainPID"]
    resident = next(line for line in node.read(f"/proc/{pid}/status").splitlines() if line.startswith("VmRSS"))
    assert int(resident.split()[1]) <= 60 * 1024


def test_an_idle_worker_is_stopped_and_the_checks_are_no_activity(node: Machine) -> None:
    node.write("/etc/rbee/workers/w3.yaml", f"model: {MODEL}\nidle_limit_s: 3\n")
    start(node, "w3")
    row = until(node, "w3", "stopped", limit=15)
    assert row["reason"] == "idle"
    until(node, "w3", "stopped", QUEEN)
    lines = [r for r in node.journal("rbee-hive", "RBEE_WORKER=w3") if r.get("RBEE_REASON") == "idle"]
    assert [r["MESSAGE"].split(" event=")[0] for r in lines].count("worker is idle past its limit, stopping it") == 1
    node.write("/etc/rbee/workers/w3.yaml", f"model: {MODEL}\n")


def test_a_worker_whose_http_is_dead_is_unhealthy_then_restarted(node: Machine) -> None:
    start(node, "w1")
    life = rows(node)["w1"]
    node.run(["kill", "-STOP", str(life["pid"])])
    wait_until(lambda: rows(node)["w1"]["invocation_id"] != life["invocation_id"], "another life", 60)
    until(node, "w1", "idle", limit=60)
    told = [record["MESSAGE"] for record in node.journal("rbee-hive", "RBEE_WORKER=w1")]
    assert any(message.startswith("worker unhealthy") for message in told)
    assert metric(node, 'rbee_hive_health_checks_total{result="unhealthy"}') >= 3


def test_the_log_of_a_worker_comes_from_the_journal(node: Machine) -> None:
    start(node, "w1")
    answer = node.http("GET", HIVE, "/v1/workers/w1/logs?lines=50", headers={"Accept": "application/x-ndjson"})
    assert answer.status == 200
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert any(line["message"].startswith("worker ready") and line["fields"].get("worker") == "w1" for line in lines)


def test_every_hive_route_over_tcp_wants_the_token(node: Machine) -> None:
    for path in ("/v1/health", "/v1/workers/list", "/v1/resources", "/v1/capabilities"):
        assert node.http("GET", 9200, path).status == 401
    token = node.read("/etc/credstore/rbee.hive_api_token").strip()
    assert node.http("GET", 9200, "/v1/workers/list", token=token).status == 200
    assert node.http("GET", 9200, "/health").status == 200


def test_the_provider_that_really_starts_is_told_apart(node: Machine) -> None:
    answer = node.http("GET", HIVE, "/v1/capabilities")
    assert answer.status == 200, answer.body
    told = json.loads(answer.body)
    assert told["backends"] == ["cpu"]
    assert told["providers"]["CUDAExecutionProvider"]["reason"]


SOURCE = """
mkdir -p /srv/web/tiny && cp -r /var/lib/rbee/models/tiny-tensor/. /srv/web/tiny && cd /srv/web/tiny &&
find . -type f ! -name SHA256SUMS -exec sha256sum {} + > SHA256SUMS
"""


def download(node: Machine, reference: str) -> Row:
    """Have the hive fetch a model; how it ended."""
    answer = node.http("POST", HIVE, "/v1/models/download", json_body={"reference": reference})
    assert answer.status in (200, 202), answer.body
    model = json.loads(answer.body)["model"]
    shown: Row = {}

    def over() -> bool:
        shown.update(json.loads(node.http("GET", HIVE, f"/v1/models/download/progress?model={model}").body))
        return shown["stage"] in ("complete", "failed")

    wait_until(over, f"{reference} has come or not", 60)
    return shown


def test_the_hive_fetches_models_within_its_sandbox_and_a_worker_serves_one(node: Machine) -> None:
    node.run(["sh", "-c", SOURCE])
    node.run(["systemd-run", "--unit=web", "python3", "-m", "http.server", "--directory", "/srv/web", "8099"])
    asked = ["curl", "-sf", "http://127.0.0.1:8099/tiny/SHA256SUMS"]
    wait_until(lambda: node.run(asked, check=False).returncode == 0, "the source answers", 20)
    good = node.read("/etc/rbee/hive.yaml")
    node.write("/etc/rbee/hive.yaml", good + "models: {hf_endpoint: 'http://127.0.0.1:8099'}\n")
    node.systemctl("reload", "rbee-hive")
    try:
        # the hub's client runs as a child of the hive, under the same sandbox
        assert download(node, "hf:org/none")["error"]["code"] == "MODEL_SOURCE_NOT_FOUND"
        reference = "http://127.0.0.1:8099/tiny/"
        order = {"worker_id": "fetched", "model_ref": reference}
        assert node.http("POST", HIVE, "/v1/workers/spawn", json_body=order).status == 202
        row = until(node, "fetched", "idle", limit=60)
        assert (row["model"], row["model_ref"]) == ("tiny", reference)
        kept = download(node, reference)["local_path"]
        assert node.run(["stat", "-c", "%U %a", kept]).stdout.split() == ["rbee-hive", "755"]
        node.systemctl("stop", "rbee-worker@fetched")
        node.systemctl("start", "rbee-worker@fetched")  # as an operator does, without the hive
        until(node, "fetched", "idle", limit=60)
    finally:
        node.http("DELETE", HIVE, "/v1/workers/fetched?forget=true")
        node.write("/etc/rbee/hive.yaml", good)
        node.systemctl("reload", "rbee-hive")
        node.systemctl("stop", "web")


def test_a_reload_keeps_the_old_configuration_where_the_new_one_is_wrong(node: Machine) -> None:
    good = node.read("/etc/rbee/hive.yaml")
    node.write("/etc/rbee/hive.yaml", good + "idle_limit_s: soon\n")
    node.systemctl("reload", "rbee-hive")
    wait_until(lambda: "reload refused" in node.unit("rbee-hive")["StatusText"], "the refusal is shown", 5)
    node.write("/etc/rbee/hive.yaml", good)
    node.systemctl("reload", "rbee-hive")
    wait_until(lambda: "queen reachable" in node.unit("rbee-hive")["StatusText"], "the status is back", 5)


def test_a_stopped_hive_leaves_its_workers_and_no_complaint(node: Machine) -> None:
    start(node, "w1")
    pid = rows(node)["w1"]["pid"]
    began = time.time()
    node.systemctl("restart", "rbee-hive")
    assert int(node.unit("rbee-worker@w1")["MainPID"]) == pid
    until(node, "w1", "idle", limit=2)
    complaints = [
        record["MESSAGE"]
        for record in node.journal("rbee-hive")
        if int(record["PRIORITY"]) <= 4 and int(record["__REALTIME_TIMESTAMP"]) / 1e6 > began
    ]
    assert complaints == []
