"""Deadlines: set once, passed on unchanged, and the end of the work wherever it is."""

import datetime
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee import __version__
from rbee.keeper.demo import slow_talk
from rbee.keeper.demo.corpus import LONG_QUESTION
from rbee.wire.messages import WorkerHealth, WorkerState
from tests.behaviour.support.http import Answer, Event, until
from tests.behaviour.support.stack import Stack

scenarios("features/deadline.feature")

HEADER = "X-Request-Deadline"
TALK, MODEL, OWN_MODEL = "talk", "bee-talk", "own-model"
ANSWER_S, ADMISSION_S = 20.0, 1.0


class RecordingWorker(BaseHTTPRequestHandler):
    """A worker of the test's own: healthy, and it keeps the headers of what it is asked."""

    asked: list[dict[str, str]]

    def do_GET(self) -> None:
        health = WorkerHealth("healthy", WorkerState.IDLE, "own", __version__, 1, 0, 0.0, 0)
        self._answer(msgspec.json.encode(health))

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append(dict(self.headers))
        self._answer(b"{}")

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@dataclass
class Story:
    """What a scenario has seen so far."""

    answer: Answer | None = None
    events: list[Event] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    deadline: str = ""
    correlation: str = field(default_factory=lambda: str(uuid.uuid4()))
    at: float = 0.0
    log_start: int = 0
    streams: list[Iterator[Event]] = field(default_factory=list)

    @property
    def got(self) -> Answer:
        assert self.answer is not None
        return self.answer


@pytest.fixture
def story() -> Story:
    return Story()


@pytest.fixture
def things() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture(scope="module")
def lab(models: Path) -> Iterator[Stack]:
    stack = Stack(models)
    stack.queen_config = {"requests": {"answer_s": ANSWER_S, "admission_timeout_s": ADMISSION_S}}
    try:
        stack.start()
        stack.run_worker(TALK, slow_talk.NAME, name=MODEL, slots=2, idle_limit_s=0)
        yield stack
    finally:
        stack.close()


@pytest.fixture(scope="module")
def babble() -> dict[str, Any]:
    """A request whose answer is 346 tokens long: 7 seconds of the slow talker's work or more."""
    return {"model": MODEL, "messages": [{"role": "user", "content": LONG_QUESTION}], "temperature": 0}


def in_seconds(seconds: float) -> str:
    return str(int((time.time() + seconds) * 1000))


# what the worker gets


