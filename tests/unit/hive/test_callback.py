"""Callbacks against a real HTTP server that fails, hangs, refuses, vanishes and comes back."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator

import aiohttp
import msgspec
import pytest
from prometheus_client import CollectorRegistry
from tests.unit.hive.queen import TOKEN, Queen, queen_and_session

from rbee.hive.callback import Callbacks, CallbackSettings, Owed, owing
from rbee.hive.metrics import HiveMetrics
from rbee.hive.workers import Change
from rbee.wire.log import ALERT, fields_of
from rbee.wire.messages import WorkerReport, WorkerState
from rbee.wire.tasks import TaskOwner

QUICK = CallbackSettings(timeout_s=0.3, first_wait_s=0.05)
IDLE, LOADING, FAILED = WorkerState.IDLE, WorkerState.LOADING, WorkerState.FAILED


def report(
    revision: int, state: WorkerState = IDLE, life: str = "a", worker: str = "w", text: str = ""
) -> WorkerReport:
    return WorkerReport(
        worker_id=worker,
        hive_id="h",
        boot_id="b",
        revision=revision,
        state=state,
        url="http://127.0.0.1:8081",
        invocation_id=life,
        status_text=text,
    )


class Bench:
    def __init__(self, queen: Queen, session: aiohttp.ClientSession) -> None:
        self.queen = queen
        self.failures: list[BaseException] = []
        self.tasks = TaskOwner(self.failures.append)
        self.registry = CollectorRegistry()
        self.news = asyncio.Event()
        self.callbacks = Callbacks(queen.url, session, self.tasks, HiveMetrics(self.registry), self.news.set, QUICK)

    def value(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def ready(self, status: str) -> float:
        return self.value("rbee_hive_worker_ready_callbacks_total", status=status)

    async def settled(self) -> None:
        await self.callbacks.flush(10.0)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with queen_and_session() as (queen, session):
        bench = Bench(queen, session)
        yield bench
        bench.callbacks.close()
        await bench.tasks.close()
        assert not bench.failures


async def test_a_ready_worker_is_told_at_once_with_the_token(bench: Bench) -> None:
    bench.callbacks.owe(report(1), Change.READY)
    await bench.settled()
    ((path, body, authorization),) = bench.queen.seen
    assert path == "/v2/workers/ready"
    assert (body["worker_id"], body["revision"], body["state"]) == ("w", 1, "idle")
    assert body["sent_unix"] > 0
    assert authorization == f"Bearer {TOKEN}"
    assert bench.ready("success") == 1
    assert bench.value("rbee_hive_callback_seconds_count") == 1
    assert bench.callbacks.waiting == 0


@pytest.mark.parametrize("fault", [500, 401, 403, "hang"])
async def test_a_failure_is_tried_again(bench: Bench, fault: int | str, caplog: pytest.LogCaptureFixture) -> None:
    bench.queen.faults = [fault, fault]
    bench.callbacks.owe(report(1), Change.READY)
    await bench.settled()
    assert bench.queen.paths() == ["ready"] * 3
    assert (bench.ready("failure"), bench.ready("success")) == (2, 1)
    assert not bench.callbacks.degraded
    warnings = [record for record in caplog.records if record.getMessage() == "callback failed"]
    assert [fields_of(record)["attempt"] for record in warnings] == [1, 2]
    assert TOKEN not in caplog.text


async def test_waits_grow_between_tries(bench: Bench) -> None:
    bench.queen.faults = [500] * 3
    bench.callbacks.owe(report(1), Change.READY)
    await bench.settled()
    first, second, third = (b - a for a, b in zip(bench.queen.times, bench.queen.times[1:], strict=False))
    assert 0.03 < first < second < third


async def test_when_all_tries_failed_there_is_one_alert_and_delivery_goes_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.queen.faults = [503] * 5
    bench.callbacks.owe(report(1), Change.READY)
    await bench.settled()
    assert bench.queen.paths() == ["ready"] * 4
    assert bench.callbacks.degraded
    assert bench.value("rbee_hive_callback_degraded") == 1
    bench.callbacks.retry()  # the heartbeat's pace: one try each
    await bench.settled()
    assert len(bench.queen.seen) == 5
    alerts = [record for record in caplog.records if record.levelno == ALERT]
    assert len(alerts) == 1
    assert fields_of(alerts[0])["alert"] == 1
    bench.callbacks.retry()
    await bench.settled()
    assert not bench.callbacks.degraded
    assert bench.value("rbee_hive_callback_degraded") == 0
    assert (bench.callbacks.waiting, bench.ready("success")) == (0, 1)


async def test_a_queen_that_is_gone_never_blocks_and_gets_the_latest(bench: Bench) -> None:
    await bench.queen.stop()
    bench.callbacks.owe(report(1, LOADING), Change.STATE)
    bench.callbacks.owe(report(2), Change.READY)
    bench.callbacks.owe(report(3, FAILED), Change.STATE)
    assert bench.callbacks.waiting == 1
    await bench.settled()
    assert bench.callbacks.degraded
    await bench.queen.start()
    bench.callbacks.retry()
    await bench.settled()
    ((path, body, _),) = bench.queen.seen
    assert (path, body["revision"], body["state"]) == ("/v2/workers/state", 3, "failed")


async def test_a_refused_token_says_what_to_do(bench: Bench) -> None:
    bench.queen.token = "another"
    bench.callbacks.owe(report(1), Change.READY)
    await bench.settled()
    assert "give both the same hive_callback_token" in bench.callbacks.degraded_why
    assert "systemctl reload rbee-queen" in bench.callbacks.degraded_why


async def test_while_the_token_is_refused_nothing_is_tried_and_then_everything_is_told(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.queen.token = "another"
    bench.callbacks.owe(report(1), Change.READY)
    await bench.settled()
    assert bench.queen.refused == {"ready": 4}
    bench.callbacks.refuse("the heartbeat is refused too")
    for revision in range(2, 10):
        bench.callbacks.owe(report(revision), Change.STATE)
        bench.callbacks.owe(report(revision, worker=f"w{revision}"), Change.READY)
    await bench.settled()
    assert bench.queen.refused == {"ready": 4}
    assert (bench.callbacks.degraded, bench.callbacks.waiting) == (True, 9)
    assert len([record for record in caplog.records if record.levelno == ALERT]) == 1
    bench.queen.token = TOKEN
    bench.callbacks.retry()  # a heartbeat was taken
    await bench.settled()
    assert (bench.callbacks.degraded, bench.callbacks.waiting) == (False, 0)
    assert bench.queen.refused == {"ready": 4}


async def test_a_refusal_of_the_heartbeat_alone_is_degraded_until_one_is_taken(bench: Bench) -> None:
    bench.callbacks.refuse("the queen refuses this hive's token")
    assert bench.value("rbee_hive_callback_degraded") == 1
    assert bench.news.is_set()
    bench.callbacks.retry()
    assert bench.value("rbee_hive_callback_degraded") == 0
    assert not bench.callbacks.degraded


async def test_readiness_that_failed_is_still_told_as_readiness(bench: Bench) -> None:
    bench.queen.faults = [500] * 4
    bench.callbacks.owe(report(1), Change.READY)
    await bench.settled()
    bench.callbacks.owe(report(2, text="other"), Change.DETAIL)
    bench.callbacks.retry()
    await bench.settled()
    path, body, _ = bench.queen.seen[-1]
    assert (path, body["revision"]) == ("/v2/workers/ready", 2)
    assert bench.ready("success") == 1


async def test_a_life_is_told_ready_once_while_newer_reports_come(bench: Bench) -> None:
    bench.callbacks.owe(report(1), Change.READY)
    await bench.queen.until(lambda: len(bench.queen.seen) == 1)
    bench.callbacks.owe(report(2, WorkerState.DRAINING), Change.STATE)
    await bench.settled()
    assert bench.queen.paths() == ["ready", "state"]


async def test_progress_is_told_at_most_once_a_second(bench: Bench) -> None:
    began = time.monotonic()
    for number in range(40):
        bench.callbacks.owe(report(number, LOADING, text=f"{number}/40"), Change.DETAIL)
        await asyncio.sleep(0.03)
    await bench.queen.until(lambda: bench.queen.seen[-1][1]["status_text"] == "39/40")
    assert 2 <= len(bench.queen.seen) <= time.monotonic() - began + 1
    assert set(bench.queen.paths()) == {"state"}


async def test_many_workers_at_once_are_all_told(bench: Bench) -> None:
    for number in range(60):
        bench.callbacks.owe(report(number, worker=f"w{number}"), Change.READY)
    await bench.queen.until(lambda: len(bench.queen.seen) == 60)
    await bench.settled()
    assert {body["worker_id"] for _, body, _ in bench.queen.seen} == {f"w{number}" for number in range(60)}
    assert (bench.ready("success"), bench.callbacks.waiting) == (60, 0)


def test_what_is_owed_stays_ready_for_its_own_life_only() -> None:
    ready = Owed(report(1), ready=True)
    assert owing(None, report(1), ready=True) == ready
    assert owing(ready, report(2), ready=False).ready
    assert not owing(ready, report(2, FAILED), ready=False).ready
    assert not owing(ready, report(2, life="b"), ready=False).ready
    assert owing(ready, report(3, life="b"), ready=True).report.revision == 3


def test_a_report_survives_the_wire() -> None:
    sent = report(7)
    assert msgspec.json.decode(msgspec.json.encode(sent), type=WorkerReport) == sent
