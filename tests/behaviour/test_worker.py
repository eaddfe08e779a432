"""A worker's life: on plain processes where that shows it, on a real systemd where units and the journal matter."""

import os
import pty
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytest_bdd import given, scenarios, then, when

from rbee.keeper.demo.corpus import LONG_QUESTION, TOPICS, count_to_hundred
from rbee.keeper.demo.faulty import build_slow_load
from rbee.keeper.demo.graph import FLOAT, INT64, Graph
from tests.behaviour.support.house import MODELS, House
from tests.behaviour.support.http import Answer, Event, Http, Stream, until
from tests.behaviour.support.person import RBEE, Command, Done, Person
from tests.behaviour.support.processes import DaemonProcess
from tests.behaviour.support.stack import Stack, free_port
from tests.machines.testbed import Machine
from tests.machines.testbed.packages import CHECKOUT

scenarios("features/worker.feature")

TALK, MODEL = "talk", "bee-talk"
QUESTION, ANSWER = TOPICS[4].questions[0], TOPICS[4].answer
LONG = {"messages": [{"role": "user", "content": LONG_QUESTION}], "temperature": 0}
TENSOR = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}
LOAD_S = 4.0
EXIT_LIMIT_S = 30.0


@dataclass
class Story:
    """What a scenario has seen so far."""

    answers: list[Answer] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    stream: Stream | None = None
    done: Done | None = None
    command: Command | None = None
    process: DaemonProcess | None = None
    thread: threading.Thread | None = None
    port: int = 0
    pid: int = 0
    at: float = 0.0
    text: str = ""

    @property
    def ended(self) -> Done:
        assert self.done is not None
        return self.done


@pytest.fixture
def story() -> Iterator[Story]:
    made = Story()
    yield made
    if made.thread is not None:
        made.thread.join(60)
    if made.command is not None:
        made.command.close()
    if made.process is not None and made.process.process.poll() is None:
        made.process.stop()


