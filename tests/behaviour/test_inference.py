"""Inference on one machine: streaming, slots, cancelling, and every way in which an answer breaks."""

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee.keeper.demo.corpus import LONG_QUESTION, TOPICS, count_to_hundred
from tests.behaviour.support.http import Answer, Event, Http, Stream, until
from tests.behaviour.support.person import Command, Done, Person
from tests.behaviour.support.stack import Stack, free_port

scenarios("features/inference.feature")

TALK, LONE, FOUR = "talk", "lone", "four"
# a chunk of OpenAI's stream carries the model's name: a long one fills a socket that nobody reads within one answer
WORDY = "bee-talk-" + "x" * 110
QUEEN_STALL_S = 2.0
COUNT = {"messages": [{"role": "user", "content": LONG_QUESTION}], "temperature": 0}
DONE = b"[DONE]"


class Lab:
    """A stack with three workers of the talking model, and a request whose answer fills the model's context."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.babble = next(body for seed in range(40) if self.is_long(body := _babble(seed)))

    def is_long(self, body: dict[str, Any]) -> bool:
        answer = self.stack.worker(TALK).post("/v1/inference", body | {"stream": False})
        assert answer.status == 200, answer.body
        self.text = answer.json["text"]
        self.most = answer.json["metrics"]["completion_tokens"]
        return bool(answer.json["finish_reason"] == "length")

    def made(self, worker: str) -> int:
        """Tokens that a worker has made since its start."""
        return int(self.stack.worker(worker).metric("rbee_worker_tokens_total", kind="completion"))

    def busy(self, worker: str) -> int:
        busy = self.stack.worker(worker).get("/health").json["slots_busy"]
        assert isinstance(busy, int)
        return busy

    def door(self, name: str) -> tuple[Http, dict[str, Any]]:
        """Whom to ask and what the body says beside the question."""
        if name == "worker":
            return self.stack.worker(TALK), {}
        return self.stack.client, {"model": "bee-talk"}


def _babble(seed: int) -> dict[str, Any]:
    return COUNT | {"temperature": 10, "seed": seed}


@pytest.fixture(scope="module")
def lab(models: Path) -> Iterator[Lab]:
    stack = Stack(models)
    stack.queen_config = {"requests": {"stall_s": QUEEN_STALL_S}}
    try:
        stack.start()
        for worker, name, slots in ((TALK, "bee-talk", 4), (LONE, WORDY + "1", 1), (FOUR, WORDY + "4", 4)):
            stack.run_worker(worker, "bee-talk", name=name, slots=slots, idle_limit_s=0)
        yield Lab(stack)
    finally:
        stack.close()


@pytest.fixture(autouse=True)
def ready(lab: Lab) -> None:
    """Each scenario finds the workers idle, those included that another one killed."""
    for worker in (TALK, LONE, FOUR):
        lab.stack.wait_state(worker, "idle")


@pytest.fixture
def person(lab: Lab, tmp_path: Path) -> Person:
    token = lab.stack.token_file("api_token")
    return Person(tmp_path, "--queen-url", lab.stack.queen_url, "--token-file", token)


@dataclass
class Story:
    """What a scenario has seen so far."""

    door: str = ""
    request_id: str = ""
    events: list[Event] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    stream: Stream | None = None
    coming: Iterator[Event] | None = None
    command: Command | None = None
    done: Done | None = None
    made: int = 0
    log_start: int = 0
    worker: str = TALK
    url: str = ""
    held: int = 0
    pid: int = 0
    text: str = ""

    @property
    def names(self) -> list[str]:
        return [event.name for event in self.events if event.data != DONE]

    @property
    def running(self) -> Iterator[Event]:
        assert self.coming is not None
        return self.coming

    @property
    def typed(self) -> Command:
        assert self.command is not None
        return self.command

    @property
    def ended(self) -> Done:
        assert self.done is not None
        return self.done


@pytest.fixture
def story() -> Iterator[Story]:
    made = Story()
    yield made
    if made.command is not None:
        made.command.close()


@pytest.fixture
def open_things() -> Iterator[ExitStack]:
    with ExitStack() as things:
        yield things


# a whole answer


@when(parsers.parse("a client asks the {door} to count to one hundred"))
def ask_to_count(lab: Lab, story: Story, door: str) -> None:
    http, extra = lab.door(door)
    with http.stream("POST", "/v1/inference", COUNT | extra) as stream:
        assert stream.status == 200
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        for event in stream:
            story.events.append(event)
            if len(story.events) == 20:
                story.states.append(lab.stack.worker(TALK).get("/v1/ready").json["state"])


@then(parsers.parse("the first events are {first}"))
def first_events(story: Story, first: str) -> None:
    wanted = first.split(", ")
    assert story.names[: len(wanted)] == wanted
    assert story.names.count("started") == 1


@then("then come the tokens, the metrics and exactly one end, closed by [DONE]")
def tokens_then_end(story: Story) -> None:
    rest = story.names[story.names.index("started") + 1 :]
    assert rest == ["token"] * (len(rest) - 2) + ["metrics", "end"]
    assert story.events[-1].data == DONE
    assert [event.data for event in story.events].count(DONE) == 1
    assert story.events[-2].json["finish_reason"] == "stop"
    assert story.events[-3].json["completion_tokens"] == rest.count("token")


@then("the text is the hundred numbers, letter by letter")
def exact_text(story: Story) -> None:
    tokens = [event.json for event in story.events if event.name == "token"]
    assert [token["index"] for token in tokens] == list(range(len(tokens)))
    assert "".join(token["text"] for token in tokens) == count_to_hundred()
    assert len(tokens) >= 300


@then("the tokens came one by one over the time that they took")
def spread_over_time(story: Story) -> None:
    times = [event.at for event in story.events if event.name == "token"]
    whole = times[-1] - times[0]
    assert whole > 0.1, "three hundred steps of a model take longer than that"
    # how evenly they come is the machine's load as much as ours: that they come apart is what a stream owes
    assert len({round(moment, 6) for moment in times}) > len(times) / 4, "they came in few pieces"


@then("the worker was busy meanwhile and is idle now")
def busy_then_idle(lab: Lab, story: Story) -> None:
    assert story.states == ["busy"]
    assert lab.stack.worker(TALK).get("/v1/ready").json["state"] == "idle"
    assert lab.stack.row(TALK)["state"] == "idle"


@when("a person runs rbee infer for the hundred numbers")
def infer_count(person: Person, story: Story) -> None:
    story.command = person.start("infer", "--model", "bee-talk", "--prompt", LONG_QUESTION, "--temperature", 0,
                                 "--max-tokens", 900)  # fmt: skip
    story.done = story.command.wait()


@then("it exits with 0 and stdout is the hundred numbers")
def whole_stdout(story: Story) -> None:
    assert story.ended.code == 0, story.ended.err
    assert story.ended.out == count_to_hundred() + "\n"


@then("stdout grew over the time that the tokens took")
def stdout_grew(story: Story) -> None:
    times = [at for at, _ in story.ended.pieces]
    assert len(times) > 20
    assert times[len(times) // 2] - times[0] > 0.05
    assert times[-1] - times[len(times) // 2] > 0.05


@then("stderr tells how many tokens there were and which worker made them")
def summary(story: Story) -> None:
    assert "tokens, ended by stop" in story.ended.err
    assert "worker bee/talk" in story.ended.err


# slots


def hold(lab: Lab, worker: str, things: ExitStack) -> Stream:
    """Take a slot and keep it: the client does not read, so the worker waits in the middle of the answer."""
    before = lab.busy(worker)
    stream = things.enter_context(
        lab.stack.worker(worker).stream("POST", "/v1/chat/completions", lab.babble | {"stream": True})
    )
    assert stream.status == 200
    assert lab.busy(worker) == before + 1
    return stream


def _still(lab: Lab, worker: str) -> None:
    """Wait until a worker's process works no more."""
    seen: list[float] = []

    def steps() -> bool:
        seen.append(_cpu_s(lab.stack.row(worker)["pid"]))
        return len(seen) > 4 and seen[-1] - seen[-4] < 0.03

    until(steps, 20, every_s=0.15)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@given("the only slot of a worker is held by a client that does not read")
