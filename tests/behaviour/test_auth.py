"""Steps of features/auth.feature."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee.wire.auth import fingerprint
from tests.behaviour.support import daemons
from tests.behaviour.support.daemons import ACCEPTED, WORKER, Clock, caller
from tests.behaviour.support.http import Answer, Http
from tests.behaviour.support.processes import DaemonProcess
from tests.behaviour.support.stack import TOKENS, Stack

scenarios("features/auth.feature")

STRANGE = "a-token-that-nobody-knows"
NONE = dict.fromkeys(TOKENS)
TASK = {"model": "tiny-tensor", "prompt": "x"}


@pytest.fixture
def seen() -> dict[str, object]:
    """What a scenario's steps hand on: the answer in hand, the token used."""
    return {}


@pytest.fixture
def own(stack: Stack) -> Iterator[list[DaemonProcess]]:
    """Daemons that a scenario starts by itself; ended with it."""
    started: list[DaemonProcess] = []
    yield started
    for process in started:
        process.stop()


@given("queen, hive and a worker are running", target_fixture="running")
def running(shared_stack: Stack) -> Stack:
    if WORKER not in shared_stack.rows():
        shared_stack.run_worker(WORKER, "tiny-tensor", slots=8)
    return shared_stack


def answer_of(seen: dict[str, object]) -> Answer:
    answer = seen["answer"]
    assert isinstance(answer, Answer)
    return answer


# asking


@when(parsers.parse("{method} {path} is asked of the {daemon} with no Authorization header"))
def without_header(running: Stack, seen: dict[str, object], method: str, path: str, daemon: str) -> None:
    seen["answer"] = caller(running, daemon).call(method, path, {} if method in ("POST", "PUT", "PATCH") else None)


@when(parsers.parse("GET {path} is asked of the {daemon} with a token that nobody knows"))
def with_a_strange_token(running: Stack, seen: dict[str, object], path: str, daemon: str) -> None:
    seen.update(token=STRANGE, answer=caller(running, daemon, STRANGE).get(path))


@when(parsers.parse("{method} {path} is asked of the {daemon} with its own token"))
def with_the_right_token(running: Stack, seen: dict[str, object], method: str, path: str, daemon: str) -> None:
    token = running.tokens[ACCEPTED[daemon]]
    seen.update(
        token=token, answer=caller(running, daemon, token).call(method, path, TASK if method == "POST" else None)
    )


@when(parsers.parse('GET {path} is asked of the queen with the header "{header}"'))
def with_a_header(running: Stack, seen: dict[str, object], path: str, header: str) -> None:
    sent = header.replace("~", " ").replace("{token}", running.tokens["api_token"])
    seen["answer"] = caller(running, "queen").call("GET", path, headers={"Authorization": sent})


# answers


@then(parsers.parse("the answer is {status:d} with the code {code} and the reason {reason}"))
def refused(seen: dict[str, object], status: int, code: str, reason: str) -> None:
    answer = answer_of(seen)
    assert (answer.status, answer.error["code"], answer.error["details"]["reason"]) == (status, code, reason)


@then(parsers.parse("the status is {status:d}"))
def status_is(seen: dict[str, object], status: int) -> None:
    assert answer_of(seen).status == status, answer_of(seen).body


@then(parsers.parse('its message has the word "{word}"'))
def message_has(seen: dict[str, object], word: str) -> None:
    assert word in answer_of(seen).error["message"]


@then("it carries the challenge Bearer")
def challenged(seen: dict[str, object]) -> None:
    assert answer_of(seen).headers["WWW-Authenticate"] == "Bearer"


@then(parsers.parse('the {daemon} logs a {level} "{sentence}" with {field}={value}'))
@then(parsers.parse('the {daemon} logs an {level} "{sentence}" with {field}={value}'))
def logged(
    running: Stack, seen: dict[str, object], daemon: str, level: str, sentence: str, field: str, value: str
) -> None:
    correlation = answer_of(seen).headers["X-Correlation-Id"]
    daemons.wait_record(running, daemon, f" {level} ", sentence, f"{field}={value}", correlation)