@pytest.fixture
def things() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model that takes some seconds to load."""
    folder = tmp_path_factory.mktemp("models") / "slow"
    folder.mkdir()
    build_slow_load(folder, LOAD_S)
    return folder


def build_cannot_run(folder: Path) -> None:
    """A model that loads and whose every run fails: it looks up a row that its table does not have."""
    graph = Graph("cannot-run")
    import numpy as np

    index = graph.input("index", INT64, (1,))
    table = graph.weight("table", np.zeros((8, 4), np.float32))
    far = graph.node("Add", [index, graph.weight("far", np.array([100], np.int64))], "far_index")
    graph.output(graph.node("Gather", [table, far], "y", axis=0), FLOAT, (1, 4))
    graph.write(folder / "model.onnx")


# on plain processes


@given("a queen and a hive")
def queen_and_hive(stack: Stack) -> None:
    stack.start()


@pytest.fixture
def person(stack: Stack, tmp_path: Path) -> Person:
    sockets = ("--socket", stack.run_dir / "queen.sock", "--hive-socket", stack.run_dir / "hive.sock")
    return Person(tmp_path, *sockets)


@given("a worker that was started by hand")
def started_by_hand(stack: Stack, story: Story) -> None:
    story.process, story.text = stack.start_outside("byhand", MODEL)


def external(url: str, worker: str = "byhand") -> dict[str, Any]:
    return {"worker_id": worker, "url": url, "model_ref": f"file:///{MODEL}", "backend": "cpu", "device": 0}


@when("it is told to the hive with POST /v1/workers/ready")
def tell_hive(stack: Stack, story: Story) -> None:
    story.answers.append(stack.hive_admin.post("/v1/workers/ready", external(story.text)))


@then("the hive has checked and taken it, and the queen lists it as idle and not managed")
def taken(stack: Stack, story: Story) -> None:
    (answer,) = story.answers
    assert answer.status == 200, answer.body
    assert answer.json["success"] is True
    row = stack.wait_state("byhand", "idle")
    assert (row["managed"], row["url"], row["model"]) == (False, story.text, MODEL)


@then("a client of the queen gets its answer")
def client_answer(stack: Stack) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    answer = stack.client.post("/v1/chat/completions", body)
    assert answer.json["choices"][0]["message"]["content"] == ANSWER


@when("an address where nothing answers is told to the hive as a worker's")
def tell_nothing(stack: Stack, story: Story) -> None:
    nothing = f"http://127.0.0.1:{free_port()}"
    story.answers.append(stack.hive_admin.post("/v1/workers/ready", external(nothing, "nobody")))


@then("it is refused and in nobody's list")
def refused(stack: Stack, story: Story) -> None:
    assert story.answers[-1].status == 503
    assert story.answers[-1].error["message"]
    assert "nobody" not in {row["worker_id"] for row in stack.hive_admin.get("/v1/workers/list").json["workers"]}
    assert "nobody" not in stack.rows()


@given("another program listens on the first port of a worker's range")
def take_port(stack: Stack, story: Story, things: ExitStack) -> None:
    story.port = free_port()
    taken = things.enter_context(socket.socket())
    taken.bind(("127.0.0.1", story.port))
    taken.listen()
    ports = {"first": story.port, "last": min(story.port + 50, 65535)}
    stack.define_worker(TALK, MODEL, ports=ports, idle_limit_s=0)


@when("the worker is started")
def start_worker(stack: Stack) -> None:
    stack.spawn(TALK)
    stack.wait_state(TALK, "idle")


@then("it listens on the next port and serves there")
def next_port(stack: Stack, story: Story) -> None:
    port = int(stack.row(TALK)["url"].rpartition(":")[2])
    assert story.port < port <= story.port + 50
    assert Http(stack.row(TALK)["url"]).get("/health").json["worker_id"] == TALK
    assert stack.hive is not None
    stack.hive.wait_log(lambda line: "ports taken" in line and f"port={port}" in line)
    client_answer(stack)


def define_slow(stack: Stack, slow: Path, **fields: object) -> None:
    link = stack.state_dir / "models" / "slow"
    link.mkdir(parents=True)
    os.link(slow / "model.onnx", link / "model.onnx")
    stack.define_worker("slow", str(link), idle_limit_s=0, **fields)


@when("the worker of a slow model is started")
def start_slow(stack: Stack, slow: Path) -> None:
    define_slow(stack, slow)
    stack.spawn("slow")
    path = stack.run_dir / "workers" / "slow" / "worker.sock"
    until(path.exists)


@then("its /v1/ready says not ready, loading, and where progress is told")
def not_ready(stack: Stack, story: Story) -> None:
    answer = until(lambda: answers(stack.worker("slow"), "/v1/ready"))
    assert answer.json == {
        "ready": False, "state": "loading", "model_loaded": False, "progress_url": "/v1/loading/progress",
    }  # fmt: skip


def answers(http: Http, path: str) -> Answer | None:
    """The answer, or None while the worker does not listen yet."""
    try:
        return http.get(path)
    except OSError:
        return None


@then("an inference is refused with 503 MODEL_LOADING")
def refused_loading(stack: Stack) -> None:
    answer = stack.worker("slow").post("/v2/models/slow/infer", TENSOR)
    assert (answer.status, answer.error["code"]) == (503, "MODEL_LOADING")
    assert answer.headers["Retry-After"]
    assert answer.error["details"]["loading"]["state"] == "loading"


@when("its progress is followed to the end")
def follow_progress(stack: Stack, story: Story) -> None:
    with stack.worker("slow").stream("GET", "/v1/loading/progress") as stream:
        story.events = list(stream)


@then("its /v1/ready says ready, idle and model loaded")
def is_ready(stack: Stack, story: Story) -> None:
    told_whole(story.events)
    answer = stack.worker("slow").get("/v1/ready").json
    assert (answer["ready"], answer["state"], answer["model_loaded"]) == (True, "idle", True)
    assert stack.worker("slow").post("/v2/models/slow/infer", TENSOR).status == 200


def told_whole(events: list[Event]) -> None:
    """Progress with stage, done and total, then ready, then [DONE]."""
    assert [event.name for event in events[-2:]] == ["ready", "message"]
    assert events[-1].data == b"[DONE]"
    stages = [event.json for event in events[:-2]]
    assert {event.name for event in events[:-2]} == {"progress"}
    assert stages
    assert "creating the session" in [stage["stage"] for stage in stages]
    counted = [stage["done"] for stage in stages if stage["unit"] == "steps" and stage["total"]]
    assert counted == sorted(counted)
    assert all(0 <= stage["done"] <= stage["total"] for stage in stages)
    assert events[-2].json["state"] == "idle"


@when("a person at a terminal starts the worker of a slow model with rbee worker start")
def start_at_terminal(stack: Stack, slow: Path, story: Story, person: Person) -> None:
    define_slow(stack, slow)
    master, slave = pty.openpty()
    env = person.env | {"TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        [*RBEE, *person.flags, "worker", "start", "slow"], env=env, stdin=slave, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        story.text = _read_terminal(master)
        code = process.wait(30)
    os.close(master)
    story.done = Done(code, story.text, "")


def _read_terminal(master: int) -> str:
    shown = b""
    while True:
        try:
            chunk = os.read(master, 4096)
        except OSError:  # the last process at the terminal has ended
            return shown.decode(errors="replace")
        shown += chunk


@then("a bar with the stages of loading is drawn, and it exits with 0")
def bar_drawn(stack: Stack, story: Story) -> None:
    assert story.ended.code == 0, story.text
    assert "loading: creating the session" in story.text
    assert "━" in story.text
    assert re.search(r"\d+%", story.text)
    assert "worker slow: idle" in story.text


@given("the worker of a slow model may go without progress for a quarter of a second")
def impatient(stack: Stack, slow: Path) -> None:
    define_slow(stack, slow, load_stall_s=0.25)


@when("a person starts it with rbee worker start")
def person_starts(story: Story, person: Person) -> None:
    story.done = person.rbee("worker", "start", "slow")


@then("it exits with 1, names LOADING_TIMEOUT, the time that passed and the command that shows the log")
def loading_timeout(story: Story) -> None:
    assert story.ended.code == 1, story.ended
    assert "(LOADING_TIMEOUT)" in story.ended.err, story.ended.err
    assert re.search(r"after \d", story.ended.err)
    assert "rbee worker logs slow" in story.ended.err


@then("the worker's log names the stage at which it stood")
def stage_logged(stack: Stack, person: Person) -> None:
    assert stack.hive is not None
    stack.hive.wait_log(lambda line: "no progress for 0.25 s at" in line)
    logs = person.rbee("worker", "logs", "slow")
    assert "no progress for 0.25 s at 'creating the session" in logs.out


@when("the worker of the talking model is started")
def start_talk(stack: Stack) -> None:
    stack.run_worker(TALK, MODEL, name=MODEL, idle_limit_s=0)


@then("the hive's row has its id, url, model, backend, device, state, slots, pid, invocation and since")
def hive_row(stack: Stack) -> None:
    (row,) = stack.hive_admin.get("/v1/workers/list").json["workers"]
    assert (row["worker_id"], row["model"], row["backend"], row["device"]) == (TALK, MODEL, "cpu", 0)
    assert row["model_ref"].startswith("file:///")
    assert row["model_ref"].endswith(MODEL)
    assert (row["state"], row["slots_total"], row["slots_available"]) == ("idle", 4, 4)
    assert Http(row["url"]).get("/health").json["worker_id"] == TALK
    assert b"rbee.worker.main" in Path(f"/proc/{row['pid']}/cmdline").read_bytes()
    assert re.fullmatch("[0-9a-f]{32}", row["invocation_id"])
    assert 0 < row["since_unix"] <= time.time()


@then("a request in flight shows in the queen's row as busy with one slot less")
def busy_row(stack: Stack) -> None:
    with stack.client.stream("POST", "/v1/inference", LONG | {"model": MODEL}) as stream:
        next(event for event in stream if event.name == "token")
        row = stack.row(TALK)
        assert (row["state"], row["slots_available"]) == ("busy", 3)
    stack.wait_state(TALK, "idle")


# on a real systemd


@pytest.fixture(scope="module")
def node(shared_machine: Machine, slow: Path, tmp_path_factory: pytest.TempPathFactory) -> House:
    """One machine for all scenarios: short heartbeats, and two models of the test's own."""
    house = House(shared_machine)
    broken = tmp_path_factory.mktemp("models") / "cannot-run"
    broken.mkdir()
    build_cannot_run(broken)
    for folder in (slow, broken):
        shared_machine.put(folder, f"{MODELS}/{folder.name}")
    house.configure("hive", {"heartbeat_interval_s": 0.5, "queen": {"callback_url": "http://127.0.0.1:8080"}})
    house.define_worker(TALK, MODEL, idle_limit_s=0)
    house.start()
    return house


