"""Steps of features/resources.feature."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee.hive.state import state_of
from rbee.host.units.facts import CLD_EXITED, UnitFacts
from rbee.wire.shortage import EXIT_NO_MEMORY
from tests.behaviour.support import fake_gpu
from tests.behaviour.support.daemons import TENSOR, records
from tests.behaviour.support.http import Answer, Http, until
from tests.behaviour.support.other_hive import OtherHive
from tests.behaviour.support.stack import Stack

scenarios("features/resources.feature")

MB = 1 << 20
MODEL, WORKER, TINY = "large", "onegpu", "tiny-tensor"
BUSY = "the disks of this machine are busy"
PRESSURE = "some avg10={share} avg60=1.00 avg300=0.50 total=118764939\nfull avg10=0.00 avg60=0.00 avg300=0.01 total=3\n"
FAILS_TO_ALLOCATE = """
import json, sys
from pathlib import Path
from rbee.host import machine
from rbee.worker.engine.shortage import shortage
machine.DRIVER_PATHS = (Path("/"),)
error = shortage(RuntimeError(f"Failed to allocate memory for requested buffer of size {sys.argv[1]}"), "the model", 1)
print(json.dumps(f"{error.code}: {error.message}"))
"""
"""What a worker says whose runtime failed to allocate on GPU 1; the driver is the fake one."""


@dataclass
class Case:
    """What a scenario's steps hand on."""

    stack: Stack
    node: OtherHive | None = None
    driver: dict[str, str] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)


@pytest.fixture
def case(stack: Stack) -> Case:
    return Case(stack)


@pytest.fixture
def things() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@given(parsers.parse("a queen, and a node whose GPU 1 has 16384 MB, of which {used:d} MB are in use"))
def a_node(case: Case, things: ExitStack, used: int, tmp_path: Path) -> None:
    case.stack.start_queen()
    queen = Http(case.stack.queen_url, case.stack.tokens["hive_callback_token"])
    case.node = things.enter_context(OtherHive(queen, "gpus"))
    fake_gpu.build(tmp_path)
    (tmp_path / "used").write_text(f"0 {used * MB}")
    case.driver = {"LD_LIBRARY_PATH": str(tmp_path), "FAKE_GPU_USED": str(tmp_path / "used")}


@when(
    parsers.parse(
        "a worker on GPU 1 fails to allocate {asked:d} MB at once as it loads, and a request waits for its model"
    )
)
def fails(case: Case, asked: int) -> None:
    node = case.node
    assert node is not None
    row: dict[str, Any] = {"url": None, "model": MODEL, "backend": "cuda", "device": 1, "invocation_id": "a" * 32}
    node.beat(node.report(WORKER, **row, state="loading"))
    client = case.stack.client
    asking = threading.Thread(target=lambda: case.answers.append(client.post(f"/v2/models/{MODEL}/infer", TENSOR)))
    asking.start()
    waiting = {"model": MODEL, "priority": "interactive"}
    until(lambda: case.stack.admin.metric("queen_rbee_waiting_requests", **waiting) == 1)
    command = [sys.executable, "-c", FAILS_TO_ALLOCATE, str(asked * MB)]
    said = subprocess.run(command, env={**os.environ, **case.driver}, capture_output=True, text=True, check=True)
    unit = UnitFacts(
        worker_id=WORKER, active_state="failed", sub_state="failed", result="exit-code", exec_code=CLD_EXITED,
        exec_status=EXIT_NO_MEMORY, status_text=json.loads(said.stdout),
    )  # fmt: skip
    state, reason = state_of(unit, healthy=True, busy=False, stop_reason="")
    ended = {"result": unit.result, "exit_status": unit.exec_status, "status_text": unit.status_text, "reason": reason}
    node.beat(node.report(WORKER, **row, **ended, state=state.value))
    asking.join(30)


@then(parsers.parse("the request is answered 503 {code} with {asked:d} MB required and {there:d} MB available"))
def answered(case: Case, code: str, asked: int, there: int) -> None:
    (answer,) = case.answers
    assert (answer.status, answer.error["code"]) == (503, code), answer.body
    details = answer.error["details"]
    assert (details["required_vram_mb"], details["available_vram_mb"]) == (asked, there)


@then(parsers.parse("the message says {hint}"))
def hints(case: Case, hint: str) -> None:
    assert hint in case.answers[0].error["message"]


@then(parsers.parse("the queen shows the worker as failed with {code}"))
def shown(case: Case, code: str) -> None:
    row = case.stack.row(WORKER)
    assert (row["state"], row["reason"]) == ("failed", code)


@given(
    parsers.parse(
        "the kernel says that tasks waited for disks {share} percent of the last 10 s, workers warn past {limit:d}"
    )
)
def pressure(case: Case, share: str, limit: int) -> None:
    file = case.stack.folder / "pressure"
    file.write_text(PRESSURE.format(share=share))
    case.stack.worker_config = {"io_pressure_file": str(file), "io_pressure_percent": limit}


@when("a worker is started")
def started(case: Case) -> None:
    case.stack.start()
    case.stack.run_worker(WORKER, TINY)


@then("it is ready and answers")
def answers(case: Case) -> None:
    answer = case.stack.client.post(f"/v2/models/{TINY}/infer", TENSOR)
    assert answer.status == 200, answer.body


@then(parsers.parse("its log has {count:d} warnings that the disks are busy, with the share and the limit"))
def warned(case: Case, count: int) -> None:
    found = records(case.stack, "worker", BUSY)
    assert len(found) == count, found
    assert all("waiting_percent=83.21" in line and "limit_percent=60" in line for line in found)
