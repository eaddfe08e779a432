"""Steps of features/placement.feature."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee.queen.core import SETTLE_S, SWEEP_S
from tests.behaviour.support.daemons import TENSOR
from tests.behaviour.support.http import Answer, until
from tests.behaviour.support.model_source import ModelSource
from tests.behaviour.support.person import Done, Person
from tests.behaviour.support.two_hives import TwoHives

scenarios("features/placement.feature")

TINY = "hf:org/tiny"
WEIGHTS = "weights/more_data"


@dataclass
class Case:
    """What a scenario's steps hand on."""

    source: ModelSource
    person: Person
    files: dict[str, bytes]
    answers: list[Answer] = field(default_factory=list)
    done: Done | None = None
    asked: int = 0
    lives: dict[str, str] = field(default_factory=dict)
    peak: int = 0

    @property
    def answer(self) -> Answer:
        return self.answers[-1]


@pytest.fixture
def house(models: Path) -> Iterator[TwoHives]:
    made = TwoHives(models)
    yield made
    made.close()


@given("a source of models, and a queen with two hives that declares a model of it", target_fixture="case")
def declared(house: TwoHives, source: ModelSource, models: Path, tmp_path: Path) -> Case:
    tiny = models / "tiny-tensor"
    files = {str(path.relative_to(tiny)): path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    files[WEIGHTS] = os.urandom(400_000)
    source.repository("org/tiny", files)
    house.hive_config["models"] = {"hf_endpoint": source.url, "disk_reserve_mb": 0}
    house.queen_config["models"] = {
        "tiny": {"reference": TINY, "slots": 2},
        "huge": {"reference": f"file://{house.huge}"},
        "labelled": {"reference": TINY, "labels": ["fast-disk"]},
        "on-cuda": {"reference": TINY, "backend": "cuda"},
    }
    house.start()
    sockets = ("--socket", house.run_dir / "queen.sock", "--hive-socket", house.run_dir / "hive.sock")
    return Case(source, Person(tmp_path, *sockets), files)


def _ask(house: TwoHives, model: str) -> Answer:
    return house.client.post(f"/v2/models/{model}/infer", TENSOR)


def _catalogue(house: TwoHives, hive: str) -> list[str]:
    return [row["reference"] for row in house.hives[hive].hive_admin.get("/v1/models").json["models"]]


def _placed(house: TwoHives, model: str) -> dict[str, Any]:
    rows = [row for row in house.rows().values() if row["model"] == model]
    assert len(rows) == 1, rows
    return rows[0]


# given


@given("a worker runs on bee already")
def another_worker(house: TwoHives) -> None:
    house.run_worker("other", "tiny-tensor")


@given("far has the model")
def far_has_it(house: TwoHives, case: Case) -> None:
    accept = {"Accept": "text/event-stream"}
    with house.far.hive_admin.stream("POST", "/v1/models/download", {"reference": TINY}, accept) as stream:
        assert list(stream)[-2].name == "complete"
    case.asked = len(case.source.seen)


@given("far has a folder with a model larger than its memory")
def far_has_huge(house: TwoHives) -> None:
    weights = house.huge / "model.onnx"
    weights.parent.mkdir(parents=True)
    weights.touch()
    os.truncate(weights, 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))  # a hole: it takes no disk
    answer = house.far.hive_admin.post("/v1/models/download", {"reference": f"file://{house.huge}"})
    assert answer.status == 200, answer.body


@given("a worker of the declared model answered and was stopped")
def answered_and_stopped(house: TwoHives, case: Case) -> None:
    assert _ask(house, "tiny").status == 200
    row = _placed(house, "tiny")
    case.peak = row["memory_peak_bytes"]
    assert case.peak >= row["memory_bytes"] > 0
    target = {"worker_id": row["worker_id"], "hive_id": row["hive_id"]}
    assert house.admin.post("/v2/workers/shutdown", target).status == 202
    assert house.wait_state(row["worker_id"], "stopped")["memory_bytes"] == 0


