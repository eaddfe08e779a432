"""Steps of features/warm.feature."""

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, scenarios, then, when

from rbee.queen.core import SETTLE_S, SWEEP_S
from tests.behaviour.support.daemons import TENSOR
from tests.behaviour.support.http import until
from tests.behaviour.support.person import Person
from tests.behaviour.support.stack import Stack

scenarios("features/warm.feature")

IDLE_LIMIT_S = 1.0
AHEAD = timedelta(seconds=SETTLE_S + 7.0)
"""A queen that has just started looks after declared models once her hives have had time to report."""


@dataclass
class Case:
    """A house whose model has one window; ``kept`` is the row of the worker that is kept."""

    stack: Stack
    person: Person
    opens: datetime
    closes: datetime
    kept: dict[str, Any] = field(default_factory=dict)

    def declare(self) -> None:
        window = f"{self.opens:%H:%M:%S}-{self.closes:%H:%M:%S} UTC"
        reference = f"file://{self.stack.models / 'tiny-tensor'}"
        body = {"reference": reference, "idle_limit_s": IDLE_LIMIT_S, "warm": [window]}
        answer = self.stack.admin.call("PUT", "/v2/declarations/tiny", body)
        assert answer.status == 200, answer.body

    def rows(self) -> list[dict[str, Any]]:
        """Workers of the model that run, or are about to."""
        rows = self.stack.admin.get("/v2/workers/list").json["workers"]
        return [row for row in rows if row["model"] == "tiny" and row["state"] not in ("stopped", "failed")]

    def ready(self) -> list[dict[str, Any]]:
        return [row for row in self.rows() if row["state"] == "idle"]

    def told(self, *command: str) -> str:
        done = self.person.rbee(*command)
        assert done.code == 0, done
        return done.out


@pytest.fixture
def case(stack: Stack, tmp_path: Path) -> Case:
    stack.start()
    opens = datetime.now(UTC).replace(microsecond=0) + AHEAD
    return Case(stack, Person(tmp_path, "--socket", stack.run_dir / "queen.sock"), opens, opens + timedelta(hours=1))


@given("a queen with a hive, and a declared model whose window opens in some seconds")
def declared(case: Case) -> None:
    case.declare()


@then("no worker of it runs, and rbee model list says from when one is kept")
def none_yet(case: Case) -> None:
    assert case.rows() == []
    assert f"on demand, 1 kept warm from {case.opens:%a %d %b %H:%M} UTC" in case.told("model", "list")


@then("a worker of it is ready once the window is open, though nobody asked")
def is_ready(case: Case) -> None:
    (case.kept,) = until(case.ready, 60.0)
    assert case.kept["spawned_unix"] >= case.opens.timestamp()


@then("it stays for longer than its idle limit, and rbee why says until when")
def stays(case: Case) -> None:
    time.sleep(IDLE_LIMIT_S + 3 * SWEEP_S)
    (row,) = case.ready()
    assert row["invocation_id"] == case.kept["invocation_id"]
    until_when = f"1 kept warm until {case.closes:%a %d %b %H:%M} UTC"
    assert f"warm times of its model: {until_when}" in case.told("why", row["worker_id"])
    assert "1 kept warm" in case.told("model", "list")


@when("the window closes")
def closes(case: Case) -> None:
    case.closes = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=5)
    case.declare()
    assert [row["invocation_id"] for row in case.rows()] == [case.kept["invocation_id"]]


@then("the worker ends, because it is idle")
def ends(case: Case) -> None:
    until(lambda: not case.rows(), 30.0)
    assert datetime.now(UTC) >= case.closes
    until(lambda: case.stack.client.metric("queen_rbee_drains_total", reason="idle") == 1)


@then("a client that asks is answered by another one")
def on_demand(case: Case) -> None:
    answer = case.stack.client.post("/v2/models/tiny/infer", TENSOR)
    assert answer.status == 200, answer.body