def hold_lone(lab: Lab, open_things: ExitStack, story: Story) -> None:
    story.worker = LONE
    hold(lab, LONE, open_things)
    _still(lab, LONE)
    assert lab.busy(LONE) == 1


@given(parsers.parse("{count:d} of the 4 slots of a worker are held by clients that do not read"))
def hold_some(lab: Lab, open_things: ExitStack, story: Story, count: int) -> None:
    story.worker, story.held = FOUR, count
    for _ in range(count):
        hold(lab, FOUR, open_things)
    _still(lab, FOUR)
    assert lab.busy(FOUR) == count


@when("a client asks that worker as well")
def ask_busy(lab: Lab, story: Story) -> None:
    story.answers.append(lab.stack.worker(story.worker).post("/v1/inference", COUNT))


@then(
    parsers.parse("it gets 503 ALL_SLOTS_BUSY with {total:d} slots in all and {busy:d} busy, and a time to come back")
)
def refused_busy(story: Story, total: int, busy: int) -> None:
    _is_busy(story.answers[-1], total, busy)
    assert int(story.answers[-1].headers["Retry-After"]) >= 1


def _is_busy(answer: Answer, total: int, busy: int) -> None:
    assert answer.status == 503, answer.body
    assert answer.error["code"] == "ALL_SLOTS_BUSY"
    assert answer.error["details"] == {"slots_total": total, "slots_busy": busy}
    uuid.UUID(answer.error["correlation_id"])


