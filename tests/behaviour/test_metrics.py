"""Steps of features/metrics.feature."""

import os
import re
import signal
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families
from pytest_bdd import given, parsers, scenarios, then, when

from tests.behaviour.support import daemons
from tests.behaviour.support.daemons import WORKER, caller
from tests.behaviour.support.http import Http, until
from tests.behaviour.support.stack import Stack

scenarios("features/metrics.feature")

NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
INFER = "/v2/models/tiny-tensor/infer"
ROUTE = "/v2/models/{model}/infer"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@pytest.fixture
def seen() -> dict[str, Any]:
    """What a scenario's steps hand on."""
    return {}


@pytest.fixture(scope="module")
def quiet_stack(models: Any) -> Iterator[Stack]:  # noqa: ANN401
    """Queen, hive and a worker whose health is checked often and whose heartbeat is rare."""
    made = Stack(models)
    made.hive_config = {"heartbeat_interval_s": 3600, "health_interval_s": 0.5}
    try:
        made.start()
        made.run_worker(WORKER, "tiny-tensor", slots=8)
        made.client.post(INFER, daemons.TENSOR)
        yield made
    finally:
        made.close()


@given("queen, hive and a worker are running", target_fixture="running")
def running(quiet_stack: Stack) -> Stack:
    return quiet_stack


def _http(stack: Stack, daemon: str) -> Http:
    return caller(stack, daemon)


def _samples(stack: Stack, daemon: str) -> Samples:
    text = _http(stack, daemon).get("/metrics").body.decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def _value(samples: Samples, name: str, **labels: str) -> float:
    """The sum of the samples of a name that have these labels."""
    return sum(value for (found, has), value in samples.items() if found == name and has >= set(labels.items()))


# form


@when(parsers.parse("/metrics of the {daemon} is read without a token"))
def read_metrics(running: Stack, seen: dict[str, Any], daemon: str) -> None:
    seen["answer"] = _http(running, daemon).get("/metrics")


@then("the status is 200 and the content type is Prometheus text")
def prometheus_text(seen: dict[str, Any]) -> None:
    assert seen["answer"].status == 200
    assert seen["answer"].headers["Content-Type"].startswith("text/plain; version=")


@then("every sample belongs to a family with HELP and TYPE, and every name is legal")
def legal(seen: dict[str, Any]) -> None:
    text = seen["answer"].body.decode()
    families = list(text_string_to_metric_families(text))
    assert len(families) > 5
    for family in families:
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram", "summary"), family
        assert f"# TYPE {family.name}" in text
        for sample in family.samples:
            assert NAME.fullmatch(sample.name)
            assert sample.name.startswith(family.name.removesuffix("_total"))
            assert all(LABEL.fullmatch(label) for label in sample.labels)


# the hive


@when("a second worker is started and stopped")
def second_worker(running: Stack) -> None:
    running.run_worker("second", "tiny-tensor")
    running.hive_admin.call("DELETE", "/v1/workers/second")
    running.wait_state("second", "stopped")


@then("rbee_hive_workers has one worker idle and one stopped")
def counted_by_state(running: Stack) -> None:
    samples = _samples(running, "hive")
    assert _value(samples, "rbee_hive_workers", state="idle") == 1
    assert _value(samples, "rbee_hive_workers", state="stopped") == 1


@then("every state that a worker can report has a sample")
def every_state(running: Stack) -> None:
    states = {dict(labels)["state"] for name, labels in _samples(running, "hive") if name == "rbee_hive_workers"}
    assert states == {"loading", "idle", "busy", "draining", "stopped", "failed", "unhealthy"}


@then("rbee_hive_health_checks_total grows for result healthy")
def checks_counted(running: Stack) -> None:
    before = running.hive_admin.metric("rbee_hive_health_checks_total", result="healthy")
    until(lambda: running.hive_admin.metric("rbee_hive_health_checks_total", result="healthy") >= before + 2)


@then("it has a sample for result unhealthy")
def unhealthy_sample(running: Stack) -> None:
    assert ("rbee_hive_health_checks_total", frozenset({("result", "unhealthy")})) in _samples(running, "hive")


def _kill(stack: Stack, worker: str) -> int:
    pid = int(stack.row(worker)["pid"])
    os.kill(pid, signal.SIGKILL)
    return pid


@when("the process of a second worker is killed")
def kill_second(running: Stack, seen: dict[str, Any]) -> None:
    running.run_worker("victim", "tiny-tensor", name="crash-dummy")
    seen["before"] = running.hive_admin.metric("rbee_hive_worker_crashes_total", model="crash-dummy")
    seen["pid"] = _kill(running, "victim")


