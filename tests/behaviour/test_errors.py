"""Steps of features/errors.feature."""

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee.keeper.demo import faulty
from rbee.wire.auth import fingerprint
from tests.behaviour.support import daemons
from tests.behaviour.support.daemons import ACCEPTED, DAEMONS, WORKER, caller
from tests.behaviour.support.http import Answer, Http, until
from tests.behaviour.support.stack import TOKENS, Stack

scenarios("features/errors.feature")

CHECKOUT = Path(__file__).resolve().parents[2]
OURS = {"code", "message", "details", "correlation_id"}
INFER = "/v2/models/tiny-tensor/infer"
BAD_INDEX = {"inputs": [{"name": "index", "shape": [1], "datatype": "INT64", "data": [99]}]}
BODIES: dict[str, Any] = {
    "no JSON": b"{ this is no JSON",
    "2 MiB": b" " * (2 << 20),
    "a tensor": daemons.TENSOR,
    "a bad index": BAD_INDEX,
}
STRANGE = "a-token-that-nobody-knows"
SINS = '''"""A module with every sin that the rule is about."""

import asyncio


async def forgets() -> None:
    """Start a task that nobody holds."""
    asyncio.create_task(asyncio.sleep(1))


def swallows() -> None:
    """Hide what went wrong."""
    try:
        print(1)
    except Exception:
        pass


def catches_all() -> None:
    """Catch whatever comes."""
    try:
        print(1)
    except:
        print(2)
'''


@pytest.fixture
def seen() -> dict[str, Any]:
    """What a scenario's steps hand on."""
    return {}


# the static rule


@given("a module with a bare except, a swallowed exception and a task that nobody holds")
def sinful_module(tmp_path: Path, seen: dict[str, Any]) -> None:
    seen["module"] = tmp_path / "sins.py"
    seen["module"].write_text(SINS)


