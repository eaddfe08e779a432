"""Scenes of a life on bare metal, on a queen, a hive and workers that are processes of this machine."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, scenarios, then, when

from rbee.keeper.demo.corpus import LONG_QUESTION
from tests.behaviour.support.daemons import TENSOR
from tests.behaviour.support.http import Answer, Event, Http, until
from tests.behaviour.support.line import Line
from tests.behaviour.support.processes import DaemonProcess, children_of
from tests.behaviour.support.stack import HIVE_ID, Stack

scenarios("features/scenes.feature")

TENSOR_MODEL = "tiny-tensor"
SPAWNED = ("w1", "w2", "w3", "w4", "w5")
SHUT_DOWN = ("w1", "w3", "w5")
LATER = ("w6", "w7")
READY = ("w2", "w4", *LATER)
TALK_MODEL = "bee-talk"
LONGEST = 900
"""Tokens of an answer that fills what the talking model can hold, but for its prompt."""
MEMORY_BOUND = 16 << 20
"""Half of what the runtime takes from the system at once when an answer outgrows what it has."""
NODE = {
    "name": "attic",
    "host": "192.0.2.7",
    "host_key": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHzs1hTJ1Lq8iE8tZkq0o6l8l0TqmyvO3pHqz6Zk0mQd",
    "addresses": ["192.0.2.7"],
}


@dataclass
class Scene:
    """What a scenario has seen so far."""

    before: dict[str, dict[str, Any]] = field(default_factory=dict)
    instance: str = ""
    outside: DaemonProcess | None = None
    lines: list[Line] = field(default_factory=list)
    memory: list[list[int]] = field(default_factory=list)
    files: int = 0


@pytest.fixture
def scene() -> Scene:
    return Scene()


@pytest.fixture
def things() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def spawn(stack: Stack, worker: str) -> None:
    """Have the queen start a worker of the tensor model under its own name."""
    body = {"worker_id": worker, "model_ref": f"file://{stack.models}/{TENSOR_MODEL}", "name": worker}
    answer = stack.client.post("/v2/workers/spawn", body | {"idle_limit_s": 0})
    assert answer.status == 202, answer.body


def ask(stack: Stack, model: str) -> Answer:
    return stack.client.post(f"/v2/models/{model}/infer", TENSOR)


# workers come and go


@given("a queen and a hive without workers")
def without_workers(stack: Stack) -> None:
    stack.start()
    # a spawn goes by way of the queen, who has to have heard of the hive
    until(lambda: stack.admin.get("/health").json["hives"] == 1)
    assert stack.rows() == {}


@when("five workers are spawned through the queen")
def spawn_five(stack: Stack, scene: Scene) -> None:
    for worker in SPAWNED:
        spawn(stack, worker)
    scene.before = {worker: stack.wait_state(worker, "idle") for worker in SPAWNED}


@when("three of them are shut down")
def shut_three_down(stack: Stack) -> None:
    for worker in SHUT_DOWN:
        assert stack.client.post("/v2/workers/shutdown", {"worker_id": worker}).status == 202


@when("two more are spawned")
def spawn_two(stack: Stack) -> None:
    for worker in LATER:
        spawn(stack, worker)


@then("the queen lists four that are ready, each with a process of its own, and three that are stopped")
def list_is_right(stack: Stack, scene: Scene) -> None:
    ready = {worker: stack.wait_state(worker, "idle") for worker in READY}
    stopped = {worker: stack.wait_state(worker, "stopped") for worker in SHUT_DOWN}
    listed = [row["worker_id"] for row in stack.admin.get("/v2/workers/list").json["workers"]]
    assert sorted(listed) == sorted([*READY, *SHUT_DOWN])
    pids = {row["pid"] for row in ready.values()}
    assert len(pids) == len(READY)
    assert 0 not in pids
    for worker in ("w2", "w4"):
        assert ready[worker]["pid"] == scene.before[worker]["pid"], "a worker that was let alone was restarted"
    assert {row["pid"] for row in stopped.values()} == {0}


@then("no process runs but theirs, and each of the four answers")
def no_orphans(stack: Stack, scene: Scene) -> None:
    rows = stack.rows()
    assert children_of(stack.hive_pid) == {rows[worker]["pid"] for worker in READY}
    for worker in SHUT_DOWN:
        assert not Path(f"/proc/{scene.before[worker]['pid']}").exists()
        assert not (stack.run_dir / "workers" / worker / "worker.sock").exists()
    for worker in READY:
        answer = ask(stack, worker)
        assert answer.status == 200, answer.body
        assert answer.headers["X-Rbee-Worker"] == f"{HIVE_ID}/{worker}"


# a queen that is killed


@given("two workers are ready, and one is stopped")
def two_and_one(stack: Stack, scene: Scene) -> None:
    stack.define_worker("rest", TENSOR_MODEL, name="rest", idle_limit_s=0)
    stack.start()
    for worker in ("one", "two"):
        stack.run_worker(worker, TENSOR_MODEL, name=worker, idle_limit_s=0)
    stack.wait_state("rest", "stopped")
    scene.before = stack.rows()
    scene.instance = stack.admin.get("/health").json["instance_id"]


@when("the queen is killed while the hive stands still, and started again")
def kill_queen(stack: Stack, things: ExitStack) -> None:
    assert stack.queen is not None
    pid = stack.hive_pid
    os.kill(pid, signal.SIGSTOP)
    things.callback(os.kill, pid, signal.SIGCONT)
    stack.queen.kill()
    stack.start_queen()


@then("she is another life, and lists no worker")
def list_is_lost(stack: Stack, scene: Scene) -> None:
    assert stack.admin.get("/health").json["instance_id"] != scene.instance
    assert stack.rows() == {}


@when("the hive moves again")
def hive_moves(stack: Stack) -> None:
    os.kill(stack.hive_pid, signal.SIGCONT)


@then("she lists the three workers as they were, and nobody was restarted")
def list_is_back(stack: Stack, scene: Scene) -> None:
    until(lambda: len(stack.rows()) == len(scene.before), 30)
    for worker, was in scene.before.items():
        now = stack.row(worker)
        for known in ("hive_id", "state", "pid", "url", "model_ref", "backend", "device", "invocation_id", "restarts"):
            assert now[known] == was[known], (worker, known)


@then("a request is answered")
def answers(stack: Stack) -> None:
    answer = ask(stack, "two")
    assert answer.status == 200, answer.body


# a database that cannot be written


@given("one worker is ready, and nodes can be added")
def one_and_nodes(stack: Stack) -> None:
    stack.define_worker("late", TENSOR_MODEL, name="late", idle_limit_s=0)
    stack.start()
    stack.run_worker("calm", TENSOR_MODEL, name="calm", idle_limit_s=0)
    stack.wait_state("late", "stopped")
    answer = add_node(stack, "cellar")
    assert answer.status == 201, answer.body


def add_node(stack: Stack, name: str) -> Answer:
    return stack.admin.post("/v2/registry/beehives/add", NODE | {"name": name})


def nodes_of(stack: Stack) -> list[str]:
    listed = stack.admin.get("/v2/registry/beehives/list").json["nodes"]
    return [node["details"]["name"] for node in listed]


def let_queen_write(stack: Stack, *, allowed: bool) -> None:
    """Where she may not, no file of hers may have a byte: the kernel refuses her writes, as on a full disk."""
    assert stack.queen is not None
    _, hard = resource.prlimit(stack.queen.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(stack.queen.pid, resource.RLIMIT_FSIZE, (hard if allowed else 0, hard))


@when("the queen can write no file any more")
def cannot_write(stack: Stack) -> None:
    let_queen_write(stack, allowed=False)


@then("a node cannot be added: 503 STORAGE_UNAVAILABLE that says what to do")
def not_added(stack: Stack) -> None:
    answer = add_node(stack, "attic")
    assert (answer.status, answer.error["code"]) == (503, "STORAGE_UNAVAILABLE")
    assert "check the disk" in answer.error["message"]
    assert int(answer.headers["Retry-After"]) >= 1
    assert nodes_of(stack) == ["cellar"]


@then("the queen's health is degraded and names her storage")
def storage_degraded(stack: Stack) -> None:
    health = stack.admin.get("/health").json
    assert health["status"] == "degraded"
    assert any(problem.startswith("storage: ") for problem in health["degraded"])


@then("a request is answered, and a worker that gets ready now is heard of and asked")
def goes_on(stack: Stack) -> None:
    assert ask(stack, "calm").status == 200
    before = stack.admin.metric("queen_rbee_worker_ready_notifications_received_total")
    stack.spawn("late")
    stack.wait_state("late", "idle")
    assert stack.admin.metric("queen_rbee_worker_ready_notifications_received_total") == before + 1
    assert ask(stack, "late").status == 200
    storage_degraded(stack)


@when("the queen can write again")
def can_write(stack: Stack) -> None:
    let_queen_write(stack, allowed=True)


@then("a node is added, and the queen's health is well")
def added(stack: Stack) -> None:
    answer = add_node(stack, "attic")
    assert answer.status == 201, answer.body
    assert nodes_of(stack) == ["attic", "cellar"]
    until(lambda: stack.admin.get("/health").json["status"] == "ok")


# a worker that its hive does not reach


@given("a hive that asks for health often, and two workers of one model, one of them outside its supervisor")
def inside_and_outside(stack: Stack, scene: Scene, things: ExitStack) -> None:
    stack.hive_config = {"health_interval_s": 0.2, "heartbeat_interval_s": 0.4}
    stack.start()
    stack.run_worker("inside", TENSOR_MODEL, name=TENSOR_MODEL, idle_limit_s=0)
    scene.outside, url = stack.start_outside("outside", TENSOR_MODEL)
    things.callback(scene.outside.stop)
    ready = {"worker_id": "outside", "url": url, "model_ref": f"file:///{TENSOR_MODEL}", "backend": "cpu"}
    answer = stack.hive_admin.post("/v1/workers/ready", ready | {"task": "tensor", "slots_total": 4})
    assert answer.status == 200, answer.body
    scene.before = {"outside": stack.wait_state("outside", "idle")}
    both_answer(stack)


def who_answers(stack: Stack) -> str:
    answer = ask(stack, TENSOR_MODEL)
    assert answer.status == 200, answer.body
    return str(answer.headers["X-Rbee-Worker"])


def both_answer(stack: Stack) -> None:
    """Ask until each of the two has answered: requests take turns."""
    until(lambda: who_answers(stack) == f"{HIVE_ID}/inside")
    until(lambda: who_answers(stack) == f"{HIVE_ID}/outside")


@when("the worker outside stands still")
def outside_stands_still(scene: Scene, things: ExitStack) -> None:
    assert scene.outside is not None
    scene.outside.signal(signal.SIGSTOP)
    things.callback(scene.outside.signal, signal.SIGCONT)


@then("the queen lists it as unhealthy, and as not ready for requests")
def listed_unhealthy(stack: Stack) -> None:
    stack.wait_state("outside", "unhealthy", limit_s=30)
    model = next(model for model in stack.client.get("/v1/models").json["data"] if model["id"] == TENSOR_MODEL)
    assert (model["workers"], model["ready"]) == (2, 1)


@then("requests are answered by the other worker alone")
def answered_inside(stack: Stack) -> None:
    assert {who_answers(stack) for _ in range(8)} == {f"{HIVE_ID}/inside"}


@when("the worker outside moves again")
def outside_moves(scene: Scene) -> None:
    assert scene.outside is not None
    scene.outside.signal(signal.SIGCONT)


@then("the queen lists it as idle in the life that it had, and requests are answered by it as well")
def outside_is_back(stack: Stack, scene: Scene) -> None:
    row = stack.wait_state("outside", "idle")
    assert (row["url"], row["managed"]) == (scene.before["outside"]["url"], False)
    both_answer(stack)


# a hive that the queen does not reach


@given("a hive whose way to and from the queen is a line of the test's own, and a worker is ready")
def on_a_line(stack: Stack, scene: Scene, things: ExitStack) -> None:
    scene.lines = [things.enter_context(Line(port)) for port in (stack.queen_port, stack.hive_port)]
    stack.queen_config = {"requests": {"silent_wait_s": 1}}
    to_queen, to_hive = (line.url for line in scene.lines)
    stack.hive_config = {"heartbeat_interval_s": 0.4, "api_url": to_hive, "queen": {"callback_url": to_queen}}
    stack.define_worker("late", TENSOR_MODEL, name="late", idle_limit_s=0)
    stack.start()
    stack.run_worker("calm", TENSOR_MODEL, name="calm", idle_limit_s=0)
    scene.before = {"calm": stack.row("calm")}
    assert stack.admin.get("/health").json["status"] == "ok"


@when("the line is cut")
def cut(scene: Scene) -> None:
    for line in scene.lines:
        line.cut()


@then("the queen says that the hive is silent, and its worker is stale")
def hive_is_silent(stack: Stack) -> None:
    stack.wait_state("calm", "stale")
    health = stack.admin.get("/health").json
    assert (health["status"], health["degraded"]) == ("degraded", [f"hive {HIVE_ID}: silent"])


@then("a request is refused with 503 that names the hive")
def request_refused(stack: Stack) -> None:
    answer = ask(stack, "calm")
    assert (answer.status, answer.error["code"]) == (503, "HIVE_UNREACHABLE")
    assert answer.error["details"]["node"] == HIVE_ID
    assert HIVE_ID in answer.error["message"]


@then("a start of a worker there is refused with 503")
def start_refused(stack: Stack) -> None:
    answer = stack.admin.post("/v2/workers/spawn", {"worker_id": "late"})
    assert (answer.status, answer.error["code"]) == (503, "HIVE_UNREACHABLE")
    assert answer.error["details"]["hive_id"] == HIVE_ID


@when("the line is whole again")
def mended(scene: Scene) -> None:
    for line in scene.lines:
        line.mend()


@then("the queen says that all is well, and the worker is idle in the life that it had")
def reconnected(stack: Stack, scene: Scene) -> None:
    row = stack.wait_state("calm", "idle")
    assert (row["pid"], row["url"]) == (scene.before["calm"]["pid"], scene.before["calm"]["url"])
    until(lambda: stack.admin.get("/health").json["status"] == "ok")


@then("a request is answered, and a worker is started there")
def started_again(stack: Stack) -> None:
    assert ask(stack, "calm").status == 200
    assert stack.admin.post("/v2/workers/spawn", {"worker_id": "late"}).status == 202
    stack.wait_state("late", "idle")


# long answers


@given("the worker of the talking model is ready")
def talker(stack: Stack) -> None:
    stack.start()
    stack.run_worker("talk", TALK_MODEL, name=TALK_MODEL, idle_limit_s=0)


def talk(most: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": LONG_QUESTION}]
    return {"model": TALK_MODEL, "messages": messages, "max_tokens": most, "temperature": 0, "ignore_eos": True}


def memory_of(pid: int) -> int:
    """Bytes of memory that are a process's own."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


