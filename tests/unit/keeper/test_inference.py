"""`rbee infer` against a daemon that answers well, is busy, breaks off, stalls, or is told to stop."""

import itertools
import json
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from tests.unit.keeper.command import Person
from tests.unit.keeper.peer import (
    STREAM_END,
    STREAM_HEAD,
    Asked,
    Peer,
    Send,
    answer,
    chunk,
    error,
    event,
    raw_answer,
    tokens,
)

TASK = "0b9ee3f0-5ab2-4c5d-9fd4-3ad0c1e9f111"
ASK = ("infer", "--model", "m", "--prompt", "hello", "--max-tokens", "5")


def whole(asked: Asked, send: Send) -> None:
    send(STREAM_HEAD + event("queued", {"task_id": TASK}) + chunk(b": still here\n\n"))
    send(event("loading", {"stage": "weights", "done": 1, "total": 2}) + event("started", {"request_id": TASK}))
    send(tokens(["one", " two", " three"]) + event("metrics", {"tokens_per_s": 12.5}))
    send(event("end", {"reason": "stop"}) + event(None, "[DONE]") + STREAM_END)


def test_the_text_goes_to_stdout_and_all_else_to_stderr(person: Person, folder: Path) -> None:
    with Peer(whole, folder / "q.sock") as peer:
        done = person.rbee("--socket", folder / "q.sock", *ASK, "--seed", 7, "--stop", "a", "--stop", "b")
    assert (done.returncode, done.stdout) == (0, "one two three\n")
    assert "loading: weights" in done.stderr
    assert "3/5 tokens" in done.stderr
    sent = peer.asked[0].json
    assert (peer.asked[0].path, sent["model"], sent["prompt"]) == ("/v1/inference", "m", "hello")
    assert (sent["seed"], sent["stop"], sent["max_tokens"]) == (7, ["a", "b"], 5)
    assert "temperature" not in sent
    assert not person.partials.exists()


def test_tokens_are_written_as_they_come(person: Person, folder: Path) -> None:
    go_on = threading.Event()

    def slowly(asked: Asked, send: Send) -> None:
        send(STREAM_HEAD + tokens(["first"]))
        go_on.wait(20)
        send(tokens([" last"]) + event("end", {}) + event(None, "[DONE]") + STREAM_END)

    with Peer(slowly, folder / "q.sock"):
        process = person.start("--socket", folder / "q.sock", *ASK)
        assert process.stdout is not None
        assert process.stdout.read(5) == "first"
        go_on.set()
        rest, _ = process.communicate(timeout=20)
    assert (process.returncode, rest) == (0, " last\n")


def test_json_gives_the_whole_answer_at_the_end(person: Person, folder: Path) -> None:
    with Peer(whole, folder / "q.sock"):
        done = person.rbee("--socket", folder / "q.sock", *ASK, "--json")
    found = json.loads(done.stdout)
    assert (found["text"], found["tokens"], found["metrics"]) == ("one two three", 3, {"tokens_per_s": 12.5})


@pytest.mark.parametrize("in_stream", [False, True])
def test_busy_slots_are_tried_again_after_1_2_and_4_s(person: Person, folder: Path, in_stream: bool) -> None:
    moments: list[float] = []

    def busy(asked: Asked, send: Send) -> None:
        moments.append(time.monotonic())
        facts = {"code": "ALL_SLOTS_BUSY", "message": "busy", "details": {"slots_total": 1, "slots_busy": 1}}
        if in_stream:
            send(STREAM_HEAD + event("queued", {}) + event("error", {"error": facts}) + event(None, "[DONE]"))
            send(STREAM_END)
        else:
            send(error("ALL_SLOTS_BUSY", "busy", 503, slots_total=1, slots_busy=1))

    with Peer(busy, folder / "q.sock"):
        done = person.rbee("--socket", folder / "q.sock", *ASK)
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert gaps == [pytest.approx(wait, abs=0.6) for wait in (1, 2, 4)]
    assert done.returncode == 1
    assert "(1 of 1): trying again in 4 s" in done.stderr
    assert "ALL_SLOTS_BUSY" in done.stderr
    assert "next: wait and try again" in done.stderr


def test_a_queue_that_is_too_long_is_tried_again(person: Person, folder: Path) -> None:
    asked_before: list[Asked] = []

    def full_once(asked: Asked, send: Send) -> None:
        asked_before.append(asked)
        if len(asked_before) == 1:
            send(error("TOO_MANY_REQUESTS", "too many requests wait", 429))
        else:
            whole(asked, send)

    with Peer(full_once, folder / "q.sock"):
        done = person.rbee("--socket", folder / "q.sock", *ASK)
    assert (done.returncode, len(asked_before)) == (0, 2)
    assert "too many requests wait for the model: trying again in 1 s" in done.stderr


@pytest.mark.parametrize("ending", [b"", STREAM_END], ids=["cut", "ended"])
def test_a_stream_that_breaks_off_keeps_its_text(person: Person, folder: Path, ending: bytes) -> None:
    with Peer(lambda _, send: send(STREAM_HEAD + tokens(["one", " two"]) + ending), folder / "q.sock"):
        done = person.rbee("--socket", folder / "q.sock", *ASK)
    assert done.returncode == 1
    assert "STREAM_CLOSED" in done.stderr
    assert "2/5 tokens" in done.stderr
    (kept,) = person.partials.iterdir()
    assert str(kept) in done.stderr
    assert kept.read_text() == "one two"
    assert kept.stat().st_mode & 0o777 == 0o600


