"""Steps of features/healing.feature."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, scenarios, then, when

from rbee.queen.core import SWEEP_S
from tests.behaviour.support.daemons import TENSOR
from tests.behaviour.support.http import Answer, until
from tests.behaviour.support.model_source import ModelSource
from tests.behaviour.support.person import Person
from tests.behaviour.support.processes import children_of
from tests.behaviour.support.steady_clients import SteadyClients
from tests.behaviour.support.two_hives import TwoHives

scenarios("features/healing.feature")

TINY = "hf:org/tiny"
IDLE_LIMIT_S = 1.0
"""Without force on a worker that is kept, until its declaration is gone."""


@dataclass
class Case:
    """What a scenario's steps hand on."""

    person: Person
    first: dict[str, Any]
    clients: SteadyClients


@pytest.fixture
def house(models: Path) -> Iterator[TwoHives]:
    made = TwoHives(models)
    yield made
    made.close()


@given("a source of models, and a queen with two hives that keeps a worker of a model of it", target_fixture="case")
def kept(house: TwoHives, source: ModelSource, models: Path, tmp_path: Path) -> Iterator[Case]:
    tiny = models / "tiny-tensor"
    files = {str(path.relative_to(tiny)): path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    source.repository("org/tiny", files)
    house.hive_config |= {"models": {"hf_endpoint": source.url, "disk_reserve_mb": 0}, "heartbeat_interval_s": 1.0}
    house.far.hive_config["heartbeat_interval_s"] = 1.0
    declared = {"reference": TINY, "slots": 2, "replicas": {"min": 1, "max": 1}, "idle_limit_s": IDLE_LIMIT_S}
    house.queen_config["models"] = {"tiny": declared}
    house.start()
    (first,) = until(lambda: _ready(house), 60.0)
    clients = SteadyClients(lambda: _ask(house))
    yield Case(Person(tmp_path, "--socket", house.run_dir / "queen.sock"), first, clients)
    clients.stop()


def _ask(house: TwoHives) -> Answer:
    return house.client.post("/v2/models/tiny/infer", TENSOR)


def _rows(house: TwoHives) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = house.admin.get("/v2/workers/list").json["workers"]
    return [row for row in rows if row["model"] == "tiny"]


def _ready(house: TwoHives) -> list[dict[str, Any]]:
    return [row for row in _rows(house) if row["state"] in ("idle", "busy")]


def _reload(house: TwoHives, **changes: object) -> None:
    house.queen_config["models"]["tiny"] |= changes
    house.write_queen_config()
    assert house.queen is not None
    house.queen.signal(signal.SIGHUP)


# given


@given("clients ask without a pause")
def ask_on(case: Case) -> None:
    case.clients.start()


@given("a worker of an operator's own runs beside it")
def own_worker(house: TwoHives) -> None:
    house.spawn("mine", model_ref=f"file://{house.models / 'tiny-tensor'}", name="tiny", idle_limit_s=0)
    house.wait_state("mine", "idle")


# when


@when("the queen is stopped, the model is taken out of her configuration, and she is started again")
def taken_out(house: TwoHives) -> None:
    assert house.queen is not None
    house.queen.stop()
    del house.queen_config["models"]
    house.start_queen()


@when("the node of the worker loses power")
def power_loss(house: TwoHives, case: Case) -> None:
    hive = house.hives[case.first["hive_id"]].hive
    assert hive is not None
    workers = children_of(hive.pid)
    hive.signal(signal.SIGSTOP)  # what happens to its workers it cannot tell
    for pid in workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    hive.kill()


@when("the declaration asks for other slots")
def other_slots(house: TwoHives) -> None:
    _reload(house, slots=3)


@when("the declaration names a revision that its source does not have")
def other_revision(house: TwoHives) -> None:
    _reload(house, reference=f"{TINY}@missing")


# then


@then("a client that asks at once is answered by a worker of the other node")
def answered_elsewhere(house: TwoHives, case: Case) -> None:
    answer = _ask(house)
    assert answer.status == 200, answer.body
    node = answer.headers["X-Rbee-Worker"].partition("/")[0]
    assert {node, case.first["hive_id"]} == set(house.hives)


@then("when the node is back nothing more is started")
def back(house: TwoHives, case: Case) -> None:
    (ready,) = _ready(house)
    house.hives[case.first["hive_id"]].start_hive()
    until(lambda: not [row for row in _rows(house) if row["state"] == "stale"])
    time.sleep(5 * SWEEP_S)  # what is to be seen is that nothing comes
    assert [row["invocation_id"] for row in _ready(house)] == [ready["invocation_id"]]


@then("a worker of the changed declaration serves, and the former one is gone")
def replaced(house: TwoHives, case: Case) -> None:
    def done() -> bool:
        rows = _ready(house)
        return len(rows) == 1 and rows[0]["slots_total"] == 3

    until(done, 90.0)
    until(lambda: case.first["worker_id"] not in {row["worker_id"] for row in _rows(house)}, 60.0)


@then("no request failed")
def none_failed(case: Case) -> None:
    answers = case.clients.stop()
    assert [answer.status for answer in answers if answer.status != 200] == []


@then("rbee model list and rbee status say why the declaration is not in force")
def told_why(case: Case) -> None:
    def note() -> str:
        return case.person.rbee("model", "list").out

    until(lambda: "those of the former one go on" in " ".join(note().split()), 90.0)
    assert "model tiny: its changed declaration is not in force" in case.person.rbee("status").out


@then("the former worker serves, and no request failed")
def former_serves(house: TwoHives, case: Case) -> None:
    assert [row["invocation_id"] for row in _ready(house)] == [case.first["invocation_id"]]
    none_failed(case)


@then("the worker of the model is stopped, and its hive has forgotten it")
def ended(house: TwoHives, case: Case) -> None:
    worker_id = case.first["worker_id"]
    until(lambda: {row["worker_id"] for row in _rows(house)} == {"mine"}, 60.0)
    listed = house.hives[case.first["hive_id"]].hive_admin.get("/v1/workers/list").json["workers"]
    assert worker_id not in {row["worker_id"] for row in listed}


@then("the operator's own worker runs on")
def own_runs_on(house: TwoHives) -> None:
    assert house.wait_state("mine", "idle")["restarts"] == 0
    assert _ask(house).status == 200