@then(parsers.parse('the {daemon} logs a {level} "{sentence}" with the fingerprint of that token'))
@then(parsers.parse('the {daemon} logs an {level} "{sentence}" with the fingerprint of that token'))
def logged_fingerprint(running: Stack, seen: dict[str, object], daemon: str, level: str, sentence: str) -> None:
    expected = f"identity={fingerprint(str(seen['token']))}"
    assert len(expected) == len("identity=token:") + 6
    daemons.wait_record(running, daemon, f" {level} ", sentence, expected)


@then("neither that token nor any token of ours is in the answer or in a log")
def nothing_leaks(running: Stack, seen: dict[str, object]) -> None:
    text = daemons.whole_log(running)
    answer = seen.get("answer")
    if isinstance(answer, Answer):
        text += answer.body.decode() + str(answer.headers)
    for token in {*running.tokens.values(), str(seen.get("token", STRANGE))}:
        assert token not in text


# time


@when("100 requests with the right token and 100 with a wrong one take turns, five times over")
def measure_both(running: Stack, seen: dict[str, object]) -> None:
    right = running.tokens["api_token"]
    wrong = right[:-1] + ("A" if right[-1] != "A" else "B")
    clocks = [Clock(running.queen_url, "/v1/models", f"Bearer {token}") for token in (right, wrong)]
    seen["times"] = daemons.interleaved([(clocks[0], 200), (clocks[1], 401)], 5, 100)
    for clock in clocks:
        clock.close()


@then("the typical times of the two are less than 10 % apart")
def times_are_alike(seen: dict[str, object]) -> None:
    times = seen["times"]
    assert isinstance(times, list)
    assert daemons.typical_difference(*times) < 0.10


@when("1000 requests with a token and 1000 to the queen without tokens take turns")
def measure_overhead(running: Stack, stack: Stack, seen: dict[str, object]) -> None:
    guarded = Clock(running.queen_url, "/v2/workers/list", f"Bearer {running.tokens['api_token']}")
    free = Clock(stack.queen_url, "/v2/workers/list", None)
    seen["times"] = daemons.interleaved([(guarded, 200), (free, 200)], 10, 100)
    guarded.close()
    free.close()


@then("authentication took less than 1 ms on average and less than 5 ms at the 99th percentile")
def overhead_is_small(seen: dict[str, object]) -> None:
    guarded, free = seen["times"]  # type: ignore[misc]
    average = statistics.median(statistics.fmean(a) - statistics.fmean(b) for a, b in zip(guarded, free, strict=True))
    high = statistics.median(sorted(a)[98] - sorted(b)[98] for a, b in zip(guarded, free, strict=True))
    assert average < 0.001
    assert high < 0.005


# daemons with other tokens


@given(parsers.parse("a {daemon} on loopback with no token configured"))
def without_tokens(stack: Stack, seen: dict[str, object], own: list[DaemonProcess], daemon: str) -> None:
    process = _tokenless(stack, daemon)
    own.append(process)
    process.wait_ready()
    seen["process"] = process


def _tokenless(stack: Stack, daemon: str, host: str = "127.0.0.1") -> DaemonProcess:
    stack.queen_config = {"tokens": NONE, "listen": {"host": host}}
    hive_tokens = {name: None for name in TOKENS if name != "api_token"}
    stack.hive_config = {"tokens": hive_tokens, "queen": {"callback_url": None}, "listen": {"host": host}}
    stack.worker_config = {"tokens": {"worker_api_token": None}}
    stack.define_worker(WORKER, "tiny-tensor", listen_host=host)
    return daemons.start_alone(stack, daemon)


def _address(stack: Stack, daemon: str) -> str:
    if daemon == "worker":
        facts = json.loads((stack.run_dir / "workers" / WORKER / "worker.json").read_text())
        return str(facts["url"])
    return stack.queen_url if daemon == "queen" else stack.hive_url