@given("the queen was started anew")
def started_anew(house: TwoHives) -> None:
    assert house.queen is not None
    house.queen.stop()
    house.start_queen()
    until(lambda: house.admin.get("/health").json["hives"] == 2)


@given("a worker of it is defined on far")
def defined(house: TwoHives) -> None:
    house.far.define_worker("whale", str(house.huge))
    house.wait_state("whale", "stopped")


# when


@when("a client asks for the declared model")
def asks(house: TwoHives, case: Case) -> None:
    case.answers.append(_ask(house, "tiny"))


@when("10 clients ask for the declared model at once")
def ten_ask(house: TwoHives, case: Case) -> None:
    with ThreadPoolExecutor(10) as pool:
        case.answers += pool.map(lambda _: _ask(house, "tiny"), range(10))


@when("a person spawns a worker of it without a node")
def spawns(case: Case) -> None:
    case.done = case.person.rbee("worker", "spawn", "mine", "--model", TINY)
    assert case.done.code == 0, case.done


@when(parsers.re(r"a client asks for (the|a) model that is (?P<what>too large|declared for cuda)"))
def asks_in_vain(house: TwoHives, case: Case, what: str) -> None:
    case.answers.append(_ask(house, {"too large": "huge", "declared for cuda": "on-cuda"}[what]))


@when("a client asks for the model of that worker")
def asks_the_defined(house: TwoHives, case: Case) -> None:
    case.answers.append(_ask(house, house.huge.name))


@when("the declaration asks for 2 workers at least")
def kept(house: TwoHives) -> None:
    house.queen_config["models"]["tiny"]["replicas"] = {"min": 2, "max": 2}
    house.write_queen_config()
    assert house.queen is not None
    house.queen.signal(signal.SIGHUP)


@when("a client asks for a model that is declared for the label fast-disk")
def asks_for_label(house: TwoHives, case: Case) -> None:
    case.answers.append(_ask(house, "labelled"))


# then


@then("it is answered by a worker of far, which has the label")
def answered_where_labelled(house: TwoHives, case: Case) -> None:
    assert case.answer.status == 200, case.answer.body
    assert _placed(house, "labelled")["hive_id"] == "far"


@then("it is answered by a worker of far, where fewer run")
def answered_by_far(house: TwoHives, case: Case) -> None:
    assert case.answer.status == 200, case.answer.body
    row = _placed(house, "tiny")
    assert row["hive_id"] == "far"
    assert case.answer.headers["X-Rbee-Worker"] == f"far/{row['worker_id']}"


@then("the model was fetched once, and is in the catalogue of far only")
def fetched_once(house: TwoHives, case: Case) -> None:
    _each_file_once(case)
    assert TINY in _catalogue(house, "far")
    assert TINY not in _catalogue(house, "bee")


@then("every file of the model was fetched once")
def _each_file_once(case: Case) -> None:
    for path in case.files:
        assert len(case.source.requests(path)) == 1, path


@then("rbee why tells where it was placed and what was looked at")
def why(house: TwoHives, case: Case) -> None:
    row = _placed(house, "tiny")
    told = case.person.rbee("why", f"far/{row['worker_id']}")
    assert told.code == 0, told
    assert "placed to spread, for cpu; its model needs memory of an unknown amount" in told.out
    assert "chosen far: " in told.out and "not bee: " in told.out