def files_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def memory_during(stack: Stack, pid: int) -> list[int]:
    """The worker's memory at each piece of text of one answer as long as the model can give."""
    patient = Http(stack.queen_url, stack.tokens["api_token"], timeout_s=120)
    with patient.stream("POST", "/v1/chat/completions", talk(LONGEST) | {"stream": True}) as stream:
        assert stream.status == 200
        return [memory_of(pid) for event in stream if says_something(event)]


def says_something(event: Event) -> bool:
    return event.data != b"[DONE]" and bool(event.json["choices"][0]["delta"].get("content"))


@when("clients stream answers as long as the model can give, one after the other")
def long_answers(stack: Stack, scene: Scene) -> None:
    pid = stack.row("talk")["pid"]
    scene.memory = [memory_during(stack, pid)]
    scene.files = files_of(pid)
    scene.memory += [memory_during(stack, pid) for _ in range(3)]


@then("from the end of the first one on the worker's memory is the same at every token")
def flat(scene: Scene) -> None:
    first, *others = scene.memory
    for memory in others:
        assert len(memory) > LONGEST // 2, "the answer was too short to tell anything"
        assert max(memory) - max(first) < MEMORY_BOUND, [size >> 20 for size in memory[::50]]


@then("further requests are answered, and the worker has the memory and the open files that it had")
def as_before(stack: Stack, scene: Scene) -> None:
    for _ in range(5):
        assert stack.client.post("/v1/chat/completions", talk(8)).status == 200
    row = stack.row("talk")
    assert memory_of(row["pid"]) - max(scene.memory[0]) < MEMORY_BOUND
    assert row["restarts"] == 0
    until(lambda: files_of(row["pid"]) <= scene.files + 2)
