"""The chain on one machine: readiness, what travels with a request, races, recoveries, and the end of everything."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee.keeper.demo.corpus import LONG_QUESTION, TOPICS, count_to_hundred
from rbee.keeper.demo.faulty import build_slow_load
from tests.behaviour.support.http import Answer, Event, Http, Stream, until
from tests.behaviour.support.person import Command, Done, Person
from tests.behaviour.support.stack import HIVE_ID, TOKENS, Stack

scenarios("features/chain.feature")

TALK = "talk"
MODEL = "bee-talk"
QUESTION, ANSWER = TOPICS[4].questions[0], TOPICS[4].answer
LONG = {"messages": [{"role": "user", "content": LONG_QUESTION}], "temperature": 0}
LOAD_S = 2.0


@dataclass
class Story:
    """What a scenario has seen so far."""

    answers: list[Answer] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    streams: list[Stream] = field(default_factory=list)
    correlation: str = field(default_factory=lambda: str(uuid.uuid4()))
    done: list[Done] = field(default_factory=list)
    command: Command | None = None
    pids: set[int] = field(default_factory=set)
    threads: list[threading.Thread] = field(default_factory=list)
    pid: int = 0
    at: float = 0.0
    count: int = 0
    text: str = ""


@pytest.fixture
def story() -> Iterator[Story]:
    made = Story()
    yield made
    for thread in made.threads:
        thread.join(60)
    if made.command is not None:
        made.command.close()


@pytest.fixture
def things() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@pytest.fixture
def person(stack: Stack, tmp_path: Path) -> Person:
    return Person(tmp_path, "--queen-url", stack.queen_url, "--token-file", stack.token_file("api_token"))


def in_background(story: Story, *calls: Callable[[], Answer]) -> None:
    """Make the calls at once, each in a thread; their answers go to the story."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Answer]) -> None:
        start.wait(10)
        story.answers.append(call())

    story.threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in story.threads:
        thread.start()


def joined(story: Story) -> list[Answer]:
    for thread in story.threads:
        thread.join(60)
        assert not thread.is_alive()
    assert len(story.answers) == len(story.threads)
    return story.answers


def chat(stack: Stack, question: str = QUESTION) -> Answer:
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "temperature": 0}
    return Http(stack.queen_url, stack.tokens["api_token"], timeout_s=60).post("/v1/chat/completions", body)


def text_of(answer: Answer) -> str:
    assert answer.status == 200, answer.body
    return str(answer.json["choices"][0]["message"]["content"])


def freeze(pid: int, things: ExitStack) -> None:
    """Let a process stand still; it moves again at the scenario's end at the latest."""

    def thaw() -> None:
        if Path(f"/proc/{pid}").exists():
            os.kill(pid, signal.SIGCONT)

    os.kill(pid, signal.SIGSTOP)
    things.callback(thaw)


def log_of(stack: Stack, daemon: str) -> list[str]:
    process = stack.queen if daemon == "queen" else stack.hive
    assert process is not None
    return process.log


# readiness


@given("the worker of a model that takes 2 s to load is defined and not started")
def define_slow(stack: Stack) -> None:
    folder = stack.state_dir / "models" / "slow"
    folder.mkdir(parents=True)
    build_slow_load(folder, LOAD_S)
    stack.define_worker("slow", str(folder), name="slow", idle_limit_s=0)
    stack.start()
    stack.wait_state("slow", "stopped")