@then("its need is a tenth above what the worker had when it became ready")
def measured(house: TwoHives, case: Case) -> None:
    assert case.answer.status == 200, case.answer.body
    row = _placed(house, "tiny")
    placement = house.admin.get(f"/v2/explain/{row['hive_id']}/{row['worker_id']}").json["placement"]
    assert (placement["basis"], placement["required_bytes"]) == ("measured", -(-case.peak * 11 // 10))


@then("rbee why tells that it was measured at the last start")
def why_measured(house: TwoHives, case: Case) -> None:
    row = _placed(house, "tiny")
    told = case.person.rbee("why", f"{row['hive_id']}/{row['worker_id']}")
    assert told.code == 0, told
    assert f"needs {case.peak * 1.1 / (1 << 20):.0f} MB, as measured at the last start" in told.out


@then("all are answered by one worker")
def one_worker(house: TwoHives, case: Case) -> None:
    row = _placed(house, "tiny")
    name = f"{row['hive_id']}/{row['worker_id']}"
    assert [(answer.status, answer.headers["X-Rbee-Worker"]) for answer in case.answers] == [(200, name)] * 10


def _ready(house: TwoHives) -> dict[str, str]:
    """The node of each worker of the declared model that is ready, once there are two."""
    rows = [row for row in house.rows().values() if row["model"] == "tiny" and row["state"] == "idle"]
    return {row["invocation_id"]: row["hive_id"] for row in rows} if len(rows) == 2 else {}


@then("one runs on each node, though nobody asked")
def on_each(house: TwoHives, case: Case) -> None:
    case.lives = until(lambda: _ready(house), 60.0)
    assert sorted(case.lives.values()) == ["bee", "far"]


@then("a queen that starts anew leaves it at these")
def new_queen(house: TwoHives, case: Case) -> None:
    assert house.queen is not None
    house.queen.stop()
    queen = house.start_queen()
    assert until(lambda: _ready(house), 30.0) == case.lives
    time.sleep(SETTLE_S + 3 * SWEEP_S)  # what is to be seen is that nothing comes
    assert _ready(house) == case.lives
    assert not [line for line in queen.log if "placing a worker" in line]


@then("the worker runs on far")
def runs_on_far(house: TwoHives) -> None:
    assert house.wait_state("mine", "idle")["hive_id"] == "far"


@then("the source was not asked again")
def not_asked(case: Case) -> None:
    assert len(case.source.seen) == case.asked


@then("the answer is 503 INSUFFICIENT_RAM with required_ram_mb, available_ram_mb and model_ref")
def too_large(house: TwoHives, case: Case) -> None:
    assert (case.answer.status, case.answer.error["code"]) == (503, "INSUFFICIENT_RAM"), case.answer.body
    details = case.answer.error["details"]
    assert details["required_ram_mb"] > 2 * details["available_ram_mb"] > 0
    assert details["model_ref"] == house.huge.name  # where a folder lies is its machine's business


@then("the node is named with its numbers")
def node_named(case: Case) -> None:
    (told,) = case.answer.error["details"]["nodes"]
    assert (told["node"], told["obstacle"]) == ("far", "ram")
    assert told["required_mb"] > told["available_mb"] > 0


@then("the worker of it has never begun to start")
def never_begun(house: TwoHives) -> None:
    assert house.far.hive is not None
    assert not [line for line in house.far.hive.log if "worker.spawn" in line]
    assert house.rows()["whale"]["spawned_unix"] is None


@then("a person who spawns it exits with 1 and reads the numbers and what to do")
def person_reads(house: TwoHives, case: Case) -> None:
    done = case.person.rbee("worker", "spawn", "mine", "--model", f"file://{house.huge}")
    assert done.code == 1
    assert "INSUFFICIENT_RAM" in done.err
    assert "MB of RAM and the best place, far, has" in done.err and "rbee worker stop" in done.err


@then("the answer is 400 BACKEND_UNAVAILABLE that names both nodes")
def no_backend(house: TwoHives, case: Case) -> None:
    assert (case.answer.status, case.answer.error["code"]) == (400, "BACKEND_UNAVAILABLE"), case.answer.body
    assert [told["node"] for told in case.answer.error["details"]["nodes"]] == ["bee", "far"]
    assert "on-cuda" not in {row["model"] for row in house.rows().values()}
