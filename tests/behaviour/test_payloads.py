"""Payloads that are refused: their words come back neither in an answer nor in a log."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from tests.behaviour.support.daemons import TENSOR, WORKER, whole_log
from tests.behaviour.support.http import Answer, Http
from tests.behaviour.support.stack import Stack

scenarios("features/payloads.feature")

SECRET, SCRIPT = "hunter2-zebra", "<script>alert(1)</script>"
WORDS = (b"hunter2", b"zebra", b"<script", b"alert(1)", b"\\u003cscript")
POISON = f"{SECRET} {SCRIPT}"
TALK, TENSOR_MODEL = "talk", "tiny-tensor"
Body = object

CHAT = {"model": "bee-talk", "messages": [{"role": "user", "content": "bees"}]}
BAD_JSON: list[Body] = [f'{{"model": "{POISON}'.encode(), f"{POISON}".encode(), b"\xff" + POISON.encode()]
BAD_CHATS: list[Body] = [
    *BAD_JSON,
    CHAT | {"temperature": POISON},
    CHAT | {"max_tokens": POISON},
    CHAT | {"messages": POISON},
    CHAT | {"messages": [{"role": POISON, "content": "bees"}]},
    CHAT | {"messages": [{"role": "user", "content": {POISON: 1}}]},
    CHAT | {"messages": [{"role": "user", "content": POISON}], "temperature": -1},
    CHAT | {"stop": [POISON] * 50},
    CHAT | {"response_format": {"type": POISON}},
    CHAT | {"tools": [{"type": POISON}]},
]
BAD_TENSORS: list[Body] = [
    *BAD_JSON,
    {"inputs": POISON},
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": POISON, "data": [1, 2, 3, 4]}]},
    {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [POISON] * 4}]},
    TENSOR | {"parameters": POISON},
]
SPAWN = {"worker_id": "w", "model_ref": "file:///models/none", "backend": "cpu"}
BAD_SPAWNS: list[Body] = [
    *BAD_JSON,
    *(SPAWN | {name: POISON} for name in ("worker_id", "model_ref", "task", "backend", "device", "slots", "hive_id")),
]
BAD_REPORTS: list[Body] = [*BAD_JSON, {"worker_id": POISON}, {"worker_id": "w", "hive_id": "bee", "state": POISON}]

CALLS: dict[str, list[tuple[str, list[Body]]]] = {
    "queen": [
        ("/v1/chat/completions", [*BAD_CHATS, CHAT | {"model": POISON}, CHAT | {"model": [POISON]}]),
        ("/v1/inference", BAD_JSON),
        (f"/v2/models/{TENSOR_MODEL}/infer", BAD_TENSORS),
        ("/v2/workers/spawn", BAD_SPAWNS),
        ("/v2/workers/register", [*BAD_JSON, {"worker_id": "w", "url": POISON}]),
        ("/v2/workers/ready", BAD_REPORTS),
        ("/v2/workers/state", BAD_REPORTS),
    ],
    "hive": [
        ("/v1/workers/spawn", BAD_SPAWNS),
        ("/v1/workers/ready", [*BAD_JSON, {"worker_id": "w", "url": POISON}]),
    ],
    "worker": [("/v1/chat/completions", BAD_CHATS), ("/v1/inference", BAD_CHATS)],
}


@dataclass
class Sent:
    """Each call that was made: its path, its body, what came back."""

    calls: list[tuple[str, Body, Answer]] = field(default_factory=list)


@pytest.fixture
def sent() -> Sent:
    return Sent()


@pytest.fixture(scope="module")
def served(models: Path) -> Iterator[Stack]:
    """Queen, hive, a talking worker and one of tensors, for all scenarios of this module."""
    made = Stack(models)
    # every line that there can be
    made.queen_config = made.hive_config = made.worker_config = {"log_level": "debug"}
    try:
        made.start()
        made.run_worker(TALK, "bee-talk", idle_limit_s=0)
        made.run_worker(WORKER, TENSOR_MODEL, idle_limit_s=0)
        yield made
    finally:
        made.close()


@given("queen, hive and worker are running")
def running(served: Stack) -> None:
    assert {row["state"] for row in served.rows().values()} == {"idle"}


def _callers(stack: Stack, daemon: str, path: str) -> Http:
    if daemon == "hive":
        return Http(stack.hive_url, stack.tokens["hive_api_token"])
    if daemon == "worker":
        return stack.worker_tcp(TALK)
    callback = path in ("/v2/workers/ready", "/v2/workers/state")
    return Http(stack.queen_url, stack.tokens["hive_callback_token" if callback else "api_token"])


@when(parsers.parse("the {daemon} is sent payloads that it must refuse, each with a secret and a script in it"))
def send(served: Stack, sent: Sent, daemon: str) -> None:
    for path, bodies in CALLS[daemon]:
        caller = _callers(served, daemon, path)
        sent.calls += [(path, body, caller.post(path, body)) for body in bodies]


@then("each is refused with a code, a sentence and no word of the payload")
def refused(sent: Sent) -> None:
    for path, body, answer in sent.calls:
        case = (path, body, answer.body)
        assert 400 <= answer.status < 500, case
        assert answer.headers["Content-Type"].startswith("application/json"), case
        assert answer.error["code"], case
        assert answer.error["message"], case
        shown = answer.body + str(answer.headers).encode()
        assert not [word for word in WORDS if word in shown], case


@then("no log has a word of the payload")
def not_logged(served: Stack) -> None:
    log = whole_log(served).encode()
    assert log
    assert not [word for word in WORDS if word in log]