@given("a machine on which queen and hive run")
def machine_runs(node: House) -> None:
    until(lambda: node.rows().get(TALK), 20)


@given("a worker of the talking model runs there")
def talk_runs(node: House) -> None:
    node.machine.systemctl("reset-failed", f"rbee-worker@{TALK}", check=False)
    node.start_worker(TALK)
    node.wait_state(TALK, "idle")


@when("the hive is told to spawn a worker of the slow model")
def order_spawn(node: House, story: Story) -> None:
    order = {"worker_id": "fresh", "model_ref": f"file://{MODELS}/slow", "name": "fresh", "idle_limit_s": 0}
    story.answers.append(node.hive_admin.post("/v1/workers/spawn", order))


@then("it answers 202 with state loading and has written the worker's definition")
def spawn_answer(node: House, story: Story) -> None:
    (answer,) = story.answers
    assert answer.status == 202, answer.body
    assert answer.json["state"] == "loading"
    definition = yaml.safe_load(node.machine.read("/var/lib/rbee/workers/fresh.yaml"))
    assert definition["model"] == f"{MODELS}/slow"
    assert definition["name"] == "fresh"


@then("the worker answers HTTP while its unit is still activating")
def http_while_activating(node: House) -> None:
    answer = until(lambda: answers(node.worker("fresh"), "/v1/ready"), 20)
    assert (answer.json["ready"], answer.json["state"]) == (False, "loading")
    assert node.worker("fresh").get("/health").json["state"] == "loading"
    assert node.unit("fresh")["ActiveState"] == "activating"