def test_an_error_event_is_told_and_the_text_before_it_is_kept(person: Person, folder: Path) -> None:
    failed = {"error": {"code": "WORKER_FAILED", "message": "the worker went away", "details": {"worker_id": "w9"}}}

    def script(asked: Asked, send: Send) -> None:
        send(STREAM_HEAD + tokens(["one"]) + event("error", failed) + event(None, "[DONE]") + STREAM_END)

    with Peer(script, folder / "q.sock"):
        done = person.rbee("--socket", folder / "q.sock", *ASK)
    assert done.returncode == 1
    assert "the worker went away (WORKER_FAILED)" in done.stderr
    assert "rbee worker logs w9" in done.stderr
    assert len(list(person.partials.iterdir())) == 1


def stalling(asked: Asked, send: Send) -> None:
    if asked.method == "DELETE":
        send(raw_answer(b"", 204))
        return
    send(STREAM_HEAD + event("started", {"task_id": TASK}) + tokens(["one"]))
    for _ in range(100):
        time.sleep(0.1)
        send(chunk(b": comments are no progress\n\n"))


def test_a_stall_cancels_the_request(person: Person, folder: Path) -> None:
    with Peer(stalling, folder / "q.sock") as peer:
        began = time.monotonic()
        done = person.rbee("--socket", folder / "q.sock", *ASK, "--stall-limit", 0.7)
        took = time.monotonic() - began
    assert done.returncode == 1
    assert 0.7 < took < 6
    assert "INFERENCE_STALLED" in done.stderr
    assert [(asked.method, asked.path) for asked in peer.asked[1:]] == [("DELETE", f"/v2/tasks/{TASK}")]


def interrupt(process: subprocess.Popen[str], first: str = "one") -> tuple[int, str]:
    """Send SIGINT once the first token is there; returns the exit code and stderr."""
    assert process.stdout is not None
    assert process.stdout.read(len(first)) == first
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=20)
    return process.returncode, told


def test_ctrl_c_cancels_and_exits_130(person: Person, folder: Path) -> None:
    with Peer(stalling, folder / "q.sock") as peer:
        code, told = interrupt(person.start("--socket", folder / "q.sock", *ASK))
    assert code == 130
    assert [(asked.method, asked.path) for asked in peer.asked[1:]] == [("DELETE", f"/v2/tasks/{TASK}")]
    assert "cancelled" in told
    assert "Traceback" not in told


def test_ctrl_c_waits_at_most_5_s_for_the_confirmation(person: Person, folder: Path) -> None:
    def deaf(asked: Asked, send: Send) -> None:
        if asked.method == "DELETE":
            time.sleep(7)
        else:
            stalling(asked, send)

    with Peer(deaf, folder / "q.sock"):
        process = person.start("--socket", folder / "q.sock", *ASK)
        began = time.monotonic()
        code, told = interrupt(process)
        took = time.monotonic() - began
    assert code == 130
    assert 5 <= took < 7.5
    assert "did not confirm within 5 s" in told


def test_a_worker_asked_directly_is_cancelled_by_its_own_route(person: Person) -> None:
    def script(asked: Asked, send: Send) -> None:
        if asked.method == "POST":
            send(STREAM_HEAD + event("started", {"request_id": TASK}) + tokens(["one"]))
            time.sleep(2)
        else:
            send(raw_answer(b"", 204))

    with Peer(script) as peer:
        code, _ = interrupt(person.start(*ASK, "--worker-url", peer.url))
    assert code == 130
    assert peer.asked[1].path == f"/v1/inference/{TASK}"


def test_chat_streams_and_embed_compares(person: Person, folder: Path) -> None:
    def script(asked: Asked, send: Send) -> None:
        if asked.path == "/v1/embeddings":
            rows = [{"index": 1, "embedding": [0.0, 1.0]}, {"index": 0, "embedding": [1.0, 0.0]}]
            send(answer({"data": rows, "model": "e"}))
            return
        send(STREAM_HEAD)
        for piece in ("hel", "lo"):
            send(event(None, {"choices": [{"delta": {"content": piece}, "finish_reason": None}]}))
        send(event(None, {"choices": [{"delta": {}, "finish_reason": "stop"}]}) + event(None, "[DONE]") + STREAM_END)

    with Peer(script, folder / "q.sock") as peer:
        chat = person.rbee("--socket", folder / "q.sock", "chat", "--model", "m", "-m", "hi", "--system", "be kind")
        embed = person.rbee("--socket", folder / "q.sock", "embed", "--model", "e", "--json", "a", "b")
    assert (chat.returncode, chat.stdout) == (0, "hello\n")
    assert [turn["role"] for turn in peer.asked[0].json["messages"]] == ["system", "user"]
    assert [row["embedding"] for row in json.loads(embed.stdout)["data"]] == [[1.0, 0.0], [0.0, 1.0]]


def test_logs_follow_until_ctrl_c(person: Person, folder: Path) -> None:
    def script(asked: Asked, send: Send) -> None:
        send(STREAM_HEAD + event("line", {"time_unix": 0.0, "priority": 6, "message": "one line"}))
        time.sleep(2)

    with Peer(script, folder / "hive.sock") as peer:
        process = person.start("--hive-socket", folder / "hive.sock", "worker", "logs", "w1", "--follow")
        code, _ = interrupt(process, "1970-01-01 00:00:00 one line\n")
    assert code == 130
    assert peer.asked[0].path.startswith("/v1/workers/w1/logs?")
    assert "follow=1" in peer.asked[0].path