@given("a worker of the test's own that records what it is asked")
def recording_worker(lab: Stack, story: Story, things: ExitStack) -> None:
    handler = type("Recording", (RecordingWorker,), {"asked": story.asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()

    def end() -> None:
        lab.hive_admin.call("DELETE", "/v1/workers/own")
        until(lambda: "own" not in lab.rows() or lab.row("own")["state"] == "stopped")
        server.shutdown()
        thread.join()
        server.server_close()

    things.callback(end)
    ready = {
        "worker_id": "own", "url": f"http://127.0.0.1:{server.server_port}", "model": OWN_MODEL,
        "model_ref": f"file:///{OWN_MODEL}", "backend": "cpu",
    }  # fmt: skip
    assert lab.hive_admin.post("/v1/workers/ready", ready).status == 200
    lab.wait_state("own", "idle")


def ask_own(lab: Stack, story: Story, **headers: str) -> None:
    body = {"model": OWN_MODEL, "messages": [{"role": "user", "content": "Hello!"}]}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    story.at = time.time()
    story.answer = lab.client.call("POST", "/v1/chat/completions", body, named)
    assert story.answer.status == 200, story.answer.body


@when(parsers.parse("a client asks for its model with a deadline as {form}"))
def ask_with_deadline(lab: Stack, story: Story, form: str) -> None:
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2)
    story.deadline = soon.isoformat() if form == "ISO-8601" else str(int(soon.timestamp() * 1000))
    ask_own(lab, story, X_Request_Deadline=story.deadline)


@then("the worker got X-Request-Deadline letter by letter as the client wrote it")
def as_written(story: Story) -> None:
    assert [headers[HEADER] for headers in story.asked] == [story.deadline]


@when("a client asks for its model without a deadline")
def ask_without(lab: Stack, story: Story) -> None:
    ask_own(lab, story)


@when("a client asks for its model with a deadline an hour away")
def ask_late(lab: Stack, story: Story) -> None:
    assert lab.queen is not None
    story.log_start = len(lab.queen.log)
    story.deadline = in_seconds(3600)
    ask_own(lab, story, X_Request_Deadline=story.deadline)


@then("the worker got a deadline of the queen's own, her limit of 20 s after the request")
def queens_own(story: Story) -> None:
    (headers,) = story.asked
    assert 0 <= int(headers[HEADER]) / 1000 - (story.at + ANSWER_S) + 0.01 < 2


@then("the queen's log warns that the later one is ignored")
def warned(lab: Stack, story: Story) -> None:
    assert lab.queen is not None
    line = lab.queen.wait_log("a deadline later than the queen's own is ignored", start=story.log_start)
    assert " WARNING " in line
    assert f"deadline={story.deadline}" in line


# what ends


def prepare(story: Story, seconds: float) -> dict[str, str]:
    story.deadline, story.at = in_seconds(seconds), time.monotonic()
    return {HEADER: story.deadline, "X-Correlation-Id": story.correlation}


@when("a client asks for a long answer at once, with a deadline half a second away")
def ask_whole(lab: Stack, story: Story, babble: dict[str, Any]) -> None:
    headers = prepare(story, 0.5)
    story.answer = lab.client.call("POST", "/v1/chat/completions", babble, headers)
    story.at = time.monotonic() - story.at


@then("it gets 408 REQUEST_TIMEOUT with the deadline it gave, after half a second")
def timed_out(story: Story) -> None:
    is_timeout(story)
    assert 0.4 < story.at < 5


@then("it gets 408 REQUEST_TIMEOUT with the deadline it gave")
def is_timeout(story: Story) -> None:
    assert story.got.status == 408, story.got.body
    assert story.got.error["code"] == "REQUEST_TIMEOUT"
    assert story.got.error["details"]["deadline"] == story.deadline


@then("the worker stopped before the answer's end, freed its slot and logged the timeout")
def stopped(lab: Stack, story: Story) -> None:
    assert lab.hive is not None
    until(lambda: lab.worker(TALK).get("/health").json["slots_busy"] == 0, 5)
    line = lab.hive.wait_log(lambda line: "request ended" in line and story.correlation in line)
    assert "outcome=request_timeout" in line, line
    tokens = int(line.partition("tokens=")[2].split()[0])
    assert 0 < tokens < 346


@when(parsers.parse("a client asks for a long answer as a stream, with a deadline {time_left} away"))
def ask_stream(lab: Stack, story: Story, babble: dict[str, Any], time_left: str) -> None:
    headers = prepare(story, 0.5 if time_left == "half a second" else 5.0)
    with lab.client.stream("POST", "/v1/inference", babble, headers) as stream:
        assert stream.status == 200
        story.events = list(stream)


@then("the stream ends with one error event REQUEST_TIMEOUT with the deadline it gave")
def stream_timed_out(story: Story) -> None:
    names = [event.name for event in story.events]
    assert names.count("error") == 1
    assert "end" not in names
    assert "token" in names
    assert story.events[-1].data == b"[DONE]"
    error = story.events[-2].json
    error = error.get("error", error)
    assert error["code"] == "REQUEST_TIMEOUT"
    assert error["details"]["deadline"] == story.deadline


@given("the model's only worker is stopped")
def stop_worker(lab: Stack) -> None:
    lab.hive_admin.call("DELETE", f"/v1/workers/{TALK}")
    lab.wait_state(TALK, "stopped")


@then("the stream tells that the worker loads, and ends with one error event REQUEST_TIMEOUT with the deadline it gave")
def cold_stream_timed_out(story: Story) -> None:
    assert "loading" in [event.name for event in story.events]
    stream_timed_out(story)


@when("a client asks with a deadline in the past")
def ask_past(lab: Stack, story: Story, babble: dict[str, Any]) -> None:
    headers = prepare(story, -1)
    story.answer = lab.client.call("POST", "/v1/chat/completions", babble, headers)


@when("a client asks with a deadline that is no time")
def ask_nonsense(lab: Stack, story: Story, babble: dict[str, Any]) -> None:
    story.answer = lab.client.call("POST", "/v1/chat/completions", babble, {HEADER: "tomorrow"})


@then("it gets 400 INVALID_REQUEST that names the header")
def bad_header(story: Story) -> None:
    assert story.got.status == 400
    assert story.got.error["code"] == "INVALID_REQUEST"
    assert HEADER in story.got.error["message"]


@given("every slot of the model is held")
def hold_all(lab: Stack, story: Story, babble: dict[str, Any], things: ExitStack) -> None:
    until(lambda: lab.row(TALK)["slots_available"] == 2)
    for _ in range(2):
        stream = things.enter_context(lab.client.stream("POST", "/v1/inference", babble))
        events = iter(stream)
        story.events.append(next(event for event in events if event.name == "token"))
        story.streams.append(events)


@when("a client asks without a deadline")
def ask_held(lab: Stack, story: Story, babble: dict[str, Any]) -> None:
    began = time.monotonic()
    story.answer = lab.client.post("/v1/chat/completions", babble)
    story.at = time.monotonic() - began


@then("it gets 503 ALL_SLOTS_BUSY after the configured second")
def busy(story: Story) -> None:
    assert story.got.status == 503, story.got.body
    assert story.got.error["code"] == "ALL_SLOTS_BUSY"
    assert story.got.headers["Retry-After"]
    assert ADMISSION_S * 0.9 < story.at < ADMISSION_S + 3


@then("the streams that held the slots for longer than that come to their end")
def held_streams_end(story: Story) -> None:
    for events in story.streams:
        assert [event.name for event in events][-2:] == ["end", "message"]