@then("the unit's status shows the stage that the progress stream tells")
def status_text(node: House, story: Story) -> None:
    story.stream = node.worker("fresh").stream("GET", "/v1/loading/progress")
    for event in story.stream:
        story.events.append(event)
        if event.json["stage"] == "creating the session":
            break
    text = story.events[-1].json["text"]
    until(lambda: node.unit("fresh")["StatusText"] == f"loading: {text}", 5)
    shown = node.machine.systemctl("status", "rbee-worker@fresh", check=False)
    assert f'Status: "loading: {text}"' in shown
    node.wait_state("fresh", "loading")
    until(lambda: (node.rows()["fresh"].get("progress") or {}).get("stage") == "creating the session", 5)


@then("READY=1 came after the warm-up: the stream's last words are warmed up, ready and [DONE]")
def ready_after_warm_up(node: House, story: Story) -> None:
    assert story.stream is not None
    with story.stream as stream:
        story.events += stream
    told_whole(story.events)
    assert story.events[-3].json["stage"] in ("warming up", "warmed up", "creating the session")
    unit = node.unit("fresh")
    assert (unit["ActiveState"], unit["SubState"]) == ("active", "running")
    assert unit["StatusText"].startswith("ready: fresh (tensor)")
    # one clock for all machines: the session was still being made when its stage was told
    assert int(unit["ActiveEnterTimestampMonotonic"]) / 1e6 > story.events[0].at
    node.machine.systemctl("stop", "rbee-worker@fresh")


def rbee_there(node: House, *arguments: object) -> Done:
    """Run rbee on the machine as root."""
    began = time.monotonic()
    done = node.machine.run(["rbee", *map(str, arguments)], check=False)
    return Done(done.returncode, done.stdout, done.stderr, ended=time.monotonic() - began)


@when("a person spawns a worker of a model that fails its warm-up")
def spawn_broken(node: House, story: Story) -> None:
    story.done = rbee_there(node, "worker", "spawn", "broken", "--model", f"file://{MODELS}/cannot-run")


@then("rbee exits with 1 within 30 s and shows the worker's own reason")
def broken_reason(story: Story) -> None:
    assert story.ended.code == 1, story.ended
    assert story.ended.ended < EXIT_LIMIT_S
    assert "(WORKER_FAILED)" in story.ended.err
    assert "the model loads, and its first run fails" in story.ended.err, story.ended.err
    assert "Gather" in story.ended.err
    assert "rbee worker logs broken" in story.ended.err


@then("the unit never became active")
def never_active(node: House) -> None:
    assert node.unit("broken")["ActiveEnterTimestampMonotonic"] == "0"
    node.machine.systemctl("stop", "rbee-worker@broken", check=False)
    node.machine.systemctl("reset-failed", "rbee-worker@broken", check=False)