@then(parsers.parse("GET {path} without a token is answered 200"))
def answered_without_token(stack: Stack, seen: dict[str, object], path: str) -> None:
    process = seen["process"]
    assert isinstance(process, DaemonProcess)
    daemon = next(name for name in daemons.DAEMONS if f" {name}: " in process.text)
    answer = Http(_address(stack, daemon)).get(path)
    assert answer.status == 200, answer.body


@then("its log has a WARNING that says development mode")
def says_development_mode(seen: dict[str, object]) -> None:
    process = seen["process"]
    assert isinstance(process, DaemonProcess)
    process.wait_log(lambda line: " WARNING " in line and "development mode" in line)


@given(parsers.parse("a {daemon} that shall listen on 0.0.0.0 with no token configured"))
def public_without_token(stack: Stack, seen: dict[str, object], own: list[DaemonProcess], daemon: str) -> None:
    seen["process"] = _tokenless(stack, daemon, "0.0.0.0")
    own.append(seen["process"])


@then("it ends with exit code 78 and says what to do")
def refused_to_start(seen: dict[str, object]) -> None:
    process = seen["process"]
    assert isinstance(process, DaemonProcess)
    assert process.wait_end() == 78
    line = process.wait_log("event=startup_failed")
    assert "a public address without a token" in line
    assert "configure its token" in line


@then("it never said that it was ready")
def never_ready(seen: dict[str, object]) -> None:
    process = seen["process"]
    assert isinstance(process, DaemonProcess)
    with pytest.raises(AssertionError, match="ended with 78"):
        process.wait_ready(5)


@given("a queen that listens on 0.0.0.0 with its token")
def public_queen(stack: Stack) -> None:
    stack.queen_config = {"listen": {"host": "0.0.0.0"}}
    stack.start_queen()


@when("the token is taken out of its configuration and it is told to reload")
def take_token_away(stack: Stack) -> None:
    assert stack.queen is not None
    stack.write_queen_config({"tokens": NONE})
    stack.queen.signal(signal.SIGHUP)


@then("the log says that the reload is refused")
def reload_refused(stack: Stack) -> None:
    assert stack.queen is not None
    stack.queen.wait_log(lambda line: "reload refused" in line and "a public address without a token" in line)


@then("a caller without a token is still answered 401")
def still_closed(stack: Stack) -> None:
    assert Http(stack.queen_url).get("/v2/workers/list").status == 401


@given(parsers.parse("a queen whose token is {token}"))
def queen_with_token(stack: Stack, seen: dict[str, object], token: str) -> None:
    stack.write_token("api_token", token)
    stack.start_queen()
    seen["token"] = token


@then("GET /v2/workers/list with that token is answered 200")
def punctuation_works(stack: Stack, seen: dict[str, object]) -> None:
    assert Http(stack.queen_url, str(seen["token"])).get("/v2/workers/list").status == 200


@then("GET /v2/workers/list with that token but its last character is answered 401")
def nearly_right(stack: Stack, seen: dict[str, object]) -> None:
    assert Http(stack.queen_url, str(seen["token"])[:-1]).get("/v2/workers/list").status == 401


# routes


def _routes(datatable: list[list[str]]) -> list[tuple[str, str, str]]:
    return [(daemon, *route.split(" ", 1)) for daemon, route in datatable[1:]]  # type: ignore[misc]


@then("these routes are open to anybody:")
def open_routes(running: Stack, datatable: list[list[str]]) -> None:
    answers = {route: caller(running, route[0]).call(*route[1:]).status for route in _routes(datatable)}
    assert set(answers.values()) == {200}, answers


@then("these routes answer 401 without a token:")
def closed_routes(running: Stack, datatable: list[list[str]]) -> None:
    urls = {daemon: Http(daemons.url_of(running, daemon)) for daemon in daemons.DAEMONS}
    answers = {route: urls[route[0]].call(*route[1:]).status for route in _routes(datatable)}
    assert {route: status for route, status in answers.items() if status != 401} == {}


