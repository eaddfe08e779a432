"""Steps of features/replacement.feature."""

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from tests.behaviour.support.daemons import TENSOR, wait_record
from tests.behaviour.support.http import until
from tests.behaviour.support.person import Person
from tests.behaviour.support.small_node import SmallNode
from tests.behaviour.support.steady_clients import SteadyClients

scenarios("features/replacement.feature")

FORMER, CHANGED = 2, 3
"""Slots of the declarations, by which their workers are told apart."""
LIMIT_S = 120.0


@dataclass
class Case:
    """What a scenario's steps hand on."""

    node: SmallNode
    person: Person
    clients: SteadyClients
    former: list[str]

    def ready(self, slots: int) -> list[str]:
        """The lives of the model's workers with so many slots that are ready."""
        rows: list[dict[str, Any]] = self.node.admin.get("/v2/workers/list").json["workers"]
        there = [row for row in rows if row["slots_total"] == slots and row["state"] in ("idle", "busy")]
        return sorted(row["invocation_id"] for row in there)


@pytest.fixture
def things() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@given(
    parsers.re(r"a node with memory for (?P<count>\d) workers?, and a queen that keeps \d there"), target_fixture="case"
)
def a_small_node(models: Path, tmp_path: Path, things: ExitStack, count: str) -> Case:
    node = SmallNode(models, int(count))
    things.callback(node.close)
    replicas = {"min": int(count), "max": int(count)}
    reference = f"file://{node.folder_of_model}"
    node.queen_config["models"] = {"tiny": {"reference": reference, "slots": FORMER, "replicas": replicas}}
    node.start()
    clients = SteadyClients(lambda: node.client.post("/v2/models/tiny/infer", TENSOR))
    things.callback(clients.stop)
    case = Case(node, Person(tmp_path, "--socket", node.run_dir / "queen.sock"), clients, [])
    case.former = until(_so_many(case, FORMER, int(count)), LIMIT_S)
    return case


def _so_many(case: Case, slots: int, count: int) -> Callable[[], list[str]]:
    def found() -> list[str]:
        ready = case.ready(slots)
        return ready if len(ready) == count else []

    return found


@given("clients ask without a pause")
def ask_on(case: Case) -> None:
    case.clients.start()


@when(parsers.parse("the declaration asks for other slots, and for {replacement}"))
def other_slots(case: Case, replacement: str) -> None:
    case.node.queen_config["models"]["tiny"] |= {"slots": CHANGED, "replacement": replacement}
    case.node.write_queen_config()
    assert case.node.queen is not None
    case.node.queen.signal(signal.SIGHUP)


@then("rbee model list tells what is lacking, and that the former worker goes on")
def told_why(case: Case) -> None:
    def note() -> str:
        return " ".join(case.person.rbee("model", "list").out.split())

    told = until(lambda: (said := note()) and "those of the former one go on" in said and said, LIMIT_S)
    assert re.search(r"needs 12\d MB of RAM and the best place, bee, has 6\d MB", told), told


@then("the former worker serves, and no request failed")
def former_serves(case: Case) -> None:
    none_failed(case)
    assert case.ready(FORMER) == case.former
    assert case.ready(CHANGED) == []


@then(parsers.re(r"(?P<count>\d) workers? of the changed declaration serves?, and no former one"))
def replaced(case: Case, count: str) -> None:
    until(_so_many(case, CHANGED, int(count)), LIMIT_S)
    until(lambda: not case.ready(FORMER))


@then(parsers.re(r"an alert told that one ended first while (?P<other>another one served|none served beside it)"))
def alerted(case: Case, other: str) -> None:
    others_serve = f"others_serve={other == 'another one served'}"
    wait_record(case.node, "queen", "ALERT", "a worker ends before its replacement starts", others_serve)


@then("no request failed")
def none_failed(case: Case) -> None:
    answers = case.clients.stop()
    assert [answer.body for answer in answers if answer.status != 200] == []
