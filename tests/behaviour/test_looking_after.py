"""What `rbee workers` shows and does, on a queen, a hive and workers that are processes of this machine."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, scenarios, then, when

from rbee.keeper.demo import faulty
from tests.behaviour.support.person import Done, Person
from tests.behaviour.support.processes import children_of
from tests.behaviour.support.stack import HIVE_ID, Stack

scenarios("features/looking_after.feature")

TENSOR_MODEL = "tiny-tensor"
STATES = {"calm": "idle", "held": "busy", "rest": "stopped", "broken": "failed"}


@dataclass
class Look:
    """What a scenario has seen so far."""

    before: dict[str, dict[str, Any]] = field(default_factory=dict)
    done: Done | None = None


@pytest.fixture
def look() -> Look:
    return Look()


@pytest.fixture
def person(stack: Stack, tmp_path: Path) -> Person:
    return Person(tmp_path, "--socket", stack.run_dir / "queen.sock")


@given("one worker is ready, one is held back, one is stopped and one has failed")
def four_states(stack: Stack) -> None:
    broken = stack.folder / "models" / "broken"
    broken.mkdir(parents=True)
    faulty.build_broken_file(broken)
    stack.hive_config = {"model_roots": [str(stack.models), str(broken.parent)]}
    stack.worker_config = {"model_roots": [str(stack.models), str(broken.parent)]}
    stack.define_worker("rest", TENSOR_MODEL)
    stack.define_worker("broken", str(broken))
    stack.start()
    stack.run_worker("calm", TENSOR_MODEL, idle_limit_s=0)
    stack.run_worker("held", TENSOR_MODEL, idle_limit_s=0)
    stack.spawn("broken")
    assert stack.admin.call("PATCH", f"/v2/workers/{HIVE_ID}/held", {"state": "busy"}).status == 200
    stack.wait_state("broken", "failed")


@when("a person runs rbee workers list")
def list_workers(look: Look, person: Person) -> None:
    look.done = person.rbee("workers", "list")


@then("it exits with 0 and shows each of the four with its state")
def shows_states(look: Look) -> None:
    assert look.done is not None
    assert look.done.code == 0, look.done.err
    head, *lines = look.done.out.splitlines()
    assert head.split("\t")[:3] == ["WORKER", "HIVE", "STATE"]
    assert {line.split()[0]: line.split()[1:3] for line in lines} == {
        worker: [HIVE_ID, state] for worker, state in STATES.items()
    }


@then("with --json it shows the same as data")
def shows_json(person: Person) -> None:
    done = person.rbee("workers", "list", "--json")
    assert done.code == 0, done.err
    assert {row["worker_id"]: row["state"] for row in json.loads(done.out)["workers"]} == STATES


@given("one worker is ready, with a process that holds its model")
def one_ready(stack: Stack, look: Look) -> None:
    stack.start()
    look.before = {"calm": stack.run_worker("calm", TENSOR_MODEL, idle_limit_s=0)}
    assert children_of(stack.hive_pid) == {look.before["calm"]["pid"]}


@when("a person runs rbee workers shutdown --id with its name")
def shut_down(look: Look, person: Person) -> None:
    look.done = person.rbee("workers", "shutdown", "--id", "calm")


@then("it exits with 0 and says that the worker is stopped")
def says_stopped(look: Look) -> None:
    assert look.done is not None
    assert (look.done.code, look.done.out) == (0, "worker calm: stopped\n"), look.done.err


@then("its process is gone, and no other process holds its model")
def process_gone(stack: Stack, look: Look) -> None:
    assert not Path(f"/proc/{look.before['calm']['pid']}").exists()
    assert children_of(stack.hive_pid) == set()


@then('the queen and "rbee workers list" show it as stopped')
def listed_stopped(stack: Stack, person: Person) -> None:
    row = stack.row("calm")
    assert (row["state"], row["result"], row["exit_status"], row["pid"]) == ("stopped", "success", 0, 0)
    assert "stopped" in person.rbee("workers", "list").out


@when("a person shuts down a worker that nobody knows")
def shut_nobody_down(look: Look, person: Person) -> None:
    look.done = person.rbee("workers", "shutdown", "--id", "nobody")


@then("it exits with 1 and names the worker")
def names_nobody(look: Look) -> None:
    assert look.done is not None
    assert look.done.code == 1
    assert "WORKER_NOT_FOUND" in look.done.err
    assert "nobody" in look.done.err