@then("the worker still runs")
def worker_runs(running: Stack) -> None:
    assert running.row(WORKER)["state"] in ("idle", "busy")


# many at once


@when("50 callers with the right token and 50 with wrong ones ask the queen at the same time")
def many_callers(running: Stack, seen: dict[str, object]) -> None:
    right, wrong = caller(running, "queen", running.tokens["api_token"]), caller(running, "queen", STRANGE)
    began = time.monotonic()
    seen["answers"] = daemons.all_at_once(
        [(one, "GET", "/v2/workers/list", None) for _ in range(50) for one in (right, wrong)]
    )
    seen["took"] = time.monotonic() - began


@then("each right one is answered 200 and each wrong one 401")
def each_answer_fits(seen: dict[str, object]) -> None:
    answers = seen["answers"]
    assert isinstance(answers, list)
    assert [answer.status for answer in answers] == [200, 401] * 50


@then("all of it took less than 5 seconds")
def quick_enough(seen: dict[str, object]) -> None:
    assert float(str(seen["took"])) < 5.0


# shape


@when(parsers.parse("{path} is asked of the {daemon} with each wrong header and with Accept {accept}"))
def ask_every_way(running: Stack, seen: dict[str, object], path: str, daemon: str, accept: str) -> None:
    headers = (None, "Basic x", "Bearer", f"Bearer {STRANGE}", "bearer x")
    sent = [{"Accept": accept} if header is None else {"Accept": accept, "Authorization": header} for header in headers]
    seen["answers"] = [caller(running, daemon).call("GET", path, headers=one) for one in sent]


@then('every answer is 401 and JSON with a code and a message under "error"')
def every_refusal_has_the_shape(seen: dict[str, object]) -> None:
    answers = seen["answers"]
    assert isinstance(answers, list)
    for answer in answers:
        assert answer.status == 401
        assert answer.headers.get_content_type() == "application/json"
        assert answer.error["code"] in ("MISSING_API_KEY", "INVALID_API_KEY")
        assert answer.error["message"]


# hops


@when("a client starts a worker and runs inference on it through the queen")
def the_whole_chain(running: Stack) -> None:
    running.define_worker("other", "tiny-tensor")
    started = running.client.post("/v2/workers/spawn", {"worker_id": "other"})
    assert started.status == 202, started.body
    running.wait_state("other", "idle")
    answer = running.client.post("/v2/models/tiny-tensor/infer", daemons.TENSOR)
    assert answer.status == 200, answer.body
    running.hive_admin.call("DELETE", "/v1/workers/other")
    running.wait_state("other", "stopped")


@then(parsers.parse("the {daemon} knows the {who} by the fingerprint of {name}"))
def known_by(running: Stack, daemon: str, who: str, name: str) -> None:
    daemons.wait_record(running, daemon, " INFO ", "authenticated", f"identity={fingerprint(running.tokens[name])}")


@then("the four fingerprints differ")
def fingerprints_differ(running: Stack) -> None:
    assert len({fingerprint(token) for token in running.tokens.values()}) == 4


@when('a person without rights on the sockets runs "rbee worker list" with the queen\'s URL and token file')
def run_rbee(running: Stack, seen: dict[str, object], tmp_path: Path) -> None:
    config = tmp_path / "rbee.yaml"
    config.write_text(f"queen_url: {running.queen_url}\ntoken_file: {running.token_file('api_token')}\n")
    done = subprocess.run(
        [sys.executable, "-m", "rbee.keeper.main", "worker", "list"],
        env={**os.environ, "RBEE_CONFIG": str(config), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    seen.update(done=done, token=running.tokens["api_token"])


@then("the command exits 0 and lists the worker")
def listed(seen: dict[str, object]) -> None:
    done = seen["done"]
    assert isinstance(done, subprocess.CompletedProcess)
    assert done.returncode == 0, done.stderr
    assert WORKER in done.stdout
