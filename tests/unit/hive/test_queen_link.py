"""The session and the heartbeat against a real HTTP server that dies and comes back."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tests.unit.hive.queen import TOKEN, Queen, queen_and_session

from rbee.hive.metrics import HiveMetrics
from rbee.hive.queen_link import QueenLink, reconnect_wait
from rbee.hive.workers import WorkerTable
from rbee.host.paths import Paths
from rbee.wire.messages import MachineFacts
from rbee.wire.tasks import TaskOwner

MACHINE = MachineFacts("node", 2, 1, 1, 1, 1)


class Bench:
    def __init__(self, queen: Queen, link: QueenLink, registry: CollectorRegistry, refusals: list[str]) -> None:
        self.queen, self.link, self.registry, self.refusals = queen, link, registry, refusals

    def beats_of(self, instance_id: str) -> int:
        return 0 if self.link.instance_id != instance_id else len(self.queen.seen)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with queen_and_session() as (queen, session):
        registry = CollectorRegistry()
        metrics = HiveMetrics(registry)
        paths = Paths(tmp_path, tmp_path, tmp_path)
        table = WorkerTable("node", "boot", paths, metrics, lambda *_: None, lambda: None, lambda *_: None)

        async def machine() -> MachineFacts:
            return MACHINE

        refusals: list[str] = []
        link = QueenLink(
            queen.url, session, table, metrics,
            interval_s=30.0, api_url="http://127.0.0.1:9200", machine=machine,
            on_change=lambda: None, after_beat=lambda: None, on_refused=refusals.append,
        )  # fmt: skip
        failures: list[BaseException] = []
        tasks = TaskOwner(failures.append)
        tasks.start(link.keep_session(), "session")
        tasks.start(link.keep_beating(), "beat")
        yield Bench(queen, link, registry, refusals)
        await tasks.close()
        assert not failures


async def test_the_whole_picture_goes_out_at_once(bench: Bench) -> None:
    await bench.queen.until(lambda: "heartbeat" in bench.queen.paths() and bench.queen.sessions == 1)
    _, body, _ = bench.queen.seen[0]
    assert (body["hive_id"], body["boot_id"], body["api_url"]) == ("node", "boot", "http://127.0.0.1:9200")
    assert body["workers"] == []
    await asyncio.sleep(0.05)
    assert bench.link.reachable
    assert bench.link.instance_id == "queen-1"


async def test_a_restarted_queen_is_told_within_a_second(bench: Bench) -> None:
    await bench.queen.until(lambda: bench.queen.sessions == 1)
    await asyncio.sleep(0.1)
    await bench.queen.stop()
    await asyncio.sleep(1.0)
    assert not bench.link.reachable
    bench.queen.instance_id = "queen-2"
    bench.queen.seen.clear()
    began = time.monotonic()
    await bench.queen.start()
    await bench.queen.until(lambda: "heartbeat" in bench.queen.paths())
    assert time.monotonic() - began < 1.0
    await bench.queen.until(lambda: bench.queen.sessions == 2)
    assert bench.registry.get_sample_value("rbee_hive_heartbeats_total", {"status": "failure"})


async def test_a_queen_without_the_session_route_gets_heartbeats(bench: Bench) -> None:
    bench.queen.has_session = False
    await bench.queen.stop()
    await bench.queen.start()
    await bench.queen.until(lambda: bench.queen.paths().count("heartbeat") >= 1)
    await asyncio.sleep(0.05)
    assert bench.link.reachable


async def test_a_refused_token_is_told_once_in_words_and_is_not_tried_again_and_again(bench: Bench) -> None:
    await bench.queen.until(lambda: bench.queen.sessions == 1)
    bench.queen.token = "another"
    await bench.queen.close_sessions()
    await bench.queen.until(lambda: bench.queen.refused["heartbeat"] >= 2)
    await asyncio.sleep(4.0)  # at the pace of a lost queen it would be twenty tries
    assert not bench.link.reachable
    assert bench.queen.refused["heartbeat"] <= 4
    assert bench.queen.refused["session"] <= 1
    (why,) = bench.refusals
    assert "give both the same hive_callback_token" in why
    # this hive's reload: tried at once, and the session is back
    bench.queen.token = TOKEN
    bench.link.token_changed()
    await bench.queen.until(lambda: bench.queen.sessions == 2)
    assert bench.link.reachable
    assert len(bench.refusals) == 1


async def test_a_rotation_that_both_sides_read_within_a_second_is_no_news(bench: Bench) -> None:
    await bench.queen.until(lambda: bool(bench.queen.seen))
    bench.queen.faults = [401]
    bench.link.beat_now()
    await bench.queen.until(lambda: len(bench.queen.seen) >= 3)
    await asyncio.sleep(0.1)
    assert bench.link.reachable
    assert bench.refusals == []


@given(st.floats(0, 1e6), st.floats(0, 1, exclude_max=True))
def test_waits_are_short_at_first_and_never_long(lost_for_s: float, number: float) -> None:
    wait = reconnect_wait(lost_for_s, number)
    assert 0.16 <= wait <= (0.24 if lost_for_s < 10 else 1.2)