@then("rbee_hive_worker_crashes_total of its model grows by exactly 1")
def crash_counted(running: Stack, seen: dict[str, Any]) -> None:
    until(lambda: running.hive_admin.metric("rbee_hive_worker_crashes_total", model="crash-dummy") > seen["before"])
    running.hive_admin.call("DELETE", "/v1/workers/victim")
    running.wait_state("victim", "stopped", "failed")
    assert running.hive_admin.metric("rbee_hive_worker_crashes_total", model="crash-dummy") == seen["before"] + 1


@then("the hive's record of it has its result and its signal")
def crash_recorded(running: Stack, seen: dict[str, Any]) -> None:
    daemons.wait_record(running, "hive", "worker=victim", "result=signal", "exit_signal=9", f"pid={seen['pid']}")


# the queen


@given("the queen's counters of requests are noted")
def note(running: Stack, seen: dict[str, Any]) -> None:
    seen.update(queen=_samples(running, "queen"), worker=_samples(running, "worker"))


@when("7 requests succeed and 5 are refused as invalid and 3 name a model that nobody has")
def fifteen_requests(running: Stack, seen: dict[str, Any]) -> None:
    statuses = [running.client.post(INFER, daemons.TENSOR).status for _ in range(7)]
    invalid = [running.client.post(INFER, {"inputs": []}) for _ in range(5)]
    unknown = [running.client.post("/v2/models/nobody-has-it/infer", daemons.TENSOR).status for _ in range(3)]
    assert statuses == [200] * 7
    assert [answer.status for answer in invalid] == [400] * 5
    assert unknown == [404] * 3
    seen["code"] = invalid[0].error["code"]


def _grew(running: Stack, seen: dict[str, Any], daemon: str, name: str, **labels: str) -> float:
    return _value(_samples(running, daemon), name, **labels) - _value(seen[daemon], name, **labels)


@then("queen_rbee_requests_total grew by exactly 15")
def requests_counted(running: Stack, seen: dict[str, Any]) -> None:
    assert _grew(running, seen, "queen", "queen_rbee_requests_total") == 15


@then("queen_rbee_request_duration_seconds counted exactly 7 with outcome ok and 8 with outcome error for that route")
def durations_counted(running: Stack, seen: dict[str, Any]) -> None:
    name = "queen_rbee_request_duration_seconds_count"
    assert _grew(running, seen, "queen", name, route=ROUTE, outcome="ok") == 7
    assert _grew(running, seen, "queen", name, route=ROUTE, outcome="error") == 8


@then("its sum grew by a plausible time")
def durations_sum(running: Stack, seen: dict[str, Any]) -> None:
    assert 0 < _grew(running, seen, "queen", "queen_rbee_request_duration_seconds_sum", route=ROUTE) < 60


@then("queen_rbee_errors_total grew by exactly 5 with the worker's code and 3 with MODEL_NOT_FOUND")
def errors_counted(running: Stack, seen: dict[str, Any]) -> None:
    assert _grew(running, seen, "queen", "queen_rbee_errors_total", code=seen["code"]) == 5
    assert _grew(running, seen, "queen", "queen_rbee_errors_total", code="MODEL_NOT_FOUND") == 3


@then("the HTTP counters of the queen and of the worker fit these figures exactly")
def http_counted(running: Stack, seen: dict[str, Any]) -> None:
    for status, count in (("200", 7), ("400", 5), ("404", 3)):
        name = "queen_rbee_http_requests_total"
        assert _grew(running, seen, "queen", name, method="POST", status=status) == count
    for status, count in (("200", 7), ("400", 5)):
        name = "rbee_worker_http_requests_total"
        assert _grew(running, seen, "worker", name, method="POST", status=status) == count


# scraping


@when(parsers.parse("/metrics of the {daemon} is read three times in a row while nothing else asks"))
def scrape(running: Stack, seen: dict[str, Any], daemon: str) -> None:
    seen["scrapes"] = [_samples(running, daemon) for _ in range(3)]


@then("only the counters of the route /metrics itself changed")
def only_its_own(seen: dict[str, Any]) -> None:
    first, *_, last = seen["scrapes"]
    changed = {key: (first.get(key), value) for key, value in last.items() if first.get(key) != value}
    strange = {
        (name, labels): values
        for (name, labels), values in changed.items()
        # what goes on by itself: the process's own use of the machine, and the hive's checks of its workers
        if ("route", "/metrics") not in labels
        and ("route", "/health") not in labels
        and not name.startswith(("process_", "rbee_hive_health_checks"))
    }
    assert strange == {}
    own = [values for (name, labels), values in changed.items() if name.endswith("_http_requests_total")
           and ("route", "/metrics") in labels]  # fmt: skip
    assert [(new or 0) - (old or 0) for old, new in own] == [2]