@when("a person runs rbee infer at that worker")
def infer_busy(lab: Lab, story: Story, tmp_path: Path) -> None:
    path = lab.stack.run_dir / "workers" / story.worker / "worker.sock"
    someone = Person(tmp_path)
    story.done = someone.rbee("infer", "--worker-socket", path, "--model", WORDY + "1", "--prompt", LONG_QUESTION)


@then("it says that it tries again in 1 s, 2 s and 4 s")
def tries_again(story: Story) -> None:
    said = [line for line in story.ended.err.splitlines() if "trying again" in line]
    assert said == [f"all slots are busy (1 of 1): trying again in {wait} s" for wait in (1, 2, 4)], story.ended.err


@then("it exits with 1, names ALL_SLOTS_BUSY and says what can be done")
def gave_up(story: Story) -> None:
    assert story.ended.code == 1
    assert story.ended.out == ""
    assert "(ALL_SLOTS_BUSY)" in story.ended.err
    assert "next: wait and try again" in story.ended.err


@when("two clients ask for the last slot in the same moment")
def race(lab: Lab, story: Story) -> None:
    start = threading.Barrier(2)

    def ask() -> None:
        http = lab.stack.worker(FOUR)
        start.wait(10)
        with http.stream("POST", "/v1/inference", COUNT) as stream:
            story.answers.append(Answer(stream.status, stream.headers, stream.read()))

    clients = [threading.Thread(target=ask) for _ in range(2)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(30)


@then("one streams its answer and the other gets 503 ALL_SLOTS_BUSY with 4 slots in all and 4 busy")
def one_of_two(story: Story) -> None:
    refused, served = sorted(story.answers, key=lambda answer: -answer.status)
    _is_busy(refused, 4, 4)
    assert served.status == 200
    assert served.body.endswith(b"data: [DONE]\n\n")
    assert b"event: end" in served.body


@then(parsers.parse("the worker counts {busy:d} slots as busy again"))
def slots_counted(lab: Lab, busy: int) -> None:
    assert lab.busy(FOUR) == busy
    worker = lab.stack.worker(FOUR)
    assert worker.metric("rbee_worker_slots", state="busy") == busy
    assert worker.metric("rbee_worker_slots", state="free") == 4 - busy


# cancelling


@given(parsers.parse("a long answer streams from the {door}"))
def long_answer(lab: Lab, story: Story, open_things: ExitStack, door: str) -> None:
    http, extra = lab.door(door)
    story.door, story.made = door, lab.made(TALK)
    story.pid = lab.stack.row(TALK)["pid"]
    assert lab.stack.hive is not None
    story.log_start = len(lab.stack.hive.log)
    story.stream = open_things.enter_context(http.stream("POST", "/v1/inference", lab.babble | extra))
    story.coming = iter(story.stream)
    while story.names.count("token") < 3:
        story.events.append(next(story.running))
    started = next(event for event in story.events if event.name == "started")
    story.request_id = started.json["request_id"]
    assert lab.busy(TALK) == 1


@when("its client sends DELETE for it twice")
def delete_twice(lab: Lab, story: Story) -> None:
    http, _ = lab.door(story.door)
    for _ in range(2):
        story.answers.append(http.call("DELETE", f"/v1/inference/{story.request_id}"))
    story.events += story.running
    story.answers.append(http.call("DELETE", f"/v1/inference/{story.request_id}"))


@then("both are answered with 204")
def no_content(story: Story) -> None:
    assert [(answer.status, answer.body) for answer in story.answers] == [(204, b"")] * 3


@then(parsers.parse("the stream ends with exactly one error event {code}"))
def one_error(story: Story, code: str) -> None:
    story.events += story.running
    assert story.names.count("error") == 1
    assert "end" not in story.names
    assert story.names[-1] == "error"
    assert story.events[-1].data == DONE
    error = story.events[-2].json
    error = error.get("error", error)
    assert error["code"] == code
    assert code != "WORKER_FAILED" or "ask again" in error["message"]
    uuid.UUID(error["correlation_id"])


@then("the slot is free and the worker made fewer tokens than it could have")
def slot_is_free(lab: Lab, story: Story) -> None:
    until(lambda: lab.busy(TALK) == 0, 5)
    assert 0 < until(lambda: lab.made(TALK) - story.made, 5) < lab.most
    until(lambda: lab.stack.row(TALK)["slots_available"] == 4, 10)  # none while the worker is under suspicion


@when("its client vanishes")
def vanish(story: Story) -> None:
    assert story.stream is not None
    story.stream.__exit__(None, None, None)


@then("the slot is free within 1 s and the worker made fewer tokens than it could have")
def free_within_a_second(lab: Lab, story: Story) -> None:
    until(lambda: lab.busy(TALK) == 0, 1.0, every_s=0.02)
    slot_is_free(lab, story)


@then(parsers.parse("the worker's log says how the request ended: {outcome}"))
def logged_outcome(lab: Lab, story: Story, outcome: str) -> None:
    assert lab.stack.hive is not None
    line = lab.stack.hive.wait_log(
        lambda line: "request ended" in line and story.request_id in line, start=story.log_start
    )
    accepted = ("client_gone",) if outcome == "client_gone" else ("client_gone", "cancelled")
    assert any(f"outcome={one}" in line for one in accepted), line


# rbee infer and what goes wrong


@given("a person runs rbee infer for a long answer")
def infer_long(lab: Lab, person: Person, story: Story) -> None:
    _infer_long(lab, person, story)


@given(parsers.parse("a person runs rbee infer for a long answer with a stall limit of {limit:g} s"))
def infer_long_with_limit(lab: Lab, person: Person, story: Story, limit: float) -> None:
    _infer_long(lab, person, story, "--stall-limit", limit)


def _infer_long(lab: Lab, person: Person, story: Story, *more: object) -> None:
    story.made, story.pid = lab.made(TALK), lab.stack.row(TALK)["pid"]
    story.command = person.start(
        "infer", "--model", "bee-talk", "--prompt", LONG_QUESTION, "--temperature", 0, "--max-tokens", 900, *more
    )


@when("text has come and the person presses Ctrl+C")
def press_ctrl_c(story: Story) -> None:
    story.text = story.typed.wait_text()
    story.typed.interrupt()
    pressed = time.monotonic()
    story.done = story.typed.wait(30)
    assert story.done.ended - pressed < 6


@then("it exits with 130 within 5 s and says that the worker stops")
def interrupted(story: Story) -> None:
    assert story.ended.code == 130
    assert "cancelled: the worker stops and frees its slot" in story.ended.err


@then("what came is kept in a file that is named")
def kept(person: Person, story: Story) -> None:
    (path,) = person.partials
    text = path.read_text()
    assert text
    assert count_to_hundred().startswith(text)
    assert story.ended.out.rstrip("\n") == text
    assert path.stat().st_mode & 0o777 == 0o600
    said = story.ended.err.replace("\n", " ")
    assert str(path) in said
    assert "/900 tokens came before that" in said


@when("text has come and its worker is killed with SIGKILL")
def kill_after_text(story: Story) -> None:
    story.typed.wait_text()
    os.kill(story.pid, signal.SIGKILL)
    story.done = story.typed.wait(30)


@then("it exits with 1 and says that the worker went away")
def went_away(story: Story) -> None:
    assert story.ended.code == 1
    assert "the worker went away while it answered" in story.ended.err
    assert "(WORKER_FAILED)" in story.ended.err


@when("text has come and its worker stands still")
def freeze_after_text(story: Story, open_things: ExitStack) -> None:
    story.typed.wait_text()
    os.kill(story.pid, signal.SIGSTOP)
    open_things.callback(os.kill, story.pid, signal.SIGCONT)
    story.done = story.typed.wait(30)


@then("it exits with 1 and names INFERENCE_STALLED")
def stalled(story: Story) -> None:
    assert story.ended.code == 1
    assert "(INFERENCE_STALLED)" in story.ended.err
    assert "nothing came for 1 s" in story.ended.err


@when("its worker stands still for longer than the queen's stall limit")
def freeze(story: Story, open_things: ExitStack) -> None:
    os.kill(story.pid, signal.SIGSTOP)
    open_things.callback(os.kill, story.pid, signal.SIGCONT)
    began = time.monotonic()
    story.events += story.running
    assert time.monotonic() - began > QUEEN_STALL_S * 0.5


@then("the worker, once it moves again, has a free slot and made fewer tokens than it could have")
def moves_again(lab: Lab, story: Story) -> None:
    os.kill(story.pid, signal.SIGCONT)
    slot_is_free(lab, story)


@when("its worker is killed with SIGKILL")
def kill_worker(lab: Lab, story: Story) -> None:
    assert lab.stack.queen is not None
    story.log_start = len(lab.stack.queen.log)
    os.kill(story.pid, signal.SIGKILL)


@then("every token that came before is whole")
def whole_tokens(story: Story) -> None:
    tokens = [event.json for event in story.events if event.name == "token"]
    assert [token["index"] for token in tokens] == list(range(len(tokens)))
    assert len(tokens) >= 3


@then("the queen sees the worker fail with signal 9 within 2 s and it comes back by itself")
def fails_and_returns(lab: Lab, story: Story) -> None:
    assert lab.stack.queen is not None
    lab.stack.queen.wait_log(
        lambda line: "worker state" in line and "state=failed" in line and "SIGKILL" in line, 2.0, story.log_start
    )
    row = lab.stack.wait_state(TALK, "idle", limit_s=20)
    assert row["pid"] != story.pid
    assert row["restarts"] >= 1


@when(parsers.parse("a person asks a queen by rbee infer at {place}"))
def infer_nowhere(story: Story, tmp_path: Path, open_things: ExitStack, place: str) -> None:
    port = free_port()
    if "lets no connection in" in place:
        listener = open_things.enter_context(socket.socket())
        listener.bind(("127.0.0.1", port))
        listener.listen(0)
        # a full backlog: the kernel drops what comes after it, as a host does that is cut off
        for _ in range(4):
            waiting = open_things.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
    someone = Person(tmp_path, "--queen-url", f"http://127.0.0.1:{port}", "--timeout", 0.5)
    command = someone.start("infer", "--model", "bee-talk", "--prompt", "Hello!")
    story.done = command.wait(30)


@then("each of 3 tries is shown and it exits with 1, names CONNECTION_TIMEOUT and says where to look")
def three_tries(story: Story) -> None:
    assert story.ended.code == 1
    for number in (1, 2, 3):
        assert f"no answer from the queen, try {number} of 3" in story.ended.err
    assert "(CONNECTION_TIMEOUT)" in story.ended.err
    assert "systemctl status rbee-queen" in story.ended.err


# a slow reader


@when("a client asks the worker for a long answer and does not read")
def slow_reader(lab: Lab, story: Story, open_things: ExitStack) -> None:
    story.worker = LONE
    story.stream = hold(lab, LONE, open_things)


@then("the worker stops making tokens before the answer's end")
def stops_making(lab: Lab) -> None:
    _still(lab, LONE)
    assert lab.busy(LONE) == 1, "it went on to the end of the answer without a reader"


@when("the client reads on")
def reads_on(story: Story) -> None:
    assert story.stream is not None
    story.events += story.stream


@then("it gets every token in order, and the text is what another client gets that reads at once")
def nothing_lost(lab: Lab, story: Story) -> None:
    assert story.events[-1].data == DONE
    chunks = [event.json["choices"][0] for event in story.events[:-1]]
    assert chunks[-1]["finish_reason"] == "length"
    assert "".join(chunk["delta"].get("content") or "" for chunk in chunks) == lab.text
    until(lambda: lab.busy(LONE) == 0, 5)


# OpenAI's client


@pytest.fixture
def official(lab: Lab) -> Iterator[openai.OpenAI]:
    token = lab.stack.tokens["api_token"]
    with openai.OpenAI(base_url=f"{lab.stack.queen_url}/v1", api_key=token, max_retries=0) as client:
        yield client


@given("OpenAI's Python client with the queen's address and token")
def openai_client(official: openai.OpenAI) -> None:
    assert official.max_retries == 0


@then("it lists the talking model")
def lists(official: openai.OpenAI) -> None:
    assert "bee-talk" in [model.id for model in official.models.list()]


QUESTION, ANSWER = TOPICS[4].questions[0], TOPICS[4].answer


@then("it gets a whole answer with its token counts")
def whole_answer(official: openai.OpenAI) -> None:
    answer = official.chat.completions.create(
        model="bee-talk", messages=[{"role": "user", "content": QUESTION}], temperature=0
    )
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 10


@then("it streams the same answer piece by piece")
def streamed_answer(official: openai.OpenAI) -> None:
    pieces = []
    with official.chat.completions.create(
        model="bee-talk", messages=[{"role": "user", "content": QUESTION}], temperature=0, stream=True
    ) as stream:
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 10


@then("it raises its own errors for a wrong token, an unknown model and a parameter that is not honoured")
def official_errors(lab: Lab, official: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": QUESTION}]
    with pytest.raises(openai.NotFoundError) as unknown:
        official.chat.completions.create(model="no-such-model", messages=messages)
    assert unknown.value.code == "MODEL_NOT_FOUND"
    with pytest.raises(openai.BadRequestError) as unsupported:
        official.chat.completions.create(model="bee-talk", messages=messages, extra_body={"beams": 4})
    assert unsupported.value.param == "beams"
    with (
        openai.OpenAI(base_url=f"{lab.stack.queen_url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError) as refused,
    ):
        stranger.models.list()
    assert json.dumps(refused.value.body)