@when("a client asks the queen for that model")
def ask_slow(stack: Stack, story: Story) -> None:
    tensor = {"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1.0]}
    http = Http(stack.queen_url, stack.tokens["api_token"], timeout_s=60)
    story.at = time.monotonic()
    story.answers.append(http.post("/v2/models/slow/infer", {"inputs": [tensor]}))
    story.at = time.monotonic() - story.at


@then("the hive starts the worker once and the client gets the worker's answer")
def started_once(stack: Stack, story: Story) -> None:
    answer = story.answers[0]
    assert answer.status == 200, answer.body
    assert answer.json["outputs"][0]["shape"] == [1, 1]
    assert answer.headers["X-Rbee-Worker"] == f"{HIVE_ID}/slow"
    assert story.at > LOAD_S * 0.3, "the model was not cold"
    assert sum("event=worker.spawn" in line for line in log_of(stack, "hive")) == 1


@then("the request was on its way within a quarter of a second of the worker's READY")
def on_its_way(stack: Stack) -> None:
    queen = stack.admin
    assert queen.metric("queen_rbee_ready_to_first_request_seconds_count") == 1
    assert queen.metric("queen_rbee_ready_to_first_request_seconds_sum") < 0.25


@then("one ready callback was sent and received, and the worker was never polled")
def one_callback(stack: Stack) -> None:
    assert stack.hive_admin.metric("rbee_hive_worker_ready_callbacks_total", status="success") == 1
    assert stack.hive_admin.metric("rbee_hive_worker_ready_callbacks_total", status="failure") == 0
    assert stack.admin.metric("queen_rbee_worker_ready_notifications_received_total") == 1
    assert stack.admin.metric("queen_rbee_readiness_fallback_polls_total") == 0
    assert stack.hive_admin.metric("worker_ready_latency_seconds_count") == 1


@then("the queen lists the worker as idle, with its address")
def listed_idle(stack: Stack) -> None:
    row = stack.row("slow")
    assert row["state"] == "idle"
    assert Http(row["url"]).get("/health").json["worker_id"] == "slow"


@given("the worker of the talking model is defined and not started")
def define_talk(stack: Stack) -> None:
    stack.define_worker(TALK, MODEL, name=MODEL, idle_limit_s=0)
    stack.start()
    stack.wait_state(TALK, "stopped")


@given("the worker of the talking model runs")
def run_talk(stack: Stack, story: Story) -> None:
    stack.start()
    story.pid = stack.run_worker(TALK, MODEL, name=MODEL, idle_limit_s=0)["pid"]


@when("a client with a correlation id of its own streams an answer from it")
def stream_cold(stack: Stack, story: Story) -> None:
    headers = {"X-Correlation-Id": story.correlation}
    with stack.client.stream("POST", "/v1/inference", LONG | {"model": MODEL}, headers) as stream:
        assert stream.headers["X-Correlation-Id"] == story.correlation
        story.events = list(stream)


@then("the events are queued, placing, loading, started, tokens, metrics and one end")
def cold_events(story: Story) -> None:
    names = [event.name for event in story.events[:-1]]
    assert names[:2] == ["queued", "placing"]
    at = names.index("started")
    assert set(names[2:at]) == {"loading"}
    assert names[at + 1 :] == ["token"] * (len(names) - at - 3) + ["metrics", "end"]
    assert "".join(event.json["text"] for event in story.events if event.name == "token") == count_to_hundred()


@then("the logs of queen and worker name the correlation id, and the hive's names the start")
def narrated(stack: Stack, story: Story) -> None:
    assert any(story.correlation in line for line in log_of(stack, "queen"))
    assert stack.hive is not None
    line = stack.hive.wait_log("request ended")
    assert story.correlation in line
    assert "outcome=ok" in line
    assert any("event=worker.spawn" in line and f"worker={TALK}" in line for line in log_of(stack, "hive"))


@then("the worker is idle and its metrics and the queen's count one request")
def counted_once(stack: Stack) -> None:
    assert stack.worker(TALK).get("/v1/ready").json["state"] == "idle"
    assert stack.worker(TALK).metric("rbee_worker_requests_total", outcome="ok") == 1
    assert stack.admin.metric("queen_rbee_requests_total") == 1
    assert stack.admin.metric("queen_rbee_request_duration_seconds_count", route="/v1/inference", outcome="ok") == 1


# a warm worker


@when("a person runs rbee infer twice")
def infer_twice(stack: Stack, story: Story, person: Person) -> None:
    story.count = sum("event=worker.spawn" in line for line in log_of(stack, "hive"))
    for _ in range(2):
        began = time.monotonic()
        done = person.rbee("infer", "--model", MODEL, "--prompt", LONG_QUESTION, "--temperature", 0)
        story.at = max(story.at, time.monotonic() - began)
        story.done.append(done)


@then("each exits with 0 in less than 5 s and no worker was started for it")
def quick(stack: Stack, story: Story) -> None:
    assert [done.code for done in story.done] == [0, 0], story.done
    assert all(count_to_hundred().startswith(done.out.rstrip("\n")) and done.out for done in story.done)
    assert story.at < 5
    assert sum("event=worker.spawn" in line for line in log_of(stack, "hive")) == story.count == 1


@then("queen, hive and worker keep running as the processes that they were")
def keep_running(stack: Stack, story: Story) -> None:
    assert stack.queen is not None
    assert stack.hive is not None
    assert stack.queen.process.poll() is None
    assert stack.hive.process.poll() is None
    row = stack.row(TALK)
    assert (row["pid"], row["state"]) == (story.pid, "idle")


@when("a client with a correlation id of its own asks the queen")
def ask_correlated(stack: Stack, story: Story) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}]}
    headers = {"X-Correlation-Id": story.correlation}
    answer = stack.client.call("POST", "/v1/chat/completions", body, headers)
    assert answer.status == 200
    assert answer.headers["X-Correlation-Id"] == story.correlation


