"""Scenes of a life on bare metal, on a queen, a hive and workers that are processes of this machine."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, scenarios, then, when

from tests.behaviour.support.daemons import TENSOR
from tests.behaviour.support.http import Answer, until
from tests.behaviour.support.processes import children_of
from tests.behaviour.support.stack import HIVE_ID, Stack

scenarios("features/scenes.feature")

TENSOR_MODEL = "tiny-tensor"
SPAWNED = ("w1", "w2", "w3", "w4", "w5")
SHUT_DOWN = ("w1", "w3", "w5")
LATER = ("w6", "w7")
READY = ("w2", "w4", *LATER)


@dataclass
class Scene:
    """What a scenario has seen so far."""

    before: dict[str, dict[str, Any]] = field(default_factory=dict)
    instance: str = ""


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
