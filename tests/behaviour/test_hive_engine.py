"""What hives say of their engines, and nodes that are found by it."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee.host.probe import CPU, CUDA
from rbee.worker.probe import tiny_model
from tests.behaviour.support.http import Answer, Http, until
from tests.behaviour.support.other_hive import OtherHive
from tests.behaviour.support.person import Done, Person
from tests.behaviour.support.stack import HIVE_ID, Stack

scenarios("features/hive_engine.feature")

SESSION = """
import json, sys
import onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
started = {}
for name in sys.argv[2:]:
    try:
        started[name] = name in onnxruntime.InferenceSession(sys.argv[1], options, providers=[name]).get_providers()
    except Exception:
        started[name] = False
print(json.dumps({"started": started, "listed": onnxruntime.get_available_providers()}))
"""
"""Starts a session of a model on each provider: what the hive's word is held against."""
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHzs1hTJ1Lq8iE8tZkq0o6l8l0TqmyvO3pHqz6Zk0mQd"


@pytest.fixture
def things() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@given("a queen and a hive")
def queen_and_hive(stack: Stack) -> None:
    stack.start()
    until(lambda: stack.admin.get("/health").json["hives"] == 1)


# the hive's word


@when("the hive is asked for its capabilities", target_fixture="told")
def capabilities(stack: Stack) -> dict[str, Any]:
    answer = stack.hive_admin.get("/v1/capabilities")
    assert answer.status == 200, answer.body
    return dict(answer.json)


@then("it names the version of ONNX Runtime that workers here run on")
def names_version(told: dict[str, Any]) -> None:
    assert told["onnxruntime_version"] in (_version_of("onnxruntime"), _version_of("onnxruntime-gpu"))
    assert abs(time.time() - told["probed_at_unix"]) < 120


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:
        return None


@then(
    "a provider is good where a session of it starts in another process here as well, and only there",
    target_fixture="seen",
)
def as_seen(told: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    model = tmp_path / "tiny.onnx"
    model.write_bytes(tiny_model())
    command = [sys.executable, "-c", SESSION, str(model), CPU, CUDA]
    environment = {"ORT_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    seen: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    assert {name: result["ok"] for name, result in told["providers"].items()} == seen["started"]
    assert told["backends"] == [name for name, key in (("cpu", CPU), ("cuda", CUDA)) if seen["started"][key]]
    assert seen["started"][CPU]
    return seen


@then("a provider that does not start has the loader's own words, though the runtime lists it")
def says_why(told: dict[str, Any], seen: dict[str, Any]) -> None:
    for name, started in seen["started"].items():
        result = told["providers"][name]
        if started:
            assert not result["reason"]
        elif name in seen["listed"]:
            assert ".so" in result["reason"] or "driver" in result["reason"]
            assert result["advice"]


# nodes by what they can run


@given("the nodes bee, a real hive, and forge and mill, hives of the test's own with two and one fake GPUs")
def three_nodes(stack: Stack, things: ExitStack) -> None:
    queen_and_hive(stack)
    add_node(stack, HIVE_ID)
    for name, gpus in (("forge", 2), ("mill", 1)):
        fake_node(stack, things, name, gpus).beat(interval_s=60)


def fake_node(stack: Stack, things: ExitStack, name: str, gpus: int) -> OtherHive:
    """A node that is a hive of the test's own, which has not reported yet."""
    add_node(stack, name)
    hive = things.enter_context(OtherHive(Http(stack.queen_url, stack.tokens["hive_callback_token"]), name))
    devices = [{"index": index, "name": "fake"} for index in range(gpus)]
    hive.answers["/v1/capabilities"] = {"backends": ["cpu", "cuda"], "devices": devices}
    return hive


def add_node(stack: Stack, name: str) -> None:
    node = {"name": name, "host": "127.0.0.1", "host_key": HOST_KEY, "addresses": ["127.0.0.1"]}
    answer = stack.admin.post("/v2/registry/beehives/add", node)
    assert answer.status == 201, answer.body


@given("the node dark, whose hive has GPUs as well and is silent")
def silent_node(stack: Stack, things: ExitStack) -> None:
    hive = fake_node(stack, things, "dark", 4)
    hive.beat(interval_s=0.1)
    until(lambda: stack.admin.get("/v2/registry/beehives/dark").json["status"] == "silent")


@when(parsers.parse("nodes with {capability} are asked for"), target_fixture="asked")
def ask_nodes(stack: Stack, tmp_path: Path, capability: str) -> tuple[Answer, Done]:
    path = f"/v2/registry/beehives/list?capability={capability}"
    patient = Http(str(stack.run_dir / "queen.sock"), timeout_s=120)
    person = Person(tmp_path, "--socket", stack.run_dir / "queen.sock")
    return patient.get(path), person.rbee("node", "list", "--capability", capability, "--json", limit_s=120)


@then(parsers.parse("the queen and rbee node list show {nodes} and no other"))
def shown(asked: tuple[Answer, Done], nodes: str) -> None:
    answer, done = asked
    expected = [] if nodes == "none" else nodes.split(", ")
    assert answer.status == 200, answer.body
    assert [node["details"]["name"] for node in answer.json["nodes"]] == expected
    assert done.code == 0, done.err
    assert [node["details"]["name"] for node in json.loads(done.out)["nodes"]] == expected


@then("the queen answers 400 and names capability, and rbee node list ends with 1")
def named(asked: tuple[Answer, Done]) -> None:
    answer, done = asked
    assert (answer.status, answer.error["code"]) == (400, "INVALID_REQUEST")
    assert answer.error["details"] == {"field": "capability", "accepted": ["cpu", "cuda"]}
    assert done.code == 1
    assert "capability" in done.err + done.out