@then("the worker's log names that id and the fingerprint under which the queen knows the client")
def identity_travels(stack: Stack, story: Story) -> None:
    assert stack.hive is not None
    line = stack.hive.wait_log(lambda line: "request ended" in line and story.correlation in line)
    (known,) = {
        found[1]
        for entry in log_of(stack, "queen")
        if story.correlation in entry and (found := re.search(r"identity=(token:[0-9a-f]{6})", entry))
    }
    assert f"client={known}" in line
    assert stack.tokens["api_token"] not in "".join(log_of(stack, "queen") + log_of(stack, "hive"))


@then("queen and worker show the id as exemplar of a metric to who asks for OpenMetrics")
def exemplars(stack: Stack, story: Story) -> None:
    for http in (stack.admin, stack.worker(TALK)):
        shown = http.call("GET", "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        assert story.correlation in shown.body.decode()
        plain = http.get("/metrics").body.decode()
        assert story.correlation not in plain


@then("the queen's deep health is healthy and names hive and worker")
def deep_health(stack: Stack) -> None:
    health = stack.admin.get("/health?deep=1").json
    assert health["status"] == "ok"
    assert [hive["hive_id"] for hive in health["deep_hives"]] == [HIVE_ID]
    assert [(one["worker_id"], one["reachable"]) for one in health["deep_workers"]] == [(TALK, True)]


@when("the worker stands still")
def worker_stands_still(story: Story, things: ExitStack) -> None:
    freeze(story.pid, things)


@then("the queen's deep health names what is wrong")
def deep_degraded(stack: Stack) -> None:
    def degraded() -> list[str]:  # an answer of the last second is given again to who asks within it
        health = stack.admin.get("/health?deep=1").json
        return health["degraded"] if health["status"] == "degraded" else []

    assert any(f"{HIVE_ID}/{TALK}" in problem for problem in until(degraded, every_s=0.3))


@when("a client asks the queen and then the worker for 0 tokens")
def ask_wrongly(stack: Stack, story: Story) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 0}
    headers = {"X-Correlation-Id": story.correlation}
    story.answers.append(stack.client.call("POST", "/v1/chat/completions", body, headers))
    story.answers.append(stack.worker_tcp(TALK).call("POST", "/v1/chat/completions", body, headers))


@then("both get the same 400 with their own request's id")
def same_refusal(story: Story) -> None:
    via_queen, direct = story.answers
    assert via_queen.status == direct.status == 400
    assert via_queen.body == direct.body
    assert via_queen.error["code"] == "INVALID_REQUEST"
    assert via_queen.error["correlation_id"] == story.correlation
    assert via_queen.error["details"]["field"] == "max_tokens"


# several workers


@given("three workers with one slot each serve the talking model")
def three_workers(stack: Stack) -> None:
    run_several(stack, 3)


@given("two workers with one slot each serve the talking model")
def two_workers(stack: Stack) -> None:
    run_several(stack, 2)


def run_several(stack: Stack, count: int) -> None:
    stack.start()
    for number in range(count):
        stack.define_worker(f"w{number}", MODEL, name=MODEL, slots=1, idle_limit_s=0)
        stack.spawn(f"w{number}")
    for number in range(count):
        stack.wait_state(f"w{number}", "idle")


