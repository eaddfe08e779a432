"""Slots, cancelling, deadlines and draining."""

import asyncio
import logging
import time
from collections import Counter

import pytest

from rbee.wire.deadline import after
from rbee.wire.errors import AllSlotsBusy, Conflict, Draining, InferenceCancelled, RequestTimeout
from rbee.wire.log import fields_of
from rbee.worker.requests import MOST_RECORDS, RunningRequests


class Outcomes(Counter[str]):
    def __call__(self, route: str, outcome: str) -> None:
        self[outcome] += 1


def running(slots: int = 2) -> tuple[RunningRequests, Outcomes]:
    outcomes = Outcomes()
    return RunningRequests(slots, outcomes), outcomes


async def hold(requests: RunningRequests, request_id: str, seconds: float = 5.0) -> None:
    async with requests.slot(request_id, "/r"):
        await asyncio.sleep(seconds)


async def test_slots_are_counted_and_refused_when_taken() -> None:
    requests, outcomes = running(1)
    async with requests.slot("a", "/r"):
        assert (requests.busy, requests.idle_s) == (1, 0.0)
        with pytest.raises(AllSlotsBusy) as refused:
            async with requests.slot("b", "/r"):
                pass
        assert refused.value.details == {"slots_total": 1, "slots_busy": 1}
    assert (requests.busy, requests.total, outcomes) == (0, 1, {"ok": 1})


async def test_tokens_are_counted_while_they_are_written_and_after() -> None:
    requests, _ = running()
    async with requests.slot("a", "/r") as first, requests.slot("b", "/r") as second:
        first.tokens, second.tokens = 3, 4
        assert requests.tokens == 7
    assert requests.tokens == 7
    async with requests.slot("c", "/r") as third:
        third.tokens = 1
        assert requests.tokens == 8


async def test_requests_wait_their_turn_and_the_queue_has_an_end() -> None:
    requests = RunningRequests(1, Outcomes(), queue=2)
    order: list[str] = []

    async def run(name: str) -> None:
        async with requests.slot(name, "/r"):
            order.append(name)

    async with requests.slot("first", "/r"):
        waiting = [asyncio.create_task(run(name)) for name in ("second", "third")]
        await asyncio.sleep(0)
        assert (requests.busy, requests.waiting) == (1, 2)
        with pytest.raises(AllSlotsBusy) as refused:
            await run("fourth")
        assert refused.value.details == {"slots_total": 1, "slots_busy": 1, "waiting": 2, "queue": 2}
        assert order == []
    await asyncio.gather(*waiting)
    assert order == ["second", "third"]
    assert (requests.busy, requests.waiting) == (0, 0)


@pytest.mark.parametrize("handed_over", [False, True])
async def test_one_that_waits_may_go_and_its_turn_is_not_lost(handed_over: bool) -> None:
    requests = RunningRequests(1, Outcomes(), queue=2)
    async with requests.slot("first", "/r"):
        gone, kept = (asyncio.create_task(hold(requests, name, 0)) for name in ("gone", "kept"))
        await asyncio.sleep(0)
        if not handed_over:
            assert requests.cancel("gone")
    if handed_over:
        assert requests.cancel("gone")  # the slot is its own, and it has not run yet
    with pytest.raises(InferenceCancelled):
        await gone
    await kept
    assert (requests.busy, requests.waiting) == (0, 0)


async def test_a_deadline_counts_while_a_request_waits() -> None:
    requests = RunningRequests(1, Outcomes(), queue=1)
    async with requests.slot("first", "/r"):
        with pytest.raises(RequestTimeout):
            async with requests.slot("second", "/r", deadline=after(0.05, time.time())):
                pass
        assert requests.waiting == 0


async def test_the_idle_clock_starts_at_ready_and_at_the_end_of_the_last_request() -> None:
    now = [100.0]
    requests = RunningRequests(2, Outcomes(), clock=lambda: now[0])
    now[0] = 200.0
    assert requests.idle_s == 0
    requests.open()
    now[0] = 203.0
    assert requests.idle_s == 3
    async with requests.slot("a", "/r"):
        now[0] = 250.0
        assert requests.idle_s == 0
    now[0] = 251.0
    assert requests.idle_s == 1


async def test_an_id_runs_once() -> None:
    requests, _ = running()
    async with requests.slot("a", "/r"):
        with pytest.raises(Conflict):
            async with requests.slot("a", "/r"):
                pass


async def test_cancel_ends_the_request_with_its_error() -> None:
    requests, outcomes = running()
    task = asyncio.create_task(hold(requests, "a"))
    await asyncio.sleep(0)
    assert requests.cancel("a")
    assert requests.cancel("a")
    with pytest.raises(InferenceCancelled):
        await task
    assert not task.cancelled()
    assert task.cancelling() == 0
    assert not requests.cancel("a")
    assert outcomes == {"cancelled": 1}


async def test_a_client_that_leaves_stays_a_cancellation() -> None:
    requests, outcomes = running()
    task = asyncio.create_task(hold(requests, "a"))
    await asyncio.sleep(0)
    requests.cancel("a")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert requests.busy == 0
    assert sum(outcomes.values()) == 1


async def test_a_deadline_ends_the_request() -> None:
    requests, outcomes = running()
    with pytest.raises(RequestTimeout):
        async with requests.slot("a", "/r", deadline=after(0.05, time.time())):
            await asyncio.sleep(5)
    with pytest.raises(RequestTimeout):
        async with requests.slot("b", "/r", deadline=after(-1, time.time())):
            pass
    assert outcomes == {"request_timeout": 1}
    assert requests.busy == 0


async def test_a_drain_waits_then_cuts() -> None:
    requests, _ = running()
    quick = asyncio.create_task(hold(requests, "quick", 0.05))
    await asyncio.sleep(0)
    assert await requests.drain(2.0) == 0
    await quick
    with pytest.raises(Draining):
        async with requests.slot("late", "/r"):
            pass
    requests.draining = False
    slow = asyncio.create_task(hold(requests, "slow"))
    await asyncio.sleep(0)
    assert await requests.drain(0.05) == 1
    with pytest.raises(InferenceCancelled):
        await slow


async def test_what_ends_well_is_counted_past_a_hundred_a_second_and_what_does_not_is_always_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    now = [10.0]
    requests = RunningRequests(1, Outcomes(), clock=lambda: now[0])

    async def one(request_id: str, failure: Exception | None = None) -> None:
        async with requests.slot(request_id, "/r"):
            if failure is not None:
                raise failure

    for number in range(MOST_RECORDS + 7):
        await one(str(number))
    assert [record.getMessage() for record in caplog.records] == ["request ended"] * MOST_RECORDS
    for number in range(3):
        with pytest.raises(Conflict):
            await one(f"bad-{number}", Conflict("no"))
    assert len(caplog.records) == MOST_RECORDS + 3
    now[0] += 1
    caplog.clear()
    await one("later")
    told = [(record.getMessage(), fields_of(record)) for record in caplog.records]
    assert told[0] == ("requests ended well, and not recorded one by one", {"requests": 7})
    assert told[1][1]["request_id"] == "later"
