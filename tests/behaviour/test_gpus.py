"""Steps of features/gpus.feature."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from tests.behaviour.support.daemons import wait_record
from tests.behaviour.support.http import Answer, Http
from tests.behaviour.support.other_hive import OtherHive
from tests.behaviour.support.stack import Stack

scenarios("features/gpus.feature")

MB = 1 << 20
REFERENCE = "hf:org/model"
CATALOGUE = {
    "models": [
        {
            "id": "org--model-1", "provider": "hf", "reference": REFERENCE, "local_path": "/models/model",
            "size_bytes": 5000 * MB, "digest": "", "downloaded_at_unix": 1.0, "last_used_unix": 1.0,
        },
    ],
    "used_bytes": 0, "available_bytes": 0,
}  # fmt: skip
TOTAL_MB = 10_000


@dataclass
class Case:
    """What a scenario's steps hand on."""

    stack: Stack
    node: OtherHive
    answers: list[Answer] = field(default_factory=list)


@pytest.fixture
def node(stack: Stack) -> Iterator[OtherHive]:
    stack.start_queen()
    with OtherHive(Http(stack.queen_url, stack.tokens["hive_callback_token"]), "gpus") as made:
        yield made


@given("a queen, and a node that tells of two GPUs and has a model of 5000 MB", target_fixture="case")
def a_node(stack: Stack, node: OtherHive) -> Case:
    node.answers = {"/v1/models": CATALOGUE, "/v1/capabilities": {"backends": ["cpu", "cuda"]}}
    node.machine["ram_available_bytes"] = 6000 * MB
    return Case(stack, node)


@given(parsers.re(r"its GPUs have (?P<first>\d+) and (?P<second>\d+) MB free( at (?P<degrees>\d+) degrees)?"))
def gpus(case: Case, first: str, second: str, degrees: str | None) -> None:
    case.node.machine["gpus"] = [
        {
            "index": index, "name": "of a test", "uuid": f"GPU-{index}", "memory_total_bytes": TOTAL_MB * MB,
            "memory_used_bytes": (TOTAL_MB - int(free)) * MB, "temperature_c": int(degrees or 50),
        }
        for index, free in enumerate((first, second))
    ]  # fmt: skip
    case.node.beat()


@when(parsers.re(r"(a|another) worker is spawned for (?P<backend>cpu|cuda)( device (?P<device>\d))?"))
def spawned(case: Case, backend: str, device: str | None) -> None:
    body = {"worker_id": f"w{len(case.answers)}", "model_ref": REFERENCE, "backend": backend}
    named = {} if device is None else {"device": int(device)}
    case.answers.append(case.stack.client.post("/v2/workers/spawn", body | named))


@when("the node's memory drops to 5999 MB")
def drops(case: Case) -> None:
    assert case.answers[-1].status == 202, case.answers[-1].body
    case.node.machine["ram_available_bytes"] = 5999 * MB
    case.node.beat(case.node.report("w0", model_ref=REFERENCE))  # it serves: what it took shows in the facts


@then(parsers.parse("its hive is asked for device {device:d}"))
def asked(case: Case, device: int) -> None:
    assert case.answers[-1].status == 202, case.answers[-1].body
    assert case.node.bodies[-1]["device"] == device


@then("the queen's log has the device, what is needed and what is free")
def logged(case: Case) -> None:
    needed, free = f"required_bytes={6000 * MB}", f"available_bytes={9000 * MB}"
    wait_record(case.stack, "queen", "a worker is placed", "device=1", needed, free)


@then(parsers.parse("the answer is 503 {code} with {needed:d} MB needed and {there:d} there"))
def too_small(case: Case, code: str, needed: int, there: int) -> None:
    answer = case.answers[-1]
    assert (answer.status, answer.error["code"]) == (503, code), answer.body
    kind = "ram" if code == "INSUFFICIENT_RAM" else "vram"
    amounts = {f"required_{kind}_mb": needed, f"available_{kind}_mb": there, "model_ref": REFERENCE}
    assert answer.error["details"] | amounts == answer.error["details"]


@then(parsers.parse("the message names device {device:d} and what to do"))
def named(case: Case, device: int) -> None:
    message = case.answers[-1].error["message"]
    assert f"gpus device {device}," in message
    assert "rbee worker stop" in message and "quantised" in message


@then("the answer is 503 GPU_TOO_HOT with a hint when to ask again")
def too_hot(case: Case) -> None:
    answer = case.answers[-1]
    assert (answer.status, answer.error["code"]) == (503, "GPU_TOO_HOT"), answer.body
    assert "80 degrees" in answer.error["message"]
    assert int(answer.headers["Retry-After"]) == 30
