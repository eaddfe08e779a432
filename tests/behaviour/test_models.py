"""Steps of features/models.feature."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from tests.behaviour.support.http import Answer, Event, until
from tests.behaviour.support.model_source import Fault, ModelSource
from tests.behaviour.support.person import Done, Person
from tests.behaviour.support.stack import Stack

scenarios("features/models.feature")

TINY = "hf:org/tiny"
WEIGHTS = "weights/more_data"
TENSOR = {
    "inputs": [
        {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]},
        {"name": "shift", "shape": [1, 1], "datatype": "INT64", "data": [7]},
    ]
}


@dataclass
class Case:
    """What a scenario's steps hand on."""

    source: ModelSource
    person: Person
    size: int
    answer: Answer | None = None
    events: list[Event] = field(default_factory=list)
    streams: list[list[Event]] = field(default_factory=list)
    done: Done | None = None
    answers: list[Answer] = field(default_factory=list)
    asked: int = 0
    own: str = ""


@given("a source of models, and queen and hive that fetch from it", target_fixture="case")
def fetching(stack: Stack, source: ModelSource, models: Path, tmp_path: Path) -> Case:
    tiny = models / "tiny-tensor"
    files = {str(path.relative_to(tiny)): path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    files[WEIGHTS] = os.urandom(400_000)
    source.repository("org/tiny", files)
    source.repository("org/gated", files)
    source.repository("org/other", {"model.onnx": b"x" * 100})
    source.gated["org/gated"] = "a-token-of-the-hub"
    stack.hive_config["models"] = {
        "hf_endpoint": source.url, "stall_limit_s": 0.5, "retry_most_s": 0.15, "disk_reserve_mb": 0,
    }  # fmt: skip
    stack.start()
    sockets = ("--socket", stack.run_dir / "queen.sock", "--hive-socket", stack.run_dir / "hive.sock")
    return Case(source, Person(tmp_path, *sockets), sum(map(len, files.values())))


def _restart_hive(stack: Stack) -> None:
    assert stack.hive is not None
    stack.hive.stop()
    stack.start_hive()


def _set_models(stack: Stack, **settings: object) -> None:
    stack.hive_config["models"] = {**stack.hive_config["models"], **settings}
    _restart_hive(stack)


def _rows(stack: Stack, query: str = "") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = stack.hive_admin.get(f"/v1/models{query}").json["models"]
    return rows


def _stream(stack: Stack, reference: str) -> list[Event]:
    body, accept = {"reference": reference}, {"Accept": "text/event-stream"}
    with stack.hive_admin.stream("POST", "/v1/models/download", body, accept) as stream:
        assert stream.status == 200
        return list(stream)


# given


@given(f"{TINY} was fetched")
def was_fetched(stack: Stack, case: Case) -> None:
    assert _stream(stack, TINY)[-2].name == "complete"
    case.asked = len(case.source.seen)


@given("a folder of the operator's own is catalogued")
def own_folder(stack: Stack, case: Case, models: Path) -> None:
    case.own = f"file://{models / 'tiny-tensor'}"
    assert stack.hive_admin.post("/v1/models/download", {"reference": case.own}).status == 200


@given(parsers.re(r"the source resets the weights at (?P<percent>\d+) percent, (?P<times>.+)"))
def resets(case: Case, percent: str, times: str) -> None:
    case.source.fault(WEIGHTS, *[Fault(after=4000 * int(percent)) for _ in range(_count(times))])


@given(parsers.re(r"the source stalls, (?P<times>.+)"))
def stalls(case: Case, times: str) -> None:
    case.source.fault(WEIGHTS, *[Fault(after=0, then="stall") for _ in range(_count(times))])


@given(parsers.re(r"the source sends wrong weights, (?P<times>.+)"))
def corrupts(case: Case, times: str) -> None:
    case.source.fault(WEIGHTS, *[Fault(then="corrupt") for _ in range(_count(times))])


def _count(times: str) -> int:
    return 1 if times == "once" else int(times.split()[0])


@given(parsers.parse("the hive may take {limit:d} megabits per second"))
def limited(stack: Stack, limit: int) -> None:
    _set_models(stack, bandwidth_limit_mbps=limit)


@given("the hive must leave more of the disk free than there is")
def no_room(stack: Stack) -> None:
    _set_models(stack, disk_reserve_mb=10**9)


@pytest.fixture
def small_disk(stack: Stack) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = stack.state_dir / "models"
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


@given("the folder of models is a disk of 300 kB and the source tells no sizes")
def small(case: Case, small_disk: Path) -> None:
    # a hub tells sizes: the web folder of a server that makes its answers on the fly does not
    case.source.folder("tiny", case.source.folders["org/tiny"])
    case.source.sizes_hidden = True


@given("the source is slow")
def slow(case: Case) -> None:
    case.source.pace_s = 0.15


@given(f"an operator's file names {TINY} as a worker's model")
def operators_file(stack: Stack, case: Case) -> None:
    case.source.pace_s = 0.15
    (stack.config_dir / "workers/w.yaml").write_text(f"model: {TINY}\n")


@given(f"a worker of {TINY} is ready")
def worker_ready(stack: Stack) -> None:
    stack.spawn("w", model_ref=TINY)
    stack.wait_state("w", "idle")


@pytest.fixture
def other_hive(models: Path) -> Iterator[Stack]:
    made = Stack(models)
    yield made
    made.close()


@given("another hive reports to the queen")
def another_hive(stack: Stack, case: Case, other_hive: Stack) -> None:
    other_hive.tokens = stack.tokens
    for name, value in stack.tokens.items():
        other_hive.write_token(name, value)
    other_hive.hive_config = {
        "hive_id": "other", "queen": {"callback_url": stack.queen_url}, "models": {"disk_reserve_mb": 0},
    }  # fmt: skip
    other_hive.start_hive()
    until(lambda: stack.admin.get("/v2/hives/other/models").status == 200)


# when


@when(f"{TINY} is downloaded from the hive as a stream")
def downloaded(stack: Stack, case: Case) -> None:
    case.events = _stream(stack, TINY)


@when(f"{TINY} is downloaded from the hive")
def downloaded_plainly(stack: Stack, case: Case) -> None:
    case.answer = stack.hive_admin.post("/v1/models/download", {"reference": TINY})


@when(f"three clients download {TINY} at once")
def three(stack: Stack, case: Case) -> None:
    with ThreadPoolExecutor(3) as pool:
        case.streams = list(pool.map(lambda _: _stream(stack, TINY), range(3)))


@when(parsers.re(r"a person pulls (?P<reference>\S+)$"))
def pulls(case: Case, reference: str) -> None:
    if case.source.sizes_hidden:
        reference = f"{case.source.url}/tiny/"
    case.done = case.person.rbee("model", "pull", reference)


@when(parsers.re(r"a person pulls hf:org/tiny to the other node with (?P<how>.+)"))
def copies(case: Case, how: str) -> None:
    case.done = case.person.rbee("model", "pull", TINY, "--node", "other", *how.split())


@when(parsers.parse("a person removes {reference}"))
def removes(case: Case, reference: str) -> None:
    case.done = case.person.rbee("model", "rm", reference)


@when(parsers.parse("the worker is stopped and a person removes {reference}"))
def stops_and_removes(stack: Stack, case: Case, reference: str) -> None:
    assert stack.hive_admin.call("DELETE", "/v1/workers/w").status == 202
    stack.wait_state("w", "stopped")
    case.done = case.person.rbee("model", "rm", reference)


@when(parsers.parse("a file of it changes and a person verifies {reference}"))
def verifies(stack: Stack, case: Case, reference: str) -> None:
    path = Path(_rows(stack)[0]["local_path"], WEIGHTS)
    path.write_bytes(b"!" + path.read_bytes()[1:])
    case.done = case.person.rbee("model", "verify", reference)


@when("a person backs the catalogue up")
def backs_up(case: Case) -> None:
    case.done = case.person.rbee("catalog", "backup")


@when(parsers.re(r"a worker of (?P<reference>\S+) is spawned"))
def spawned(stack: Stack, reference: str) -> None:
    stack.spawn("w", model_ref=reference)


@when("that worker is started")
def started(stack: Stack) -> None:
    stack.spawn("w")


@when("the catalogue is corrupted and the hive starts anew")
def corrupted(stack: Stack) -> None:
    assert stack.hive is not None
    stack.hive.stop()
    (stack.state_dir / "hive/models.db").write_bytes(b"this is no database at all" * 400)
    stack.start_hive()


@when("the catalogue cannot be opened and the hive starts anew")
def unopened(stack: Stack) -> None:
    assert stack.hive is not None
    stack.hive.stop()
    shutil.rmtree(stack.state_dir / "hive")
    (stack.state_dir / "hive").write_text("in the way")
    stack.start_hive()


# then


def _progress(case: Case) -> list[dict[str, Any]]:
    return [event.json for event in case.events if event.name == "progress"]


@then("each event of progress has stage, bytes_downloaded, bytes_total and speed_mbps, and never goes back")
def progress_is_whole(case: Case) -> None:
    shown = _progress(case)
    assert shown
    assert all({"stage", "bytes_downloaded", "bytes_total", "speed_mbps"} <= each.keys() for each in shown)
    done = [each["bytes_downloaded"] for each in shown]
    assert done == sorted(done)


@then("the stream ends with complete, the local path, and [DONE]")
def ends_complete(stack: Stack, case: Case) -> None:
    last, end = case.events[-2:]
    assert (last.name, last.json["stage"], end.data) == ("complete", "complete", b"[DONE]")
    assert Path(last.json["local_path"], WEIGHTS).stat().st_size == 400_000
    assert last.json["bytes_downloaded"] == last.json["bytes_total"] == case.size


@then("the catalogue has a row with id, provider hf, reference, local_path, size_bytes and downloaded_at_unix")
def has_row(stack: Stack, case: Case) -> None:
    (row,) = _rows(stack)
    assert (row["provider"], row["reference"], row["size_bytes"]) == ("hf", TINY, case.size)
    assert row["local_path"] == str(stack.state_dir / "models" / row["id"])
    assert row["downloaded_at_unix"] > 0


@then("the bytes that came and those expected are counted for the model")
def counted(stack: Stack, case: Case) -> None:
    model = _rows(stack)[0]["id"]
    assert stack.hive_admin.metric("rbee_hive_model_download_bytes_total", model=model) == case.size
    assert stack.hive_admin.metric("rbee_hive_model_download_expected_bytes", model=model) == case.size


@then("the answer is 200 with its local path")
def here(stack: Stack, case: Case) -> None:
    assert case.answer is not None
    assert (case.answer.status, case.answer.json["local_path"]) == (200, _rows(stack)[0]["local_path"])


@then("the source was not asked again")
def not_asked(case: Case) -> None:
    assert len(case.source.seen) == case.asked


@then("?provider=hf lists the one and ?provider=local the other, each with the bytes of its files")
def by_provider(stack: Stack, case: Case) -> None:
    (fetched,), (own,) = _rows(stack, "?provider=hf"), _rows(stack, "?provider=local")
    assert (fetched["reference"], own["reference"]) == (TINY, case.own)
    for row in (fetched, own):
        files = [path for path in Path(row["local_path"]).rglob("*") if path.is_file()]
        assert row["size_bytes"] == sum(path.stat().st_size for path in files if path.name != ".rbee-model.json")
    assert stack.hive_admin.get("/v1/models?provider=else").status == 400


@then("it exits with 0 and prints the local path")
def pulled(case: Case) -> None:
    assert case.done is not None
    assert case.done.code == 0, case.done.err
    assert Path(case.done.out.strip(), WEIGHTS).is_file()
    assert "verified" in case.done.err


@then("it said how far it was")
def said_how_far(case: Case) -> None:
    assert case.done is not None
    assert re.search(r"downloading .* of .*Mbit/s", case.done.err)


@then(parsers.parse('it exits with {code:d} and says "{words}"'))
def exits(case: Case, code: int, words: str) -> None:
    assert case.done is not None
    said = case.done.out + case.done.err
    assert (case.done.code, words in said) == (code, True), said


@then("it said that try 2 of 6 follows in 0.1 s")
def one_retry(case: Case) -> None:
    assert case.done is not None
    assert "try 2 of 6 in 0.1 s" in case.done.err


@then("it said that tries 2 to 6 follow")
def five_retries(case: Case) -> None:
    assert case.done is not None
    for number in range(2, 7):
        assert f"try {number} of 6" in case.done.err


@then("the second request of the weights had a Range from where the first ended")
def ranged(case: Case) -> None:
    first, second = case.source.requests(WEIGHTS)
    assert first.range is None
    match = re.fullmatch(r"bytes=(\d+)-", second.range or "")
    assert match and 0 < int(match[1]) <= 160_000


@then("the second request of the weights began at their start")
def from_start(case: Case) -> None:
    assert [seen.range for seen in case.source.requests(WEIGHTS)] == [None, None]


@then(parsers.parse("each event of progress has limit_mbps {limit:d}"))
def shows_limit(case: Case, limit: int) -> None:
    assert {each["limit_mbps"] for each in _progress(case)} == {limit}


@then("the hive's refusal has the required, the available and the bytes to free up")
def amounts(stack: Stack, case: Case) -> None:
    (error,) = [json.loads(event.data)["error"] for event in _stream(stack, TINY) if event.name == "error"]
    assert error["code"] == "INSUFFICIENT_DISK"
    assert error["details"]["required_bytes"] == case.size
    assert error["details"]["available_bytes"] == 0
    assert error["details"]["free_up_bytes"] > 0


@then("nothing is left in the folder of models")
def nothing_left(stack: Stack) -> None:
    assert not [path for path in (stack.state_dir / "models").rglob("*") if path.is_file()]


@then("all three streams end with the same local path")
def same_end(case: Case) -> None:
    ends = [stream[-2] for stream in case.streams]
    assert {end.name for end in ends} == {"complete"}
    assert len({end.json["local_path"] for end in ends}) == 1


@then("the weights were asked for once")
def asked_once(case: Case) -> None:
    assert len(case.source.requests(WEIGHTS)) == 1


@then("it is loading with the stage downloading, then ready")
def loads(stack: Stack) -> None:
    def downloading() -> bool:
        row = stack.rows().get("w")
        progress = None if row is None or row["state"] != "loading" else row["progress"]
        return bool(progress and progress["stage"] == "downloading")

    until(downloading)
    stack.wait_state("w", "idle", limit_s=60)


@when("a client asks the queen for the model org/tiny")
def asked(stack: Stack, case: Case) -> None:
    stack.wait_state("w", "stopped")
    case.answer = stack.client.post("/v2/models/org%2Ftiny/infer", TENSOR)


@then("the answer comes once the model was fetched and its worker started")
def answered(case: Case) -> None:
    assert case.answer is not None
    assert case.answer.status == 200, case.answer.body
    assert len(case.source.requests(WEIGHTS)) == 1


@when("ten clients ask the queen for the model org/tiny at once")
def ten_ask(stack: Stack, case: Case) -> None:
    stack.wait_state("w", "stopped")
    with ThreadPoolExecutor(10) as pool:
        path = "/v2/models/org%2Ftiny/infer"
        case.answers = list(pool.map(lambda _: stack.client.post(path, TENSOR), range(10)))


@then("all ten are answered after one download and one start")
def ten_answered(stack: Stack, case: Case) -> None:
    assert [answer.status for answer in case.answers] == [200] * 10
    assert len(case.source.requests(WEIGHTS)) == 1
    assert stack.hive is not None
    assert len([line for line in stack.hive.log if "hive: worker ready" in line or "hive: worker idle" in line]) == 1


@then("the queen answers for the model org/tiny")
def answers(stack: Stack) -> None:
    answer = stack.client.post("/v2/models/org%2Ftiny/infer", TENSOR)
    assert answer.status == 200, answer.body


@then("the record of the download has its duration")
def narrated(stack: Stack) -> None:
    assert stack.hive is not None
    line = stack.hive.wait_log("model downloaded")
    assert re.search(r"seconds=\d", line)


@then("it has failed with MODEL_ACCESS_DENIED as the reason")
def has_failed(stack: Stack) -> None:
    stack.wait_state("w", "failed")
    assert stack.row("w")["reason"].startswith("MODEL_ACCESS_DENIED")


@then("the person is told of it and the corrupt file is kept as .corrupt.backup")
def told(stack: Stack, case: Case) -> None:
    (aside,) = (stack.state_dir / "hive").glob("*.corrupt.backup")
    done = case.person.rbee("catalog", "list")
    assert done.code == 0
    assert f"attention: the catalogue was corrupt: it is kept as {aside.name}" in done.err


@then(f"{TINY} is still in the catalogue")
def still_there(stack: Stack) -> None:
    assert [row["reference"] for row in _rows(stack)] == [TINY]


@then("another model can be fetched")
def goes_on(stack: Stack) -> None:
    assert _stream(stack, "hf:org/other")[-2].name == "complete"
    assert "hf:org/other" in [row["reference"] for row in _rows(stack)]


@then("the catalogue says that it is kept in memory")
def in_memory(stack: Stack) -> None:
    assert "in memory" in stack.hive_admin.get("/v1/models").json["problem"]
    health = stack.hive_admin.get("/v1/health").json
    assert health["status"] == "degraded"
    assert "in memory" in health["catalogue"]


@then("the copy holds the model")
def copy_holds(case: Case) -> None:
    assert case.done is not None
    with closing(sqlite3.connect(case.done.out.strip())) as copy:
        assert copy.execute("SELECT reference FROM models").fetchall() == [(TINY,)]