@when("ten clients ask the queen in the same moment")
def ten_clients(stack: Stack, story: Story) -> None:
    in_background(story, *[lambda: chat(stack, LONG_QUESTION)] * 10)


@then("every one gets its whole answer and each worker did some of the work")
def all_served(stack: Stack, story: Story) -> None:
    assert [text_of(answer) for answer in joined(story)] == [count_to_hundred()] * 10
    assert any(float(answer.headers["X-Rbee-Queue-Ms"]) > 1 for answer in story.answers), "nobody had to wait"
    done = [int(stack.worker(f"w{n}").metric("rbee_worker_requests_total", outcome="ok")) for n in range(3)]
    assert sum(done) == 10
    assert min(done) >= 1, done  # how many more each gets is for its speed to say, beside others on two cores


@given("one of them stands still")
def one_stands_still(stack: Stack, story: Story, things: ExitStack) -> None:
    story.pid = stack.row("w0")["pid"]
    freeze(story.pid, things)


@when("two clients ask the queen and the worker that stands still is killed with SIGKILL")
def kill_before_first_byte(stack: Stack, story: Story) -> None:
    in_background(story, *[lambda: chat(stack, LONG_QUESTION)] * 2)
    until(lambda: stack.row("w0")["slots_available"] == 0, 10)
    os.kill(story.pid, signal.SIGKILL)


@then("both clients get their whole answer")
def both_whole(story: Story) -> None:
    assert [text_of(answer) for answer in joined(story)] == [count_to_hundred()] * 2


@then("the queen tells that she placed a request anew")
def placed_anew(stack: Stack) -> None:
    assert any("placing anew" in line and f"worker={HIVE_ID}/w0" in line for line in log_of(stack, "queen"))


# several hives


@given("three hives report to one queen")
def three_hives(stack: Stack, models: Path, things: ExitStack) -> None:
    stack.start_queen()
    hives = []
    for number in range(4):
        other = Stack(models)
        things.callback(other.close)
        for name in TOKENS:
            other.write_token(name, stack.tokens[name])
        name = f"bee{number % 3}"
        other.hive_config = {"hive_id": name, "queen": {"callback_url": stack.queen_url}}
        hives.append(other)
    stack.others = hives  # type: ignore[attr-defined]
    for other in hives[:3]:
        other.start_hive()
    until(lambda: stack.admin.get("/health").json["hives"] == 3)


@when(parsers.parse('each starts a worker "same" and a worker of its own at once'))
def start_at_once(stack: Stack) -> None:
    hives: list[Stack] = stack.others[:3]  # type: ignore[attr-defined]
    for number, other in enumerate(hives):
        for worker in ("same", f"own{number}"):
            other.define_worker(worker, "tiny-tensor", idle_limit_s=0)
    starts = [
        threading.Thread(target=other.spawn, args=(worker,))
        for number, other in enumerate(hives)
        for worker in ("same", f"own{number}")
    ]
    for start in starts:
        start.start()
    for start in starts:
        start.join(30)


@then("the queen lists the six of them, each under its hive")
def six_listed(stack: Stack) -> None:
    wanted = sorted((f"bee{number}", worker) for number in range(3) for worker in ("same", f"own{number}"))

    def listed() -> bool:
        rows = stack.admin.get("/v2/workers/list").json["workers"]
        ready = all(row["state"] == "idle" for row in rows)
        return ready and sorted((row["hive_id"], row["worker_id"]) for row in rows) == wanted

    until(listed, 40)
    rows = stack.admin.get("/v2/workers/list").json["workers"]
    assert len({row["url"] for row in rows}) == 6


@when("another hive claims the id of one that is alive")
def claim_taken_id(stack: Stack) -> None:
    stack.others[3].start_hive()  # type: ignore[attr-defined]


@then("it is refused with 409 and the queen still lists the six")
def refused_id(stack: Stack) -> None:
    impostor: Stack = stack.others[3]  # type: ignore[attr-defined]
    until(lambda: impostor.hive_admin.get("/v1/health").json["status"] == "degraded", 15)
    headers = {"Authorization": f"Bearer {stack.tokens['hive_callback_token']}"}
    beat = heartbeat("bee0", "another-life", 1, [])
    answer = Http(stack.queen_url).call("POST", "/v2/hives/bee0/heartbeat", beat, headers)
    assert answer.status == 409
    assert answer.error["code"] == "CONFLICT"
    six_listed(stack)


