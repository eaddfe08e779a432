"""Steps of features/declared.feature."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from pytest_bdd import given, parsers, scenarios, then, when

from tests.behaviour.support.person import Done, Person
from tests.behaviour.support.stack import Stack, free_port

scenarios("features/declared.feature")


def declared(name: str, **more: object) -> dict[str, Any]:
    return {"reference": f"hf:org/{name}", **more}


@dataclass
class Applied:
    """A person beside a queen, the file, and the commands that ended."""

    person: Person
    path: Path
    done: list[Done] = field(default_factory=list)

    def write(self, content: dict[str, Any]) -> None:
        self.path.write_text(yaml.safe_dump(content))

    def apply(self, *options: str) -> None:
        self.done.append(self.person.rbee("apply", self.path, *options))


@pytest.fixture
def applied(stack: Stack, tmp_path: Path) -> Applied:
    return Applied(Person(tmp_path, "--socket", stack.run_dir / "queen.sock"), tmp_path / "fleet.yaml")


@given("a queen whose configuration declares the model house")
def queen(stack: Stack) -> None:
    stack.queen_config = {"models": {"house": declared("house")}}
    stack.start_queen()


@given(parsers.parse("a file that declares the model chat with {slots:d} slots"))
def one_model(applied: Applied, slots: int) -> None:
    applied.write({"declared": {"chat": declared("chat", slots=slots)}})


@given("a file that declares the models chat and house")
def two_models(applied: Applied) -> None:
    applied.write({"declared": {"chat": declared("chat"), "house": declared("other")}})


@given("a file that declares the model chat and names a machine that refuses every connection")
def model_and_machine(applied: Applied) -> None:
    gone = {"host": "127.0.0.1", "port": free_port(), "host_key": "SHA256:" + "A" * 43}
    applied.write({"declared": {"chat": declared("chat")}, "nodes": {"gone": gone}})


@given("a file that declares nothing")
def nothing(applied: Applied) -> None:
    applied.write({"declared": {}})


@given("a file with a key that nobody knows in its third line")
def unknown_key(applied: Applied) -> None:
    applied.path.write_text("declared:\n  chat:\n    colour: red\n    reference: hf:org/chat\n")


@given("it was applied")
@when("it is applied")
def apply(applied: Applied) -> None:
    applied.apply()


@when(parsers.re("it is applied with (?P<options>--.*)"))
def apply_with(applied: Applied, options: str) -> None:
    applied.apply(*options.split())


@when("the queen is started anew")
def queen_anew(stack: Stack) -> None:
    assert stack.queen is not None
    stack.queen.stop()
    stack.start_queen()


@then(parsers.parse('it ends with {code:d} and says "{words}"'))
def ended(applied: Applied, code: int, words: str) -> None:
    done = applied.done[-1]
    assert done.code == code, done
    assert words in done.out + done.err, done


@then(parsers.parse('it says "{words}"'))
def said(applied: Applied, words: str) -> None:
    assert words in applied.done[-1].out + applied.done[-1].err, applied.done[-1]


@then("it ends with 0 and prints no step")
def no_step(applied: Applied) -> None:
    done = applied.done[-1]
    assert done.code == 0, done
    found = json.loads(done.out)
    assert (found["changed"], found["steps"], found["results"]) == (False, [], [])


@then(parsers.re("the queen lists (?P<names>[a-z ]+)$"))
def listed(stack: Stack, names: str) -> None:
    found = [model["id"] for model in stack.admin.get("/v1/models").json["data"]]
    assert sorted(found) == names.split(" and ")
