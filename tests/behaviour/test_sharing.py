"""How requests share workers, seen by real clients of a real queen with real hives and workers."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pytest_bdd import given, scenarios, then, when

from rbee.keeper.demo.corpus import TOPICS
from rbee.keeper.demo.faulty import build_slow_load
from tests.behaviour.support.http import Answer, Http, until
from tests.behaviour.support.other_hive import OtherHive
from tests.behaviour.support.stack import HIVE_ID, TOKENS, Stack

scenarios("features/sharing.feature")

TALK, MODEL = "talk", "bee-talk"
BODY = {"model": MODEL, "messages": [{"role": "user", "content": TOPICS[0].questions[0]}], "temperature": 0}
MANY = 12
LOAD_S = 2.0
INPUT = {"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}]}


@dataclass
class Case:
    """What a scenario has seen so far; ``answers`` in the order in which they came, by who asked."""

    answers: list[tuple[str, Answer]] = field(default_factory=list)
    threads: list[threading.Thread] = field(default_factory=list)
    hives: list[Stack] = field(default_factory=list)
    other: OtherHive | None = None


@pytest.fixture
def things() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def case() -> Iterator[Case]:
    made = Case()
    yield made
    for thread in made.threads:
        thread.join(120)


def at_once(case: Case, who: str, calls: list[Callable[[], Answer]]) -> None:
    """Make the calls in the same moment, each in a thread."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Answer]) -> None:
        start.wait(30)
        answer = call()
        case.answers.append((who, answer))

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    case.threads += threads


def joined(case: Case) -> list[Answer]:
    for thread in case.threads:
        thread.join(120)
        assert not thread.is_alive()
    assert len(case.answers) == len(case.threads)
    return [answer for _, answer in case.answers]


def ask(stack: Stack, token: str | None = None, **headers: str) -> Answer:
    client = Http(stack.queen_url, token or stack.tokens["api_token"], timeout_s=120)
    return client.call("POST", "/v1/chat/completions", BODY, headers)


# spread


@given("two hives with two workers each serve the talking model")
def two_hives(stack: Stack, models: Path, case: Case, things: ExitStack) -> None:
    stack.start_queen()
    for number in range(2):
        other = Stack(models)
        things.callback(other.close)
        for name in TOKENS:
            other.write_token(name, stack.tokens[name])
        other.hive_config = {"hive_id": f"bee{number}", "queen": {"callback_url": stack.queen_url}}
        other.start_hive()
        for worker in ("one", "two"):
            other.define_worker(worker, MODEL, slots=4, idle_limit_s=0)
            other.spawn(worker)
        case.hives.append(other)

    def ready() -> bool:
        rows = stack.admin.get("/v2/workers/list").json["workers"]
        return len(rows) == 4 and all(row["state"] == "idle" for row in rows)

    until(ready, 120, every_s=0.2)


@when("ten clients ask for it in the same moment")
def ten_ask(stack: Stack, case: Case) -> None:
    at_once(case, "client", [lambda: ask(stack) for _ in range(10)])


@then("each gets its whole answer, and every worker answered two or three of them")
def balanced(case: Case) -> None:
    answers = joined(case)
    assert {answer.status for answer in answers} == {200}
    assert len({answer.json["choices"][0]["message"]["content"] for answer in answers}) == 1
    spread = Counter(answer.headers["X-Rbee-Worker"] for answer in answers)
    assert sorted(spread) == ["bee0/one", "bee0/two", "bee1/one", "bee1/two"]
    assert set(spread.values()) <= {2, 3}, spread


# registration


@given("a queen, and ten workers of a hive of the test's own")
def ten_workers(stack: Stack, case: Case, things: ExitStack) -> None:
    stack.start_queen()
    queen = Http(stack.queen_url, stack.tokens["hive_callback_token"])
    case.other = things.enter_context(OtherHive(queen))


