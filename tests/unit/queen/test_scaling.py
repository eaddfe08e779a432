"""How many workers of a declared model are started: the decision on its own, and by a queen."""

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.queen.conftest import Configured, RunningQueen
from tests.unit.queen.partners import WorkerPartner, report, until
from tests.unit.queen.test_placement import REFERENCE, hive_with

from rbee.queen.config import QueenConfig
from rbee.queen.placement import life
from rbee.queen.placement.replicas import worker_id_of
from rbee.queen.placement.scaling import CROWDED_SWEEPS, Further, Replica, further
from rbee.wire.declarations import DeclaredModel
from rbee.wire.messages import WorkerState

IDLE, LOADING, STOPPED, FAILED = WorkerState.IDLE, WorkerState.LOADING, WorkerState.STOPPED, WorkerState.FAILED
NAME = "cold"
KEPT = {"reference": REFERENCE, "idle_limit_s": 60, "replicas": {"min": 1, "max": 2}}
DECLARED = msgspec.convert(KEPT, DeclaredModel)
FIRST, SECOND = (worker_id_of(NAME, DECLARED, number) for number in (1, 2))


def replica(number: int | None, state: WorkerState, *, by_person: bool = False) -> Replica:
    return Replica(number, state, may_start=state in (STOPPED, FAILED), by_person=by_person)


@pytest.mark.parametrize(
    ("limits", "replicas", "crowded", "wanted"),
    [
        ((0, 1), [], False, None),
        ((1, 1), [], False, Further(1)),
        ((2, 2), [replica(1, LOADING)], False, Further(2)),
        ((1, 2), [replica(1, IDLE)], False, None),
        ((1, 2), [replica(1, IDLE)], True, Further(2)),
        ((1, 2), [replica(1, LOADING)], True, None),
        ((1, 2), [replica(1, IDLE), replica(2, IDLE)], True, None),
        ((1, 2), [replica(1, STOPPED)], False, Further(1, ended=True)),
        ((1, 2), [replica(1, STOPPED), replica(1, IDLE)], False, None),
        ((2, 2), [replica(1, STOPPED), replica(1, IDLE)], False, Further(2)),
        ((1, 2), [replica(1, STOPPED, by_person=True)], False, None),
        ((2, 2), [replica(1, STOPPED, by_person=True)], False, Further(2)),
        ((1, 1), [replica(None, IDLE)], False, None),
        ((1, 1), [Replica(1, FAILED)], False, None),
        ((1, 1), [replica(1, WorkerState.STALE)], False, Further(1)),
        ((1, 2), [replica(1, WorkerState.STALE), replica(2, IDLE)], False, None),
        ((2, 2), [replica(1, WorkerState.STALE), replica(1, STOPPED), replica(2, IDLE)], False, Further(1, ended=True)),
        ((1, 2), [Replica(1, FAILED)], False, Further(2)),
    ],
)
def test_what_is_started_next(
    limits: tuple[int, int], replicas: list[Replica], crowded: bool, wanted: Further | None
) -> None:
    assert further(*limits, replicas, crowded=crowded) == wanted


_REPLICAS = st.lists(
    st.builds(
        replica, st.none() | st.integers(1, 5), st.sampled_from(WorkerState),
        by_person=st.booleans(),
    )
)  # fmt: skip


@given(st.integers(0, 4), st.integers(1, 4), _REPLICAS, st.booleans())
def test_never_more_than_the_most_and_never_one_that_is_up(
    least: int, most: int, replicas: list[Replica], crowded: bool
) -> None:
    wanted = further(min(least, most), most, replicas, crowded=crowded)
    if wanted is None:
        return
    assert sum(one.up for one in replicas) < most
    assert 1 <= wanted.number <= most
    assert not any(one.up and one.number == wanted.number for one in replicas)


async def ask(queen: RunningQueen) -> int:
    async with queen.client.post(queen.url + "/v1/completions", json={"model": NAME}) as response:
        await response.read()
        return response.status


def sweep(queen: RunningQueen, now: float) -> None:
    queen.core.declared.sweep(now, queen.core.admission.waiting_for)