# correlation ids


@when("requests with correlation ids of their own succeed and fail")
def correlated(running: Stack, seen: dict[str, Any]) -> None:
    ids = [str(uuid.uuid4()) for _ in range(6)]
    seen["ids"] = ids
    bodies = [daemons.TENSOR, {"inputs": []}] * 3
    seen["answers"] = [
        running.client.call("POST", INFER, body, {"X-Correlation-Id": one})
        for one, body in zip(ids, bodies, strict=True)
    ]


@then("none of the ids is in the metrics of queen, hive or worker")
def ids_no_labels(running: Stack, seen: dict[str, Any]) -> None:
    for daemon in daemons.DAEMONS:
        text = _http(running, daemon).get("/metrics").body.decode()
        assert not any(one in text for one in seen["ids"])
        assert "correlation" not in text


@then("each of the ids is in the log of the queen and in its answer")
def ids_in_logs(running: Stack, seen: dict[str, Any]) -> None:
    for one, answer in zip(seen["ids"], seen["answers"], strict=True):
        assert answer.headers["X-Correlation-Id"] == one
        if answer.status != 200:
            assert answer.error["correlation_id"] == one
        daemons.wait_record(running, "queen", f"correlation_id={one}")


@then("the event stream of a request names its correlation id")
def ids_in_events(running: Stack) -> None:
    one = str(uuid.uuid4())
    body = {"model": "tiny-tensor", "prompt": "a model of tensors cannot answer this"}
    headers = {"X-Correlation-Id": one, "Accept": "text/event-stream"}
    with running.client.stream("POST", "/v2/tasks", body, headers) as stream:
        events = [event for event in stream if event.name is not None]
    assert events
    assert one in b"".join(event.data for event in events).decode()


@then("a scraper that asks the queen or the worker for OpenMetrics finds one as exemplar")
def exemplars(running: Stack, seen: dict[str, Any]) -> None:
    for daemon in ("queen", "worker"):
        answer = _http(running, daemon).call("GET", "/metrics", headers={"Accept": "application/openmetrics-text"})
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        found = {
            sample.exemplar.labels["correlation_id"]
            for family in openmetrics_families(answer.body.decode())
            for sample in family.samples
            if sample.exemplar
        }
        assert found & set(seen["ids"])


# secrets


@when("a client puts its token into the path, the query, the model's name and the correlation id")
def token_everywhere(running: Stack, seen: dict[str, Any]) -> None:
    seen["token"] = token = running.tokens["api_token"]
    client = running.client
    client.get(f"/{token}")
    client.get(f"/v2/workers/list?model={token}")
    client.get(f"/v2/tasks/{token}")
    client.call("DELETE", f"/v1/inference/{token}")
    client.post(f"/v2/models/{token}/infer", daemons.TENSOR)
    client.post("/v1/chat/completions", {"model": token, "messages": []})
    client.call("GET", "/v1/models", headers={"X-Correlation-Id": token, "User-Agent": token, "X-Request-Id": token})


@when("a worker that is named like hive_api_token, and its model too, is started and killed")
def redacted_name(running: Stack, seen: dict[str, Any]) -> None:
    seen["token"] = token = running.tokens["hive_api_token"] = f"mistake-{uuid.uuid4()}"
    running.write_token("hive_api_token", token)
    assert running.hive is not None
    before = len(running.hive.log)
    running.hive.signal(signal.SIGHUP)
    running.hive.wait_log("hive: reloaded", start=before)
    running.run_worker(token, "tiny-tensor", name=token)
    _kill(running, token)


@then('rbee_hive_worker_crashes_total has the label model="[REDACTED]"')
def redacted_label(running: Stack, seen: dict[str, Any]) -> None:
    until(lambda: running.hive_admin.metric("rbee_hive_worker_crashes_total", model="[REDACTED]") == 1)
    running.hive_admin.call("DELETE", f"/v1/workers/{seen['token']}")
    running.wait_state(seen["token"], "stopped", "failed")


@then(parsers.parse("the {daemon} writes the token into no metric and no record"))
def token_nowhere(running: Stack, seen: dict[str, Any], daemon: str) -> None:
    assert seen["token"] not in _http(running, daemon).get("/metrics").body.decode()
    assert daemons.records(running, daemon)
    assert daemons.records(running, daemon, seen["token"]) == []


@then("the hive's log says [REDACTED] in its place")
def redacted_record(running: Stack) -> None:
    daemons.wait_record(running, "hive", "worker failed", "worker=[REDACTED]")