# races


@when("two administrators mark it busy in the same moment")
def mark_busy(stack: Stack, story: Story) -> None:
    path = f"/v2/workers/{HIVE_ID}/{TALK}"
    in_background(story, *[lambda: stack.admin.call("PATCH", path, {"state": "busy"})] * 2)


@then("both get 200 and the worker is busy")
def marked_busy(stack: Stack, story: Story) -> None:
    assert [(answer.status, answer.json["state"]) for answer in joined(story)] == [(200, "busy")] * 2
    assert stack.row(TALK)["state"] == "busy"


@when("one of them marks it idle again")
def mark_idle(stack: Stack) -> None:
    assert stack.admin.call("PATCH", f"/v2/workers/{HIVE_ID}/{TALK}", {"state": "idle"}).status == 200


@then("the worker is idle")
def worker_is_idle(stack: Stack) -> None:
    assert stack.row(TALK)["state"] == "idle"


def report(hive: str, worker: str, boot: str, revision: int, state: str = "idle") -> dict[str, Any]:
    return {
        "worker_id": worker, "hive_id": hive, "boot_id": boot, "revision": revision, "state": state,
        "url": "http://127.0.0.1:9", "model": "m", "model_ref": "file:///m", "backend": "cpu", "slots_total": 1,
    }  # fmt: skip


def heartbeat(hive: str, boot: str, revision: int, workers: list[dict[str, Any]]) -> dict[str, Any]:
    machine = {"hostname": hive, "cores": 1, "ram_total_bytes": 1, "ram_available_bytes": 1, "disk_total_bytes": 1,
               "disk_available_bytes": 1}  # fmt: skip
    return {
        "hive_id": hive, "boot_id": boot, "revision": revision, "version": "0.1.0", "interval_s": 0.2,
        "sent_unix": time.time(), "api_url": None, "machine": machine, "workers": workers,
    }  # fmt: skip


def as_hive(stack: Stack) -> Http:
    return Http(stack.queen_url, stack.tokens["hive_callback_token"])


@given("a hive of the test's own that has gone silent with 20 workers")
def silent_hive(stack: Stack) -> None:
    stack.queen_config = {"heartbeat": {"drop_after_s": 1.5}}
    stack.start_queen()
    workers = [report("silent", f"old{number}", "life", 1) for number in range(20)]
    assert as_hive(stack).post("/v2/hives/silent/heartbeat", heartbeat("silent", "life", 1, workers)).status == 200
    assert len(stack.rows()) == 20


@when("another hive of the test's own registers new workers until the first is dropped")
def register_meanwhile(stack: Stack, story: Story) -> None:
    end = time.monotonic() + 20
    while "old0" in stack.rows():
        assert time.monotonic() < end
        story.count += 1
        ready = report("lively", f"new{story.count}", "life", story.count)
        assert as_hive(stack).post("/v2/workers/ready", ready).status == 200


@then("the workers of the silent hive are gone and every new one is there")
def new_ones_stay(stack: Stack, story: Story) -> None:
    assert set(stack.rows()) == {f"new{number}" for number in range(1, story.count + 1)}


@given("a hive of the test's own with one worker")
def own_hive(stack: Stack) -> None:
    stack.start_queen()
    assert as_hive(stack).post("/v2/workers/state", report("own", "w", "life", 1, "loading")).status == 200


@when("40 changes of state and 40 heartbeats arrive all at once, shuffled")
def shuffled(stack: Stack, story: Story) -> None:
    calls: list[Callable[[], Answer]] = []
    for revision in range(2, 42):
        state = ("loading", "idle", "draining")[revision % 3]
        one = report("own", "w", "life", 2 * revision, state)
        beat = heartbeat("own", "life", 2 * revision + 1, [report("own", "w", "life", 2 * revision, state)])
        calls.append(lambda one=one: as_hive(stack).post("/v2/workers/state", one))  # type: ignore[misc]
        calls.append(lambda beat=beat: as_hive(stack).post("/v2/hives/own/heartbeat", beat))  # type: ignore[misc]
    random.Random(4).shuffle(calls)  # noqa: S311 - an order, no secret
    in_background(story, *calls)


