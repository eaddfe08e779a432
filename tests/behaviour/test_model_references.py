"""Steps of features/model_references.feature."""

import random
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from tests.behaviour.support.http import Answer, Http
from tests.behaviour.support.stack import Stack

scenarios("features/model_references.feature")

HOSTILE = {
    "a newline": "hf:org/repo\nworker=forged",
    "an ANSI escape": "hf:org/repo\x1b[31mred",
    "a NUL byte": "hf:org/repo\0tail",
    "garbage": "just-some-words",
    "a shell's command": "hf:org/repo;rm -rf $HOME",
    "an injection of SQL": "hf:org/'; DROP TABLE models; --",
    "a script tag": "file:///<script>alert(1)</script>",
    "an emoji": "hf:🐝/repo",
    "a URL with a password": "https://user:secret-word@host/m/",
    "an encoded path upwards": "https://host/%2e%2e/m/",
}


@dataclass
class Case:
    """What a scenario's steps hand on."""

    reference: str = ""
    answers: list[Answer] = field(default_factory=list)
    before: Any = None


@pytest.fixture
def case() -> Case:
    return Case()


@given("queen and hive are running", target_fixture="running")
def running(shared_stack: Stack, case: Case) -> Stack:
    case.before = shared_stack.hive_admin.get("/v1/models").json["models"]
    return shared_stack


def _orders(stack: Stack, reference: str) -> list[Answer]:
    """What the hive answers to the orders that take a reference."""
    hive = stack.hive_admin
    return [
        hive.post("/v1/models/download", {"reference": reference}),
        hive.post("/v1/workers/spawn", {"worker_id": "never", "model_ref": reference}),
    ]


def _question(stack: Stack, reference: str) -> Answer:
    return stack.hive_admin.get(f"/v1/models/download/progress?reference={quote(reference, safe='')}")


def _queens(stack: Stack, reference: str, backend: str = "cpu") -> Answer:
    return stack.client.post("/v2/workers/spawn", {"worker_id": "never", "model_ref": reference, "backend": backend})


@when(parsers.re(r"(?P<what>an? .+|garbage) is given as a model"))
def hostile(running: Stack, case: Case, what: str) -> None:
    outside = running.folder / "outside"
    outside.mkdir(exist_ok=True)
    link = running.state_dir / "models/link"
    link.parent.mkdir(exist_ok=True)
    if not link.is_symlink():
        link.symlink_to(running.models / "tiny-tensor")
    paths = {
        "a path upwards": f"file://{running.models}/../outside",
        "a folder outside the roots": f"file://{outside}",
        "a link to a folder": f"file://{link}",
    }
    case.reference = {**HOSTILE, **paths}[what]
    case.answers = _orders(running, case.reference)
    if what not in paths:
        case.answers += [_question(running, case.reference), _queens(running, case.reference)]
        case.answers.append(running.client.post("/v2/hives/bee/models/download", {"reference": case.reference}))


@when(parsers.re(r"(?P<reference>(hf|https):\S+) is given as a model"))
def accepted(running: Stack, case: Case, reference: str) -> None:
    # cuda is not on this machine: the spawn goes as far as that and no further
    case.answers = [_question(running, reference), _queens(running, reference, backend="cuda")]


@then("no route refuses it for its form")
def not_for_its_form(case: Case) -> None:
    assert [answer.error["code"] for answer in case.answers] == ["MODEL_NOT_HERE", "BACKEND_UNAVAILABLE"]


@then("every route answers 400 with the accepted forms and without the reference")
def refused(case: Case) -> None:
    for answer in case.answers:
        assert (answer.status, answer.error["code"]) == (400, "INVALID_MODEL_REFERENCE"), answer.body
        assert "hf:org/repo" in answer.error["message"]
        _not_echoed(case, answer)


@then("the hive's routes answer 400 without the reference")
def hive_refused(case: Case) -> None:
    codes = [(answer.status, answer.error["code"]) for answer in case.answers]
    assert codes[0] == (400, "INVALID_MODEL_REFERENCE")
    assert codes[1][0] == 400
    for answer in case.answers:
        _not_echoed(case, answer)


def _not_echoed(case: Case, answer: Answer) -> None:
    text = answer.body.decode()
    assert case.reference not in text
    assert quote(case.reference) not in text
    assert "forged" not in text and "secret-word" not in text and "\x1b" not in text


@then("no log line is split or has it")
def not_logged(running: Stack, case: Case) -> None:
    assert running.hive is not None and running.queen is not None
    for line in [*running.hive.log, *running.queen.log]:
        assert not line.startswith("worker=forged")
        assert "\x1b" not in line and "\0" not in line and "secret-word" not in line and "<script>" not in line


@then("the catalogue is as it was")
def unchanged(running: Stack, case: Case) -> None:
    answer = running.hive_admin.get("/v1/models").json
    assert answer["models"] == case.before
    assert answer["problem"] is None


@when("a thousand random references are given")
def thousand(running: Stack, case: Case) -> None:
    generator = random.Random(7)  # noqa: S311
    alphabet = [chr(code) for code in (*range(0, 256), 0x1F41D, 0x202E, 0xFEFF)]
    for _ in range(1000):
        head = generator.choice(("", "hf:", "https://", "file:///", "hf:a/"))
        reference = head + "".join(generator.choices(alphabet, k=generator.randint(5, 60))) + "\x01"
        case.answers.append(_asked_again(running.hive_admin, "/v1/models/download", {"reference": reference}))
        assert reference not in case.answers[-1].body.decode()


def _asked_again(hive: Http, path: str, body: object) -> Answer:
    """The answer, once the hive wants to give it: a caller that sends much that is not acceptable is told to wait."""
    while (answer := hive.post(path, body)).status == 429:
        time.sleep(float(answer.headers["Retry-After"]))
    return answer


@then("each was answered with 400, none was shown again, and the hive still answers")
def survived(running: Stack, case: Case) -> None:
    assert {answer.status for answer in case.answers} == {400}
    assert running.hive_admin.get("/v1/health").status == 200
    assert running.hive_admin.get("/v1/models").json["models"] == case.before