@when("a person starts a worker on it after rbee-worker was removed")
def start_without_program(node: House, story: Story, things: ExitStack) -> None:
    program = node.machine.path("/usr/bin/rbee-worker")
    aside = program.with_name("rbee-worker.aside")
    program.rename(aside)
    things.callback(lambda: aside.rename(program))
    node.define_worker("orphan", "tiny-tensor")
    story.done = rbee_there(node, "worker", "start", "orphan")
    node.machine.systemctl("stop", "rbee-worker@orphan", check=False)
    node.machine.systemctl("reset-failed", "rbee-worker@orphan", check=False)


@then("rbee exits with 1 within 30 s and says how to install it")
def apt_hint(story: Story) -> None:
    assert story.ended.code == 1, story.ended
    assert story.ended.ended < EXIT_LIMIT_S
    assert "apt install rbee-worker" in story.ended.err, story.ended.err


@when("a person runs rbee infer there and the worker is killed with SIGKILL")
def infer_and_kill(node: House, story: Story) -> None:
    story.pid = int(node.unit(TALK)["MainPID"])
    argv = node.machine.command(
        ["rbee", "infer", "--model", MODEL, "--prompt", LONG_QUESTION, "--temperature", "0", "--max-tokens", "900"]
    )
    story.command = Command(argv, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"})
    story.command.wait_text()
    story.at = time.time()
    node.machine.run(["kill", "-KILL", str(story.pid)])
    story.thread = threading.Thread(target=lambda: story.answers.append(ask_queen(node)))
    story.thread.start()
    story.done = story.command.wait(30)


def ask_queen(node: House) -> Answer:
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "temperature": 0}
    return node.client.post("/v1/chat/completions", body)


@then("rbee exits with 1 and names the file with what came before")
def kept_there(node: House, story: Story) -> None:
    assert story.ended.code == 1, story.ended
    assert "(WORKER_FAILED)" in story.ended.err
    found = re.search(r"(\d+)/900 tokens came before that; their text is kept in (\S+)", story.ended.err)
    assert found, story.ended.err
    text = node.machine.read(found[2])
    assert text
    assert count_to_hundred().startswith(text)


@then("the hive's journal has the crash within 1 s with result and signal, the queen's within 2 s")
def crash_recorded(node: House, story: Story) -> None:
    def records(unit: str, *matches: str) -> list[dict[str, Any]]:
        found = node.machine.journal(unit, *matches)
        return [record for record in found if int(record["__REALTIME_TIMESTAMP"]) / 1e6 >= story.at - 0.5]

    hive = until(lambda: records("rbee-hive", f"RBEE_WORKER={TALK}", "RBEE_RESULT=signal"), 10)[0]
    assert hive["RBEE_EXIT_SIGNAL"] == "9"
    assert hive["RBEE_PID"] == str(story.pid)
    queen = until(lambda: records("rbee-queen", "RBEE_STATE=failed"), 10)[0]
    ended = next(
        record
        for record in records(f"rbee-worker@{TALK}")
        if "Main process exited, code=killed" in str(record["MESSAGE"])
    )
    at = int(ended["__REALTIME_TIMESTAMP"]) / 1e6
    assert int(hive["__REALTIME_TIMESTAMP"]) / 1e6 - at < 1.0
    assert int(queen["__REALTIME_TIMESTAMP"]) / 1e6 - at < 2.0


@then("a request that comes meanwhile is answered by the worker's next life")
def next_life(node: House, story: Story) -> None:
    assert story.thread is not None
    story.thread.join(60)
    (answer,) = story.answers
    assert answer.status == 200, answer.body
    assert answer.json["choices"][0]["message"]["content"] == ANSWER
    assert int(node.unit(TALK)["MainPID"]) not in (0, story.pid)


@when("the hive is restarted while a client streams a long answer")
def restart_hive(node: House, story: Story, things: ExitStack) -> None:
    story.pid = node.rows()[TALK]["pid"]
    body = LONG | {"model": MODEL}
    story.stream = things.enter_context(node.client.stream("POST", "/v1/inference", body))
    node.machine.systemctl("restart", "rbee-hive")
    story.at = time.monotonic()


@then("the stream goes on to its end")
def goes_on(story: Story) -> None:
    assert story.stream is not None
    events = list(story.stream)
    assert "".join(event.json["text"] for event in events if event.name == "token") == count_to_hundred()