@then("the queen shows the newest of them")
def newest(stack: Stack, story: Story) -> None:
    assert {answer.status for answer in joined(story)} == {200}
    row = stack.row("w")
    assert row["revision"] == 82
    assert row["state"] in ("draining", "stale"), "41 % 3 == 2"


# recoveries


@given("a queen and a hive with short intervals, and the worker of the talking model runs")
def short_intervals(stack: Stack, story: Story) -> None:
    stack.hive_config = {"heartbeat_interval_s": 0.3}
    run_talk(stack, story)


@given("a client streams a long answer")
def one_stream(stack: Stack, story: Story, things: ExitStack) -> None:
    open_streams(stack, story, things, 1)


@given("two clients stream a long answer")
def two_streams(stack: Stack, story: Story, things: ExitStack) -> None:
    open_streams(stack, story, things, 2)


def open_streams(stack: Stack, story: Story, things: ExitStack, count: int) -> None:
    """Long answers, each begun: random words, half a second of work or more."""
    bodies = [LONG | {"temperature": 10, "seed": seed} for seed in range(40)]
    long = (body for body in bodies if _is_long(stack, body))
    for body in [next(long) | {"model": MODEL} for _ in range(count)]:
        story.streams.append(things.enter_context(stack.client.stream("POST", "/v1/inference", body)))
    until(lambda: stack.worker(TALK).get("/health").json["slots_busy"] == count, every_s=0.01)


def _is_long(stack: Stack, body: dict[str, Any]) -> bool:
    answer = stack.worker(TALK).post("/v1/inference", body | {"stream": False, "max_tokens": 400})
    return bool(answer.json["finish_reason"] == "length")


@when("the hive stands still")
def hive_stands_still(stack: Stack, things: ExitStack) -> None:
    assert stack.hive is not None
    freeze(stack.hive.pid, things)


@then("its worker is stale within a few intervals")
def stale(stack: Stack) -> None:
    stack.wait_state(TALK, "stale", limit_s=4)


@then("the stream goes on to its end")
def goes_on(story: Story) -> None:
    whole_stream(story.streams[0])


def whole_stream(stream: Stream) -> None:
    names = [event.name for event in stream]
    assert names.count("end") == 1, names[-3:]
    assert "error" not in names


@then("another request waits")
def waits(stack: Stack, story: Story) -> None:
    in_background(story, lambda: chat(stack))
    until(lambda: stack.admin.get("/health").json["waiting"] == 1)
    assert not story.answers


@when("the hive moves again")
def hive_moves(stack: Stack) -> None:
    assert stack.hive is not None
    os.kill(stack.hive.pid, signal.SIGCONT)


@then("that request is answered and the worker is idle")
def answered(stack: Stack, story: Story) -> None:
    assert [text_of(answer) for answer in joined(story)] == [ANSWER]
    assert stack.wait_state(TALK, "idle")["pid"] == story.pid


@when("the hive stands still for longer than the limit")
def hive_silent_for_long(stack: Stack, things: ExitStack) -> None:
    assert stack.queen is not None
    stack.write_queen_config({"heartbeat": {"drop_after_s": 2}})
    stack.queen.signal(signal.SIGHUP)
    stack.queen.wait_log("configuration reloaded")
    hive_stands_still(stack, things)


@then("the queen knows the worker no more")
def forgotten(stack: Stack) -> None:
    until(lambda: TALK not in stack.rows(), 15, every_s=0.2)
    assert chat(stack).status == 404


@when("the worker gets SIGTERM")
def terminate_worker(story: Story) -> None:
    os.kill(story.pid, signal.SIGTERM)


@then("it refuses a new request with 503 WORKER_DRAINING")
def refuses(stack: Stack) -> None:
    worker = stack.worker(TALK)
    until(lambda: worker.get("/health").json["state"] == "draining", every_s=0.01)
    answer = worker.post("/v1/inference", LONG)
    assert answer.status == 503
    assert answer.error["code"] == "WORKER_DRAINING"
    assert answer.headers["Retry-After"]
    assert stack.wait_state(TALK, "draining")["slots_available"] <= 4


