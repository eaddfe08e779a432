"""The queen's registry of workers, and what is looked at before work is sent to a hive."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee import __version__
from rbee.keeper.demo.corpus import TOPICS
from tests.behaviour.support.hazards import LONG_NAME, held_request, long_request
from tests.behaviour.support.http import Answer, Http, until
from tests.behaviour.support.other_hive import GARBAGE, OtherHive
from tests.behaviour.support.person import Done, Person
from tests.behaviour.support.stack import HIVE_ID, Stack, free_port

scenarios("features/registry.feature")

TALK, LONE = "talk", "lone"
QUESTION = {"prompt": TOPICS[0].questions[0], "max_tokens": 64, "temperature": 0, "stream": False}
SILENT_S, DROP_S = 1.5, 3.0


@dataclass
class Case:
    """What a scenario has seen so far."""

    answers: list[Answer] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    worker: str = ""
    hive: OtherHive | None = None
    done: Done | None = None
    life: str = ""
    log_start: int = 0

    @property
    def answer(self) -> Answer:
        return self.answers[-1]

    @property
    def other(self) -> OtherHive:
        assert self.hive is not None
        return self.hive

    @property
    def ended(self) -> Done:
        assert self.done is not None
        return self.done


@pytest.fixture(scope="module")
def house(models: Path) -> Iterator[Stack]:
    """Queen, hive and two workers; the queen forgets silent hives soon."""
    made = Stack(models)
    made.queen_config = {"heartbeat": {"drop_after_s": DROP_S}, "requests": {"admission_timeout_s": 1.0}}
    made.hive_config = {"heartbeat_interval_s": 0.4}
    try:
        made.start()
        made.run_worker(TALK, "bee-talk", idle_limit_s=0)
        made.run_worker(LONE, "bee-talk", name=LONG_NAME, slots=1, idle_limit_s=0)
        yield made
    finally:
        made.close()


@pytest.fixture
def case(house: Stack) -> Case:
    assert house.hive is not None
    return Case(log_start=len(house.hive.log))


@pytest.fixture
def things() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def person(house: Stack, tmp_path: Path) -> Person:
    return person_of(house, tmp_path)


def person_of(stack: Stack, home: Path) -> Person:
    return Person(home, "--socket", stack.run_dir / "queen.sock", "--hive-socket", stack.run_dir / "hive.sock")


def another_hive(house: Stack, case: Case, things: ExitStack) -> OtherHive:
    queen = Http(house.queen_url, house.tokens["hive_callback_token"])
    case.hive = things.enter_context(OtherHive(queen))
    return case.hive


# QREG


@given(parsers.parse('another hive with a worker "{worker}" that the queen does not know'))
def unknown_worker(house: Stack, case: Case, things: ExitStack, worker: str) -> None:
    case.report = another_hive(house, case, things).report(worker)
    case.worker = worker
    assert worker not in house.rows()


@given(parsers.parse('another hive with a worker "{worker}" that the queen has listed'))
def listed_worker(house: Stack, case: Case, things: ExitStack, worker: str) -> None:
    hive = another_hive(house, case, things)
    hive.beat(hive.report(worker), interval_s=SILENT_S / 3)
    case.worker = worker
    assert house.rows()[worker]["state"] == "idle"


@when("that hive reports the worker ready")
def report_ready(case: Case) -> None:
    case.answers.append(case.other.tell_ready(case.report))


@then(parsers.parse('the answer is 200 with success and "{message}", and the worker is listed'))
def stored(house: Stack, case: Case, message: str) -> None:
    assert case.answer.status == 200
    assert case.answer.json == {"success": True, "message": message}
    row = house.rows()[case.worker]
    assert {name: row[name] for name in ("hive_id", "url", "revision")} == {
        name: case.report[name] for name in ("hive_id", "url", "revision")
    }


@when("the same report comes again, then a newer one")
def report_again(case: Case) -> None:
    case.answers.append(case.other.tell_ready(case.report))
    newer = case.other.report(case.worker, url="http://127.0.0.1:10")
    case.answers.append(case.other.tell_ready(newer))


@then("the first is answered 200 and ignored, the second 200 and stored, and there is one row")
def upsert(house: Stack, case: Case) -> None:
    again, newer = case.answers[-2:]
    assert (again.status, newer.status) == (200, 200)
    assert again.json["message"].startswith("ignored")
    assert newer.json == {"success": True, "message": "stored"}
    rows = [row for row in house.admin.get("/v2/workers/list").json["workers"] if row["worker_id"] == case.worker]
    assert [row["url"] for row in rows] == ["http://127.0.0.1:10"]


@when("an administrator lists the workers")
def list_workers(house: Stack, case: Case) -> None:
    case.answers.append(house.admin.get("/v2/workers/list"))


@then("the row of a real worker has id, hive, url, model_ref, backend, device, state, slots and capabilities")
def full_row(house: Stack, case: Case) -> None:
    assert case.answer.status == 200
    (row,) = [row for row in case.answer.json["workers"] if row["worker_id"] == TALK]
    assert (row["hive_id"], row["state"], row["backend"], row["device"]) == (HIVE_ID, "idle", "cpu", 0)
    assert Http(row["url"]).get("/health").json["worker_id"] == TALK
    assert row["model_ref"] == f"file://{house.models / 'bee-talk'}"
    assert (row["slots_total"], row["slots_available"]) == (4, 4)
    assert {"generate", "cpu"} <= set(row["capabilities"])


@given(parsers.parse('another hive reports a worker "{worker}" on cuda:0, which is no GPU but says so'))
def painted(house: Stack, case: Case, things: ExitStack, worker: str) -> None:
    hive = another_hive(house, case, things)
    hive.beat(hive.report(worker, backend="cuda", device=0))
    case.worker = worker


@when(parsers.parse('an administrator lists the workers with the capability "{capability}"'))
def list_capability(house: Stack, case: Case, capability: str) -> None:
    case.answers.append(house.admin.get(f"/v2/workers/list?capability={capability}"))


def listed(case: Case) -> set[str]:
    assert case.answer.status == 200
    return {row["worker_id"] for row in case.answer.json["workers"]}


@then(parsers.parse('the answer is 200 and has only "{worker}"'))
def only(case: Case, worker: str) -> None:
    assert listed(case) == {worker}


@then(parsers.parse('the answer is 200 and has the real workers and not "{worker}"'))
def not_that(case: Case, worker: str) -> None:
    assert {TALK, LONE} <= listed(case)
    assert worker not in listed(case)


@when(parsers.parse('the worker "{worker}" is patched to {state}'))
def patch(house: Stack, case: Case, worker: str, state: str) -> None:
    case.worker = worker
    case.answers.append(house.admin.call("PATCH", f"/v2/workers/{HIVE_ID}/{worker}", {"state": state}))


@then("the answer is 200, its row is busy, and a request for its model gets 503 ALL_SLOTS_BUSY")
def held_back(house: Stack, case: Case) -> None:
    assert (case.answer.status, case.answer.json["state"]) == (200, "busy")
    assert house.row(case.worker)["state"] == "busy"
    refused = house.client.post("/v1/inference", QUESTION | {"model": "bee-talk"})
    assert (refused.status, refused.error["code"]) == (503, "ALL_SLOTS_BUSY")


@then("the answer is 200, its row is idle, and a request for its model is answered")
def let_go(house: Stack, case: Case) -> None:
    assert (case.answer.status, case.answer.json["state"]) == (200, "idle")
    assert house.row(case.worker)["state"] == "idle"
    answer = house.client.post("/v1/inference", QUESTION | {"model": "bee-talk"})
    assert (answer.status, answer.json["text"]) == (200, TOPICS[0].answer)


@when(parsers.parse('the worker "{worker}" is deleted'))
def delete(house: Stack, case: Case, worker: str) -> None:
    case.answers.append(house.admin.call("DELETE", f"/v2/workers/{case.other.hive_id}/{worker}"))


@then("the answer is 204 and the worker is not listed")
def deleted(house: Stack, case: Case) -> None:
    assert (case.answer.status, case.answer.body) == (204, b"")
    assert case.worker not in house.rows()


@then("the answer is 404 WORKER_NOT_FOUND")
def no_such_worker(case: Case) -> None:
    assert (case.answer.status, case.answer.error["code"]) == (404, "WORKER_NOT_FOUND")


@when("that hive is silent for longer than the limit")
def silent(house: Stack, case: Case) -> None:
    house.wait_state(case.worker, "stale", limit_s=SILENT_S + 5)


@then(parsers.parse('"{worker}" is stale first and then dropped, and the real workers are still listed'))
def dropped(house: Stack, worker: str) -> None:
    until(lambda: worker not in house.rows(), DROP_S + 5)
    assert {house.row(name)["state"] for name in (TALK, LONE)} == {"idle"}


# HREG


@given("a queen and a hive that were started just now", target_fixture="person")
def fresh(stack: Stack, tmp_path: Path) -> Person:
    stack.start()
    return person_of(stack, tmp_path)


@then('rbee hive health exits with 0 and shows "healthy" and API v1')
def health(person: Person) -> None:
    done = person.rbee("hive", "health")
    assert done.code == 0, done.err
    assert done.out.strip() == f"hive: healthy, version {__version__}, API v1"


@then("the hive's list is an empty list of workers, and its resources and capabilities answer")
def empty(stack: Stack) -> None:
    assert stack.hive_admin.get("/v1/workers/list").json == {"workers": []}
    assert stack.hive_admin.get("/v1/resources").json["ram_available_bytes"] > 0
    assert stack.hive_admin.get("/v1/capabilities").status == 200


@when("a person spawns a worker with a model")
def spawn(stack: Stack, case: Case, person: Person) -> None:
    until(lambda: stack.admin.get("/health").json["hives"] == 1)
    model = f"file://{stack.models / 'tiny-tensor'}"
    case.done = person.rbee("worker", "spawn", "first", "--model", model)


@then("it exits with 0 and the worker is ready in both lists")
def spawned(stack: Stack, case: Case) -> None:
    assert case.ended.code == 0, case.ended.err
    assert case.ended.out.strip() == "worker first: idle"
    (row,) = stack.hive_admin.get("/v1/workers/list").json["workers"]
    assert (row["worker_id"], row["state"], stack.row("first")["state"]) == ("first", "idle", "idle")


@when(parsers.parse('a person asks the model of the worker "{worker}" a question'))
def ask(house: Stack, case: Case, person: Person, worker: str) -> None:
    case.worker, case.life = worker, house.row(worker)["invocation_id"]
    question = TOPICS[0].questions[0]
    case.done = person.rbee("infer", "--model", "bee-talk", "--prompt", question, "--max-tokens", 64)


@then("it exits with 0 and stdout is the known answer")
def known_answer(case: Case) -> None:
    assert case.ended.code == 0, case.ended.err
    assert case.ended.out.strip() == TOPICS[0].answer


@then("nothing was spawned and the worker is in the same life")
def same_life(house: Stack, case: Case) -> None:
    assert house.hive is not None
    assert house.row(case.worker)["invocation_id"] == case.life
    assert [line for line in house.hive.log[case.log_start :] if "worker.spawn" in line] == []


@given(parsers.parse('the only slot of the worker "{worker}" is held by a client that does not read'))
def held(house: Stack, case: Case, things: ExitStack, worker: str) -> None:
    case.worker, case.life = worker, house.row(worker)["invocation_id"]
    body = long_request(house.worker(worker))
    things.enter_context(held_request(house.worker(worker), body))
    assert house.worker(worker).get("/health").json["slots_busy"] == 1


@when("a client asks for its model")
def ask_busy(house: Stack, case: Case) -> None:
    case.answers.append(house.client.post("/v1/inference", QUESTION | {"model": LONG_NAME}))


@then("it gets 503 ALL_SLOTS_BUSY in the end")
def busy(house: Stack, case: Case) -> None:
    assert (case.answer.status, case.answer.error["code"]) == (503, "ALL_SLOTS_BUSY")
    assert int(case.answer.headers["Retry-After"]) >= 1
    assert house.worker(case.worker).get("/health").json["slots_busy"] == 1


@given(parsers.re("another hive that (?P<manner>never answers|answers invalid JSON)"))
def ill_mannered(house: Stack, case: Case, things: ExitStack, manner: str) -> None:
    hive = another_hive(house, case, things)
    hive.manner = "never" if manner.startswith("never") else "garbage"
    hive.beat()


@given(parsers.parse("another hive of version {version}"))
def other_version(house: Stack, case: Case, things: ExitStack, version: str) -> None:
    hive = another_hive(house, case, things)
    hive.version = version
    hive.beat()


@when("a person spawns a worker there")
def spawn_there(house: Stack, case: Case, person: Person) -> None:
    model = f"file://{house.models / 'tiny-tensor'}"
    case.done = person.rbee("worker", "spawn", "w", "--node", case.other.hive_id, "--model", model)


@when("a person asks for its health")
def ask_health(case: Case, person: Person) -> None:
    person.flags += ["--hive-url", case.other.url]
    person.flags = [flag for flag in person.flags if flag != "--hive-socket" and not flag.endswith("hive.sock")]
    case.done = person.rbee("hive", "health")


@when("a person asks for the health of a hive that is not there")
def nobody_there(case: Case, tmp_path: Path) -> None:
    case.done = Person(tmp_path, "--hive-url", f"http://127.0.0.1:{free_port()}").rbee("hive", "health")


@then("it exits with 1, names HIVE_UNREACHABLE and says where to look")
def unreachable(case: Case) -> None:
    assert case.ended.code == 1
    assert "(HIVE_UNREACHABLE)" in case.ended.err
    assert "3 tries of 10 s" in case.ended.err
    assert "systemctl status rbee-hive" in case.ended.err


@then("the hive was called 3 times, 10 s and 0.2 s apart, then 10 s and 0.4 s")
def three_calls(case: Case) -> None:
    times = [at for at, what in case.other.heard if what == "POST /v1/workers/spawn"]
    assert len(times) == 3
    for gap, wanted in zip((times[1] - times[0], times[2] - times[1]), (10.2, 10.4), strict=True):
        assert wanted - 0.1 < gap < wanted + 3


@then(parsers.parse("it exits with 1, names {code}, the position in the answer, and how to restart the hive"))
def invalid_json(case: Case, code: str) -> None:
    assert case.ended.code == 1
    assert f"({code})" in case.ended.err, case.ended.err
    assert f"line 1 column {GARBAGE.index(b'oops') + 1}" in case.ended.err, case.ended.err
    assert "systemctl restart rbee-hive" in case.ended.err


@then("three tries are shown, it exits with 1, names CONNECTION_TIMEOUT and says to look at the service")
def not_there(case: Case) -> None:
    for number in (1, 2, 3):
        assert f"try {number} of 3" in case.ended.err
    assert case.ended.code == 1
    assert "(CONNECTION_TIMEOUT)" in case.ended.err
    assert "systemctl status rbee-hive" in case.ended.err


@then("it exits with 1, names VERSION_MISMATCH and both versions, and shows the upgrade command")
def mismatch(case: Case) -> None:
    assert case.ended.code == 1
    for told in ("(VERSION_MISMATCH)", __version__, "9.8.7", "apt install --only-upgrade"):
        assert told in case.ended.err, case.ended.err
