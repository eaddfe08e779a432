"""Many texts at once, seen by clients of one worker."""

import re
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee.keeper.demo.corpus import TOPICS
from tests.behaviour.support.http import Answer, Http, until
from tests.behaviour.support.stack import Stack

scenarios("features/batching.feature")

TALK, MODEL = "talk", "bee-talk"
LONG = {"prompt": "hive", "temperature": 10, "seed": 1, "max_tokens": 1500, "ignore_eos": True}
LIMIT_S = 120.0


@dataclass
class Case:
    """What a scenario has seen so far: answers by question, and what is open."""

    answers: dict[str, Answer] = field(default_factory=dict)
    threads: list[threading.Thread] = field(default_factory=list)


@pytest.fixture
def case() -> Iterator[Case]:
    made = Case()
    yield made
    for thread in made.threads:
        thread.join(LIMIT_S)


@pytest.fixture
def things() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def asked(question: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}], "temperature": 0, "stream": False}


def begin(stack: Stack, case: Case, question: str) -> None:
    """Ask in a thread of its own."""
    worker = Http(str(stack.run_dir / "workers" / TALK / "worker.sock"), timeout_s=LIMIT_S)

    def run() -> None:
        case.answers[question] = worker.post("/v1/inference", asked(question))

    thread = threading.Thread(target=run)
    thread.start()
    case.threads.append(thread)


def joined(case: Case) -> None:
    for thread in case.threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive()


def slots(stack: Stack, state: str) -> int:
    return int(stack.worker(TALK).metric("rbee_worker_slots", state=state))


def run_worker(stack: Stack, **fields: object) -> None:
    stack.start()
    stack.run_worker(TALK, MODEL, idle_limit_s=0, **fields)


def held_stream(stack: Stack, things: ExitStack) -> None:
    """A long text whose client reads none of it."""
    stream = things.enter_context(stack.worker(TALK).stream("POST", "/v1/inference", LONG))
    assert stream.status == 200


# texts


@given(parsers.parse("a worker of the talking model with {count:d} slots and a queue of {queue:d}"))
def a_worker(stack: Stack, count: int, queue: int) -> None:
    run_worker(stack, slots=count, queue=queue)


@when("twelve clients ask it different questions in the same moment")
def twelve_ask(stack: Stack, case: Case) -> None:
    for topic in TOPICS[:12]:
        begin(stack, case, topic.questions[0])
    joined(case)


@then("each gets the answer that the model gives to its question alone")
def each_its_own(case: Case) -> None:
    for topic in TOPICS[:12]:
        answer = case.answers[topic.questions[0]]
        assert answer.status == 200, answer.body
        assert answer.json["text"].strip() == topic.answer


@then("the worker has no slot in use and nobody waiting")
def nothing_left(stack: Stack) -> None:
    until(lambda: slots(stack, "busy") == slots(stack, "waiting") == 0, 30)


# the queue


@given("one client holds the slot and another waits for it")
def one_holds(stack: Stack, case: Case, things: ExitStack) -> None:
    held_stream(stack, things)
    begin(stack, case, TOPICS[0].questions[0])
    until(lambda: (slots(stack, "busy"), slots(stack, "waiting")) == (1, 1), 30)


@when("a third client asks")
def a_third(stack: Stack, case: Case) -> None:
    case.answers["third"] = stack.worker(TALK).post("/v1/inference", asked("Hello!"))


@then("it gets 503 ALL_SLOTS_BUSY with the slots, who waits, and the queue's length")
def refused(case: Case) -> None:
    answer = case.answers["third"]
    assert (answer.status, answer.error["code"]) == (503, "ALL_SLOTS_BUSY")
    assert answer.error["details"] == {"slots_total": 1, "slots_busy": 1, "waiting": 1, "queue": 1}
    assert int(answer.headers["Retry-After"]) >= 1


@then("the one that waits is answered once the slot is free")
def waited(case: Case, things: ExitStack) -> None:
    assert TOPICS[0].questions[0] not in case.answers
    things.close()
    joined(case)
    assert case.answers[TOPICS[0].questions[0]].json["text"].strip() == TOPICS[0].answer


# a slow reader


@given("a client that asks for a long text and reads none of it")
def reads_none(stack: Stack, things: ExitStack) -> None:
    held_stream(stack, things)


@when("another client asks")
def another(stack: Stack, case: Case) -> None:
    begin(stack, case, TOPICS[0].questions[0])
    joined(case)


@then("the other one's whole answer comes")
def comes(case: Case) -> None:
    assert case.answers[TOPICS[0].questions[0]].json["text"].strip() == TOPICS[0].answer


# cores


@given("the talking model's definition says pin_cores 1")
def pinned(stack: Stack) -> None:
    stack.start()
    stack.define_worker(TALK, MODEL, pin_cores=1, idle_limit_s=0)


@when("that worker is started")
def started(stack: Stack) -> None:
    stack.spawn(TALK)
    stack.wait_state(TALK, "idle")


@then("every thread of it may run on one core alone, and the log names it")
def on_one_core(stack: Stack) -> None:
    pid = stack.row(TALK)["pid"]
    allowed = {
        re.search(r"Cpus_allowed_list:\s+(\S+)", (thread / "status").read_text())[1]  # type: ignore[index]
        for thread in Path(f"/proc/{pid}/task").iterdir()
    }
    assert len(allowed) == 1
    core = allowed.pop()
    assert core.isdigit()
    assert stack.hive is not None
    stack.hive.wait_log(f"pinned to cores {core}")