async def test_the_least_are_kept_running_and_a_person_may_stop_them(configured: Configured) -> None:
    async with configured(models={NAME: KEPT}) as queen, hive_with(100) as hive:
        sweep(queen, 0.0)  # no hive reports yet: there is nothing to complain about
        await queen.beat(api_url=hive.url)
        sweep(queen, 1.0)
        sweep(queen, 2.0)
        await until(lambda: hive.spawned)
        assert hive.spawned[0] | {"worker_id": FIRST, "idle_limit_s": 0} == hive.spawned[0]
        await queen.tell(report(LOADING, worker=FIRST, model=NAME, url=None))
        await until(lambda: not queen.core.declared._under_way)
        sweep(queen, 3.0)
        assert len(hive.spawned) == 1
        await queen.tell(report(FAILED, worker=FIRST, model=NAME, url=None, exit_status=1))
        sweep(queen, 4.0)
        await until(lambda: len(hive.spawned) == 2)
        assert hive.spawned[1]["worker_id"] == FIRST
        await queen.tell(report(LOADING, worker=FIRST, model=NAME, url=None))
        await until(lambda: not queen.core.declared._under_way)
        await queen.tell(report(FAILED, worker=FIRST, model=NAME, url=None, exit_status=1))
        sweep(queen, 5.0)
        assert not queen.core.declared._under_way  # one that fails again and again is not started every second
        await queen.tell(report(STOPPED, worker=FIRST, model=NAME, url=None, reason="requested"))
        sweep(queen, 4.0 + life.ENDED_AGAIN_S)
        assert not queen.core.declared._under_way


async def test_what_cannot_be_started_is_tried_again_later(configured: Configured) -> None:
    async with configured(models={NAME: KEPT}) as queen, hive_with(1_000_000) as hive:
        await queen.beat(api_url=hive.url)
        loop = asyncio.get_running_loop()
        sweep(queen, loop.time())
        await until(lambda: not queen.core.declared._under_way)
        sweep(queen, loop.time())
        assert not queen.core.declared._under_way
        sweep(queen, loop.time() + life.ENDED_AGAIN_S + 1)
        assert queen.core.declared._under_way
        await until(lambda: not queen.core.declared._under_way)
        assert await queen.metric('queen_rbee_worker_placements_total{outcome="INSUFFICIENT_RAM"}') == 2


async def test_requests_that_go_on_waiting_have_a_further_worker_started(
    configured: Configured, worker: WorkerPartner, second: WorkerPartner
) -> None:
    worker.hold = asyncio.Event()
    async with configured(models={NAME: KEPT}) as queen, hive_with(100) as hive:
        await queen.beat(api_url=hive.url)
        await queen.tell(report(IDLE, worker=FIRST, model=NAME, url=worker.url, slots_total=1))
        asking = [asyncio.create_task(ask(queen)) for _ in range(3)]
        await until(lambda: queen.core.admission.waiting == 2)
        for number in range(CROWDED_SWEEPS - 1):
            sweep(queen, float(number))
        assert not queen.core.declared._under_way
        sweep(queen, 10.0)
        await until(lambda: hive.spawned)
        assert hive.spawned[0] | {"worker_id": SECOND, "idle_limit_s": 60} == hive.spawned[0]
        await queen.tell(report(LOADING, worker=SECOND, model=NAME, url=None))
        await queen.tell(report(IDLE, worker=SECOND, model=NAME, url=second.url, slots_total=1))
        await until(lambda: len(second.arrived) == 2)
        worker.hold.set()
        assert await asyncio.gather(*asking) == [200, 200, 200]


async def test_who_waits_for_a_slot_does_not_hear_that_no_further_worker_fits(
    configured: Configured, worker: WorkerPartner
) -> None:
    worker.hold = asyncio.Event()
    async with configured(models={NAME: KEPT}) as queen, hive_with(1_000_000) as hive:
        await queen.beat(report(IDLE, worker=FIRST, model=NAME, url=worker.url, slots_total=1), api_url=hive.url)
        asking = [asyncio.create_task(ask(queen)) for _ in range(2)]
        await until(lambda: queen.core.admission.waiting == 1)
        for number in range(CROWDED_SWEEPS):
            sweep(queen, float(number))
        assert queen.core.declared._under_way
        await until(lambda: not queen.core.declared._under_way)
        worker.hold.set()
        assert await asyncio.gather(*asking) == [200, 200]


def test_more_at_least_than_at_most_is_refused() -> None:
    wrong: dict[str, Any] = {"models": {NAME: {"reference": REFERENCE, "replicas": {"min": 2}}}}
    with pytest.raises(msgspec.ValidationError, match="max is at least min"):
        msgspec.convert(wrong, QueenConfig)