@then("within 2 s of the hive's start the queen lists the worker of the same process again")
def listed_again(node: House, story: Story) -> None:
    boot = node.hive_admin.get("/v1/health").json["boot_id"]
    until(lambda: node.rows()[TALK]["boot_id"] == boot, 10, every_s=0.02)
    assert time.monotonic() - story.at < 2.0 + 1.0  # a second for the stream that was read in between
    row = node.rows()[TALK]
    assert (row["pid"], row["state"]) == (story.pid, "idle")
    assert int(node.unit(TALK)["NRestarts"]) == row["restarts"]


@given("the hive will not be started again")
def hive_stays_dead(node: House, things: ExitStack) -> None:
    drop_in = "/etc/systemd/system/rbee-hive.service.d/dead.conf"
    node.machine.write(drop_in, "[Unit]\nConditionPathExists=!/run/no-hive\n[Service]\nRestart=no\n")
    node.machine.systemctl("daemon-reload")

    def heal() -> None:
        node.machine.path(drop_in).unlink()
        node.machine.path("/run/no-hive").unlink(missing_ok=True)
        node.machine.systemctl("daemon-reload")
        node.machine.systemctl("reset-failed", "rbee-hive", "rbee-hive.socket", check=False)
        node.machine.systemctl("start", "rbee-hive.socket", "rbee-hive")

    things.callback(heal)


@when("a client waits for the slow model and the hive is killed with SIGKILL meanwhile")
def kill_hive(node: House, story: Story) -> None:
    assert node.admin.metric("queen_rbee_readiness_fallback_polls_total") == 0
    node.define_worker("patient", "slow", name="patient", idle_limit_s=0)
    until(lambda: "patient" in node.rows(), 20)
    story.thread = threading.Thread(
        target=lambda: story.answers.append(node.client.post("/v2/models/patient/infer", TENSOR))
    )
    story.thread.start()
    until(lambda: node.rows()["patient"]["state"] == "loading" and node.rows()["patient"].get("url"), 10)
    node.machine.write("/run/no-hive", "")
    node.machine.systemctl("kill", "--signal=KILL", "rbee-hive")


@then("the client gets its answer, because the queen asked the worker itself, which is counted")
def fallback_worked(node: House, story: Story) -> None:
    assert story.thread is not None
    story.thread.join(60)
    (answer,) = story.answers
    assert answer.status == 200, answer.body
    assert answer.headers["X-Rbee-Worker"].endswith("/patient")
    assert 1 <= node.admin.metric("queen_rbee_readiness_fallback_polls_total") <= 15
    assert node.unit("patient")["ActiveState"] == "active"
    node.machine.systemctl("stop", "rbee-worker@patient")


@given("the queen listens for the network")
def public_queen(node: House) -> None:
    example = (CHECKOUT / "units/examples/rbee-queen-public.conf").read_text()
    node.machine.write("/etc/systemd/system/rbee-queen.socket.d/public.conf", example)
    node.machine.systemctl("daemon-reload")
    node.machine.systemctl("stop", "rbee-queen.service", "rbee-queen.socket")
    node.machine.systemctl("start", "rbee-queen.socket", "rbee-queen.service")
    node.wait_state(TALK, "idle")


@when("a person on another machine runs rbee infer and the cable is pulled out")
def pull_cable(node: House, story: Story, tmp_path: Path, things: ExitStack) -> None:
    machine = node.machine
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(node.token("api_token"))
    someone = Person(tmp_path, "--queen-url", f"http://{machine.address}:8080", "--token-file", token)
    story.command = someone.start(
        "infer", "--model", MODEL, "--prompt", LONG_QUESTION, "--temperature", 0, "--max-tokens", 900,
        prefix=machine.network.in_network([]),
    )  # fmt: skip
    story.command.wait_text()
    machine.network.partition(machine)
    things.callback(machine.network.heal, machine)
    pulled = time.monotonic()
    story.done = story.command.wait(30)
    story.at = story.done.ended - pulled
    (kept,) = someone.partials
    story.text = kept.read_text()


@then("rbee exits with 1 within 8 s, with what came before kept and counted")
def noticed(story: Story) -> None:
    assert story.ended.code == 1, story.ended
    assert story.at < 8
    assert "(STREAM_CLOSED)" in story.ended.err, story.ended.err
    assert story.text
    assert count_to_hundred().startswith(story.text)
    assert len(story.text) < len(count_to_hundred())
    assert re.search(r"\d+/900 tokens came before that", story.ended.err)