def _ruff(*arguments: object) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=json"]
    command += ["--config", str(CHECKOUT / "pyproject.toml"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=CHECKOUT)
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


@when("it is checked with the project's own rules")
def check_sins(seen: dict[str, Any]) -> None:
    seen["found"] = {fault["code"] for fault in _ruff(seen["module"])}


@then("each of the sins is reported")
def sins_reported(seen: dict[str, Any]) -> None:
    assert {"E722", "BLE001", "S110", "RUF006"} <= seen["found"]


@then("the project's own code has none of them")
def code_is_clean() -> None:
    faults = _ruff("--select", "E722,BLE001,S110,S112,RUF006,TRY400", CHECKOUT / "daemons")
    assert [(fault["filename"], fault["code"]) for fault in faults] == []


@given("a module with a coroutine that nobody awaits")
def unawaited_module(tmp_path: Path, seen: dict[str, Any]) -> None:
    seen["module"] = tmp_path / "forgetful.py"
    text = "import asyncio\n\n\nasync def forgetful() -> None:\n    asyncio.sleep(1)\n"
    seen["module"].write_text(text)


@when("its types are checked with the project's own rules")
def check_types(seen: dict[str, Any], tmp_path: Path) -> None:
    config = str(CHECKOUT / "pyproject.toml")
    command = [sys.executable, "-m", "mypy", "--config-file", config, "--cache-dir", str(tmp_path / "cache")]
    command += [str(seen["module"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=CHECKOUT)
    seen["done"] = done


@then("the missing await is reported")
def await_reported(seen: dict[str, Any]) -> None:
    assert seen["done"].returncode == 1, seen["done"].stdout + seen["done"].stderr
    assert "[unused-coroutine]" in seen["done"].stdout


# a stack with faulty workers


@pytest.fixture(scope="module")
def faulty_stack(models: Path) -> Iterator[Stack]:
    """Queen, hive, a good worker, one whose model fails on some inputs, one that cannot load, one held back."""
    made = Stack(models)
    made.queen_config = {"requests": {"admission_timeout_s": 1, "cold_wait_s": 5}}
    folder = made.state_dir / "models"
    for name, build in (("bad-index", faulty.build_bad_index), ("broken", faulty.build_broken_file)):
        (folder / name).mkdir(parents=True)
        build(folder / name)
    try:
        made.start()
        made.run_worker(WORKER, "tiny-tensor", slots=8)
        made.run_worker("index", str(folder / "bad-index"))
        made.run_worker("held", "tiny-tensor", name="held")
        assert made.admin.call("PATCH", "/v2/workers/bee/held", {"state": "busy"}).status == 200
        made.define_worker("broken", str(folder / "broken"))
        made.define_worker("gone", str(folder / "gone"))
        (made.config_dir / "workers/mess.yaml").write_text("slots: many\nmodel: /etc/passwd\n")
        made.spawn("broken")
        made.wait_state("broken", "failed")
        yield made
    finally:
        made.close()


@given("queen, hive and workers are running, some of them faulty", target_fixture="running")
def running(faulty_stack: Stack, seen: dict[str, Any]) -> Stack:
    seen["pids"] = _pids(faulty_stack)
    return faulty_stack


def _pids(stack: Stack) -> list[int]:
    assert stack.queen is not None
    assert stack.hive is not None
    assert stack.queen.process.poll() is None
    assert stack.hive.process.poll() is None
    return [stack.queen.pid, stack.hive.pid, stack.row(WORKER)["pid"]]


def _token(stack: Stack, daemon: str, credential: str) -> str | None:
    if credential == "no token":
        return None
    return stack.tokens[ACCEPTED[daemon] if credential == "its token" else credential]


def _body(body: str) -> Any:  # noqa: ANN401
    if not body.strip():
        return None
    return BODIES[body] if body in BODIES else json.loads(body)


@when(
    parsers.re(r"the (?P<daemon>\w+) is asked (?P<method>\w+) (?P<path>\S+) with (?P<credential>.+?) and ?(?P<body>.*)")
)
def ask(running: Stack, seen: dict[str, Any], daemon: str, method: str, path: str, credential: str, body: str) -> None:
    seen["answer"] = caller(running, daemon, _token(running, daemon, credential)).call(method, path, _body(body))


@then(parsers.parse("the answer is {status:d} with the code {code}"))
def status_and_code(seen: dict[str, Any], status: int, code: str) -> None:
    assert (seen["answer"].status, seen["answer"].error["code"]) == (status, code), seen["answer"].body


@then("its body is {error: {code, message, details, correlation_id}} and nothing else")
def our_shape(seen: dict[str, Any]) -> None:
    assert set(seen["answer"].json) == {"error"}
    _check_fields(seen["answer"].error, OURS)


def _check_fields(error: dict[str, Any], fields: set[str]) -> None:
    assert set(error) == fields
    assert re.fullmatch(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)*", error["code"])
    assert len(error["message"]) > 10
    assert isinstance(error["details"], dict)
    uuid.UUID(error["correlation_id"])


@then(parsers.parse("its body has OpenAI's type {kind} and param beside the four fields of ours"))
def openai_shape(seen: dict[str, Any], kind: str) -> None:
    assert set(seen["answer"].json) == {"error"}
    _check_fields(seen["answer"].error, {*OURS, "type", "param"})
    assert seen["answer"].error["type"] == kind


# correlation


@when("each daemon is asked 20 times for what it does not have")
def ask_often(running: Stack, seen: dict[str, Any]) -> None:
    asked = [caller(running, daemon, running.tokens[ACCEPTED[daemon]]) for daemon in DAEMONS]
    seen["answers"] = [http.get("/no/such/route") for http in asked for _ in range(20)]


@then("every answer has a valid UUID as correlation_id, the same in its header, and no two are alike")
def ids_are_unique(seen: dict[str, Any]) -> None:
    ids = [answer.error["correlation_id"] for answer in seen["answers"]]
    assert len({uuid.UUID(one) for one in ids}) == 60
    assert ids == [answer.headers["X-Correlation-Id"] for answer in seen["answers"]]


@then("a correlation id that the caller sent is kept, and one that is no UUID is not")
def ids_are_kept(running: Stack) -> None:
    sent = str(uuid.uuid4())
    for daemon in DAEMONS:
        http = caller(running, daemon)
        assert http.call("GET", "/x", headers={"X-Correlation-Id": sent}).error["correlation_id"] == sent
        own = http.call("GET", "/x", headers={"X-Correlation-Id": "../../etc"}).error["correlation_id"]
        assert uuid.UUID(own)


@when("a request for inference and a request to spawn come to the queen, each with a correlation id")
def linked_requests(running: Stack, seen: dict[str, Any]) -> None:
    seen["first"], seen["second"] = str(uuid.uuid4()), str(uuid.uuid4())
    client = running.client
    refused = client.call("POST", INFER, {"inputs": []}, {"X-Correlation-Id": seen["first"]})
    assert refused.error["correlation_id"] == seen["first"]
    answer = client.call("POST", "/v2/workers/spawn", {"worker_id": "mess"}, {"X-Correlation-Id": seen["second"]})
    assert answer.error["correlation_id"] == seen["second"]


@then(parsers.parse("the records of the {which} one in queen and {other} have its correlation id"))
def records_linked(running: Stack, seen: dict[str, Any], which: str, other: str) -> None:
    key = f"correlation_id={seen[which]}"
    for daemon in ("queen", other):
        daemons.wait_record(running, daemon, "authenticated", key)
    # the one who refuses says why; what the queen only passes on is not hers to explain
    daemons.wait_record(running, other, "request refused", key)


# the database


def _database(stack: Stack) -> Path:
    return next(stack.state_dir.rglob("queen.db"))


def _put_alias(stack: Stack) -> Answer:
    return stack.client.call("PUT", "/v2/aliases/small", {"model": "tiny-tensor"})


@given("a queen whose database cannot be opened")
def no_database(stack: Stack) -> None:
    stack.start_queen()
    assert stack.queen is not None
    stack.queen.stop()
    path = _database(stack)
    for file in path.parent.iterdir():
        file.unlink()
    path.mkdir()
    stack.start_queen()


@then("setting an alias is answered 503 with the code STORAGE_UNAVAILABLE and Retry-After")
def alias_refused(stack: Stack) -> None:
    answer = _put_alias(stack)
    assert (answer.status, answer.error["code"]) == (503, "STORAGE_UNAVAILABLE"), answer.body
    assert set(answer.error) == OURS
    assert int(answer.headers["Retry-After"]) > 0
    assert stack.client.get("/v2/aliases").json["aliases"] == {}


@then("her process runs, models are listed, and /health names the storage")
def queen_goes_on(stack: Stack) -> None:
    assert stack.queen is not None
    assert stack.queen.process.poll() is None
    assert stack.client.get("/v1/models").status == 200
    health = stack.client.get("/health").json
    assert any("storage" in problem for problem in health["degraded"]), health


@when("the database can be opened again")
def database_back(stack: Stack) -> None:
    _database(stack).rmdir()


@then("she notices by herself and says so in her log")
def noticed(stack: Stack) -> None:
    assert stack.queen is not None
    stack.queen.wait_log("the database is back", 30)
    until(lambda: stack.client.get("/health").json["degraded"] == [])


@then("setting an alias is answered 200 and it outlives a restart")
def alias_lasts(stack: Stack) -> None:
    assert _put_alias(stack).status == 200
    assert stack.queen is not None
    stack.queen.stop()
    stack.start_queen()
    assert stack.client.get("/v2/aliases").json["aliases"] == {"small": "tiny-tensor"}


@given("a queen whose database another process holds locked")
def locked_database(stack: Stack, seen: dict[str, Any], request: pytest.FixtureRequest) -> None:
    stack.start_queen()
    seen["holder"] = holder = sqlite3.connect(_database(stack), isolation_level=None)
    request.addfinalizer(holder.close)
    holder.execute("BEGIN EXCLUSIVE")


@when("the other process lets the database go")
def unlock(seen: dict[str, Any]) -> None:
    seen["holder"].execute("ROLLBACK")


@then("setting an alias is answered 200 again")
def alias_set(stack: Stack) -> None:
    until(lambda: _put_alias(stack).status == 200, 20)


# what errors do not tell


def _provoke(stack: Stack) -> Iterator[Answer]:
    """Errors of every kind, at every daemon."""
    for daemon in DAEMONS:
        good, url = stack.tokens[ACCEPTED[daemon]], daemons.url_of(stack, daemon)
        for header in (None, "Basic x", "Bearer", f"Bearer {STRANGE}", f"Bearer {good}x"):
            yield Http(url).call("GET", "/v1/models", headers={} if header is None else {"Authorization": header})
        for method, path in (("GET", "/no/such"), ("PATCH", "/v1/models"), ("GET", "/../../etc/passwd")):
            yield Http(url, good).call(method, path)
    queen, hive, worker = (caller(stack, daemon, stack.tokens[ACCEPTED[daemon]]) for daemon in DAEMONS)
    yield caller(stack, "queen", stack.tokens["hive_callback_token"]).get("/v2/aliases")
    for model, body in (
        ("broken", {}),
        ("gone", {}),
        ("held", daemons.TENSOR),
        ("nobody", {}),
        ("bad-index", BAD_INDEX),
    ):
        yield queen.post(f"/v2/models/{model}/infer", body)
    yield queen.post("/v1/chat/completions", {"model": "tiny-tensor", "messages": [], "stream": True})
    for reference in ("/etc/passwd", "file:///etc", f"file://{stack.folder}/none", "file:///../../x", "hf:a/b"):
        for address, path in ((queen, "/v2/workers/spawn"), (hive, "/v1/workers/spawn")):
            yield address.post(path, {"worker_id": "some", "model_ref": reference})
    for name, fields in (("mess", {}), ("nobody", {}), ("x", {"backend": "metal"}), ("x", {"backend": "cuda"})):
        body = {"worker_id": name, **fields}
        if fields:
            body["model_ref"] = f"file://{stack.models}/tiny-tensor"
        yield queen.post("/v2/workers/spawn", body)
        yield hive.post("/v1/workers/spawn", body)
    yield queen.post("/v2/workers/spawn", {"worker_id": WORKER, "hive_id": "elsewhere"})
    yield hive.post("/v1/workers/spawn", b" " * (2 << 20))
    yield queen.get("/v2/tasks/none")
    yield queen.call("PATCH", "/v2/workers/bee/none", {"state": "idle"})
    yield worker.post(INFER, {"inputs": []})
    yield worker.post("/v1/inference", {"prompt": "x", "unknown": 1})
    yield worker.post("/v1/chat/completions", b"{")


@when("errors of every kind are provoked at queen, hive and worker")
def provoke(running: Stack, seen: dict[str, Any]) -> None:
    answers = list(_provoke(running))
    seen["answers"] = [answer for answer in answers if answer.status >= 400]


@then("there are at least 30 of them, with at least 12 different codes")
def enough_errors(seen: dict[str, Any]) -> None:
    assert len(seen["answers"]) >= 30
    codes = {answer.error["code"] for answer in seen["answers"]}
    assert len(codes) >= 12, codes


def _texts(seen: dict[str, Any]) -> list[str]:
    return [answer.body.decode() for answer in seen["answers"]]


@then("none has a token in it, and a refused token is in no log but by its fingerprint")
def no_tokens(running: Stack, seen: dict[str, Any]) -> None:
    values = [*(running.tokens[name] for name in TOKENS), STRANGE]
    assert [text for text in _texts(seen) if any(value in text for value in values)] == []
    log = daemons.whole_log(running)
    assert not any(value in log for value in values)
    for daemon in DAEMONS:
        daemons.wait_record(running, daemon, "authentication failed", f"identity={fingerprint(STRANGE)}")


@then("none has an absolute path or a home folder in it")
def no_paths(running: Stack, seen: dict[str, Any]) -> None:
    inside = ("/home/", "/root", "/tmp", "/var/", "/etc/", "/usr/", "/run/", str(CHECKOUT), "~")
    for text in _texts(seen):
        found = [part for part in (*inside, str(running.folder), str(running.models)) if part in text]
        assert found == [], text


@then("none has an IP address or the name of this host in it")
def no_addresses(seen: dict[str, Any]) -> None:
    name = socket.gethostname()
    for text in _texts(seen):
        assert not re.search(r"\b\d{1,3}(\.\d{1,3}){3}\b", text), text
        assert "::1" not in text
        assert not re.search(rf"\b{re.escape(name)}\b", text), text


# health


@given("a worker whose health is checked every 0.3 seconds")
def checked_worker(stack: Stack) -> None:
    stack.hive_config = {"health_interval_s": 0.3}
    stack.start()
    stack.run_worker(WORKER, "tiny-tensor")


def _failed_checks(stack: Stack) -> float:
    return stack.hive_admin.metric("rbee_hive_health_checks_total", result="unhealthy")


@when("its process is halted until one health check has failed, and then goes on")
def halt_once(stack: Stack, seen: dict[str, Any]) -> None:
    seen["pid"] = pid = int(stack.row(WORKER)["pid"])
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: _failed_checks(stack) >= 1, 20, 0.02)
    finally:
        os.kill(pid, signal.SIGCONT)
    healthy = stack.hive_admin.metric("rbee_hive_health_checks_total", result="healthy")
    until(lambda: stack.hive_admin.metric("rbee_hive_health_checks_total", result="healthy") > healthy)


@then("it was never unhealthy and still takes requests")
def still_healthy(stack: Stack, seen: dict[str, Any]) -> None:
    assert _failed_checks(stack) in (1, 2)
    assert daemons.records(stack, "hive", "worker unhealthy") == []
    row = stack.row(WORKER)
    assert (row["state"], row["pid"]) == ("idle", seen["pid"])
    assert stack.client.post(INFER, daemons.TENSOR).status == 200


@when("its process is halted for good")
def halt(stack: Stack, seen: dict[str, Any]) -> None:
    seen["failed"] = _failed_checks(stack)
    os.kill(seen["pid"], signal.SIGSTOP)


@then("it is unhealthy after exactly three failed checks, and its hive replaces the process")
def replaced(stack: Stack, seen: dict[str, Any]) -> None:
    daemons.wait_record(stack, "hive", "worker unhealthy", f"worker={WORKER}", limit_s=30)
    assert _failed_checks(stack) == seen["failed"] + 3
    with contextlib.suppress(ProcessLookupError):  # what is halted takes no SIGTERM
        os.kill(seen["pid"], signal.SIGCONT)

    def new_process() -> bool:
        row = stack.row(WORKER)
        return row["state"] == "idle" and row["pid"] != seen["pid"]

    until(new_process, 60)


@then("the worker takes requests again")
def takes_requests(stack: Stack) -> None:
    assert stack.client.post(INFER, daemons.TENSOR).status == 200


# many at once


@when("50 valid and 50 invalid requests for inference come at the same time")
def many_requests(running: Stack, seen: dict[str, Any]) -> None:
    bodies = [daemons.TENSOR, {"inputs": [{"name": "x", "shape": [1, 9], "datatype": "FP32", "data": [0] * 9}]}]
    seen["answers"] = daemons.all_at_once([(running.client, "POST", INFER, body) for _ in range(50) for body in bodies])


@then("each valid one is answered 200 with the right tensor and each invalid one 400")
def right_answers(seen: dict[str, Any]) -> None:
    assert [answer.status for answer in seen["answers"]] == [200, 400] * 50
    for answer in seen["answers"][::2]:
        outputs = {output["name"]: output["data"] for output in answer.json["outputs"]}
        assert outputs == {"y": [2.5, 3.5, 7.0, 8.0], "z": [10]}


@then("queen, hive and worker are the same processes as before")
def same_processes(running: Stack, seen: dict[str, Any]) -> None:
    assert _pids(running) == seen["pids"]


@then("the log of the queen has an ERROR record with a time, the component, the code and the correlation id")
def error_record(running: Stack, seen: dict[str, Any]) -> None:
    error = seen["answer"].error
    line = daemons.wait_record(running, "queen", " ERROR ", f"correlation_id={error['correlation_id']}")
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 ERROR queen: ", line)
    assert f"code={error['code']}" in line