@when("all ten are told to be ready in the same moment")
def all_ready(case: Case) -> None:
    other = case.other
    assert other is not None
    reports = [other.report(f"w{number}") for number in range(10)]
    at_once(case, "hive", [lambda report=report: other.tell_ready(report) for report in reports])  # type: ignore[misc]


@then("the queen lists ten workers, each once, and all of them idle")
def ten_listed(stack: Stack, case: Case) -> None:
    assert {answer.status for answer in joined(case)} == {200}
    rows = stack.admin.get("/v2/workers/list").json["workers"]
    assert sorted(row["worker_id"] for row in rows) == sorted(f"w{number}" for number in range(10))
    assert {row["state"] for row in rows} == {"idle"}


# fairness and limits


def talking(stack: Stack, limits: dict[str, dict[str, int]]) -> None:
    files = {name: str(stack.write_token(f"client-{name}", f"the-token-of-{name}")) for name in limits}
    stack.queen_config = {"clients": limits, "tokens": {"clients": files}, "requests": {"admission_timeout_s": 60}}
    stack.start()
    stack.run_worker(TALK, MODEL, slots=1, idle_limit_s=0)


@given("the talking model has one slot, and two clients have tokens with names")
def two_clients(stack: Stack) -> None:
    talking(stack, {"greedy": {}, "modest": {}})


@given("the talking model has one slot, and a client may have two requests at once")
def limited_client(stack: Stack) -> None:
    talking(stack, {"greedy": {"concurrent": 2}})


@when("one client asks twelve times at once, and then the other asks once")
def greedy_then_modest(stack: Stack, case: Case) -> None:
    that_client_asks(stack, case)
    until(lambda: stack.admin.get("/health").json["waiting"] >= MANY - 3, every_s=0.01)
    at_once(case, "modest", [lambda: ask(stack, "the-token-of-modest")])


@when("that client asks twelve times at once")
def that_client_asks(stack: Stack, case: Case) -> None:
    at_once(case, "greedy", [lambda: ask(stack, "the-token-of-greedy") for _ in range(MANY)])


@then("the other has its answer while most of the twelve still wait")
def modest_first(case: Case) -> None:
    joined(case)
    place = [who for who, _ in case.answers].index("modest")
    assert place <= MANY // 2, place


@then("every one of them is answered")
def all_answered(case: Case) -> None:
    assert {answer.status for answer in joined(case)} == {200}


@then("some are answered, and the others get 429 with Retry-After and the limit that they met")
def limited(case: Case) -> None:
    answers = joined(case)
    refused = [answer for answer in answers if answer.status != 200]
    assert 0 < len(refused) < MANY
    for answer in refused:
        assert (answer.status, answer.error["code"]) == (429, "TOO_MANY_REQUESTS")
        assert answer.error["details"] == {"limit": "concurrent", "allowed": 2}
        assert int(answer.headers["Retry-After"]) >= 1


# silence


@given("a queen and a hive with short intervals, and the talking model is ready")
def short_intervals(stack: Stack) -> None:
    stack.queen_config = {"requests": {"silent_wait_s": 1}}
    stack.hive_config = {"heartbeat_interval_s": 0.4}
    stack.start()
    stack.run_worker(TALK, MODEL, idle_limit_s=0)


@when("the hive stands still until its worker is stale")
def stands_still(stack: Stack, things: ExitStack) -> None:
    assert stack.hive is not None
    pid = stack.hive.pid
    os.kill(pid, signal.SIGSTOP)
    things.callback(moves, stack)
    stack.wait_state(TALK, "stale")


def moves(stack: Stack) -> None:
    assert stack.hive is not None
    os.kill(stack.hive.pid, signal.SIGCONT)


@then("a request without a deadline gets 503 that names the node, within the grace and with Retry-After")
def told(stack: Stack) -> None:
    began = time.monotonic()
    answer = ask(stack)
    assert time.monotonic() - began >= 1.0
    assert (answer.status, answer.error["code"]) == (503, "HIVE_UNREACHABLE")
    assert answer.error["details"]["node"] == HIVE_ID
    assert HIVE_ID in answer.error["message"]
    assert int(answer.headers["Retry-After"]) >= 1