@then("both streams come to their end")
def both_end(story: Story) -> None:
    for stream in story.streams:
        whole_stream(stream)


@then("the worker ends by itself with exit code 0, and the queen lists it as stopped")
def ended_well(stack: Stack, story: Story) -> None:
    row = stack.wait_state(TALK, "stopped", limit_s=30)
    assert (row["result"], row["exit_status"], row["exit_signal"]) == ("success", 0, 0)
    assert not Path(f"/proc/{story.pid}").exists()


@when("the queen and then the hive get SIGTERM")
def terminate_all(stack: Stack, story: Story) -> None:
    assert stack.queen is not None
    assert stack.hive is not None
    story.at = time.monotonic()
    codes = [stack.queen.stop(), stack.hive.stop()]
    story.at = time.monotonic() - story.at
    assert codes == [0, 0], "\n".join(stack.queen.log[-20:] + stack.hive.log[-20:])


@then("both exit with 0 within 30 s and no process is left")
def nothing_left(story: Story) -> None:
    assert story.at < 30
    assert not Path(f"/proc/{story.pid}").exists()


# rbee dev


@pytest.fixture
def visitor(tmp_path: Path, models: Path) -> Person:
    """Someone who tries rbee dev for the second time: the models are built already."""
    kept = tmp_path / "state" / "rbee" / "dev" / "models"
    shutil.copytree(models, kept, copy_function=os.link if models.stat().st_dev == tmp_path.stat().st_dev else None
                    or shutil.copy2)  # fmt: skip
    return Person(tmp_path)


def processes_of(home: Path) -> set[int]:
    """Every process whose environment names this home folder."""
    found = set()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"HOME={home}\0".encode() in environ.read_bytes():
                found.add(int(environ.parent.name))
        except OSError:
            continue
    return found


@when("a person runs rbee dev --once")
def dev_once(visitor: Person, story: Story) -> None:
    story.command = visitor.start("dev", "--once", "--port", 18080)
    story.command.wait_said("rbee-hive is ready", 60)
    story.pids = processes_of(visitor.home)
    assert len(story.pids) >= 3
    story.done.append(story.command.wait(90))


@then(
    "it exits with 0, and stdout has an answer of the talking model, three sentences compared and lines to go on with"
)
def dev_showed(story: Story) -> None:
    (done,) = story.done
    assert done.code == 0, done.err + done.out
    answer = next(topic.answer for topic in TOPICS if "What does a worker do?" in topic.questions)
    assert answer in done.out
    assert "is like" in done.out
    assert "curl --unix-socket" in done.out
    assert "all ended" in done.out


@then("none of its processes is left")
def dev_left_nothing(visitor: Person) -> None:
    until(lambda: not processes_of(visitor.home), 5)


@given("a person runs rbee dev and it waits")
def dev_waits(visitor: Person, story: Story) -> None:
    story.command = visitor.start("dev", "--port", 18080)
    story.text = story.command.wait_said("worker list\n", 90)


@then("the lines to go on with work as they stand")
def lines_work(visitor: Person, story: Story) -> None:
    _, _, shown = story.text.partition("Go on from another terminal:\n")
    lines = [line.strip() for line in shown.splitlines() if line.startswith("  ")]
    assert len(lines) == 6
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for line in lines:
        done = subprocess.run(
            ["bash", "-c", line], capture_output=True, text=True, timeout=30, env=visitor.env | {"PATH": path},
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{line}: {done.stderr}"
        assert re.search(r"dev-talk|bee-talk|embedding", done.stdout), f"{line}: {done.stdout}"


@when("the person presses Ctrl+C")
def dev_ctrl_c(story: Story) -> None:
    assert story.command is not None
    story.command.interrupt()
    story.done.append(story.command.wait(40))


@then("it exits with 0, and says that all ended")
def dev_ended(story: Story) -> None:
    (done,) = story.done
    assert done.code == 0, done.err
    assert "all ended" in done.out
    assert "killed" not in done.out