@then("a request with a deadline is answered once the hive moves again")
def waits_as_asked(stack: Stack, case: Case) -> None:
    deadline = str(int((time.time() + 100) * 1000))
    at_once(case, "patient", [lambda: ask(stack, **{"X-Request-Deadline": deadline})])
    until(lambda: stack.admin.get("/health").json["waiting"] == 1)
    time.sleep(1.5)  # longer than the grace of one without a deadline
    assert not case.answers
    moves(stack)
    assert [answer.status for answer in joined(case)] == [200]


# conversations


@given("two workers serve the talking model")
def two_workers(stack: Stack) -> None:
    stack.start()
    for worker in ("one", "two"):
        stack.run_worker(worker, MODEL, slots=2, idle_limit_s=0)


@when("five conversations have two turns each")
def two_turns(stack: Stack, case: Case) -> None:
    client = Http(stack.queen_url, stack.tokens["api_token"], timeout_s=120)
    for turn in range(2):
        for number in range(5):
            past = [{"role": "user", "content": f"conversation {number}: {TOPICS[number].questions[0]} " * 14}]
            past += [{"role": "assistant", "content": "so"}, {"role": "user", "content": "and then?"}] * turn
            body = {"model": MODEL, "messages": past, "temperature": 0, "max_tokens": 4}
            case.answers.append((str(number), client.post("/v1/chat/completions", body)))


@then("the second turn of each is answered by the worker of the first")
def stays(case: Case) -> None:
    assert {answer.status for _, answer in case.answers} == {200}
    workers: dict[str, list[str]] = {}
    for number, answer in case.answers:
        workers.setdefault(number, []).append(answer.headers["X-Rbee-Worker"])
    assert all(first == second for first, second in workers.values()), workers
    assert {first for first, _ in workers.values()} == {f"{HIVE_ID}/one", f"{HIVE_ID}/two"}


@then("the queen counts five prompts whose beginning was found")
def counted(stack: Stack) -> None:
    assert stack.admin.metric("queen_rbee_affinity_total", outcome="hit") == 5


# cold models


@given("a model that takes 2 s to load, which was loaded before and is stopped")
def loaded_before(stack: Stack) -> None:
    folder = stack.state_dir / "models" / "slow"
    folder.mkdir(parents=True)
    build_slow_load(folder, LOAD_S)
    stack.start()
    stack.run_worker("slow", str(folder), name="slow", idle_limit_s=0)
    assert stack.hive_admin.call("DELETE", "/v1/workers/slow").status in (200, 202)
    stack.wait_state("slow", "stopped")


@when("a client asks for it and does not want to wait")
def does_not_wait(stack: Stack, case: Case) -> None:
    case.answers.append(("impatient", infer(stack, Prefer="respond-async")))


def infer(stack: Stack, **headers: str) -> Answer:
    client = Http(stack.queen_url, stack.tokens["api_token"], timeout_s=120)
    return client.call("POST", "/v2/models/slow/infer", INPUT, headers)


@then("it gets 503 MODEL_LOADING with the node and an estimate of a few seconds")
def estimated(case: Case) -> None:
    answer = case.answers[-1][1]
    assert (answer.status, answer.error["code"]) == (503, "MODEL_LOADING")
    loading = answer.error["details"]["loading"]
    assert loading["node"] == HIVE_ID
    assert LOAD_S / 2 < loading["eta_seconds"] < 60
    assert 1 <= int(answer.headers["Retry-After"]) <= 60


@then("after the time of Retry-After the model answers")
def ready_then(stack: Stack, case: Case) -> None:
    time.sleep(int(case.answers[-1][1].headers["Retry-After"]))
    assert infer(stack).status == 200
