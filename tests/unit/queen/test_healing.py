"""What a queen does with a declared model's workers while nodes fall silent and declarations change."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from tests.unit.queen.conftest import Configured, RunningQueen
from tests.unit.queen.partners import MACHINE, HivePartner, WorkerPartner, report, until
from tests.unit.queen.test_placement import REFERENCE, hive_with

from rbee.queen.placement.life import REPLACE_AGAIN_S
from rbee.queen.placement.replicas import was_declared, worker_id_of
from rbee.queen.placement.scaling import SURPLUS_S
from rbee.queen.routing.decision import Key
from rbee.wire.declarations import DeclaredModel, Replacement, Replicas
from rbee.wire.messages import WorkerReport, WorkerState

IDLE, LOADING, STOPPED, FAILED = WorkerState.IDLE, WorkerState.LOADING, WorkerState.STOPPED, WorkerState.FAILED
NAME = "org/kept"
KEPT = {"reference": REFERENCE, "idle_limit_s": 60, "replicas": {"min": 1, "max": 1}}
COLD = {"reference": REFERENCE, "idle_limit_s": 60}
DECLARED = msgspec.convert(KEPT, DeclaredModel)
CHANGED = msgspec.structs.replace(DECLARED, slots=2)
WORKER, CHANGED_WORKER = worker_id_of(NAME, DECLARED), worker_id_of(NAME, CHANGED)
UNKNOWN = "hf:org/of-unknown-size"
SOON_SILENT_S = 0.05
"""The interval of a hive that is stale 0.15 s after its last word."""


def told(state: WorkerState, worker: str = WORKER, **more: Any) -> WorkerReport:  # noqa: ANN401
    return report(state, worker=worker, model=NAME, **({"url": None} | more))


async def ask(queen: RunningQueen) -> tuple[int, Any]:
    async with queen.client.post(queen.url + "/v1/completions", json={"model": NAME}) as response:
        return response.status, await response.json()


def sweep(queen: RunningQueen, now: float) -> None:
    queen.core.declared.sweep(now, queen.core.admission.waiting_for)


def now() -> float:
    return asyncio.get_running_loop().time()


async def settled(queen: RunningQueen) -> None:
    await until(lambda: not queen.core.declared._under_way)


async def silence(queen: RunningQueen, hive: str) -> None:
    """Wait until that hive, which says nothing more, counts as silent."""
    known = queen.core.registry.hive(hive)
    assert known is not None
    await until(lambda: known.stale)


def change(queen: RunningQueen, declared: DeclaredModel) -> None:
    queen.core.reconfigure(msgspec.structs.replace(queen.core.config, models={NAME: declared}))


async def test_a_kept_worker_of_a_silent_node_runs_elsewhere_and_the_surplus_ends_when_it_is_back(
    configured: Configured, worker: WorkerPartner, second: WorkerPartner
) -> None:
    async with configured(models={NAME: KEPT}) as queen, hive_with(100) as bee, hive_with(100) as far:
        mine = told(IDLE, url=worker.url)
        await queen.beat(mine, api_url=bee.url, interval_s=SOON_SILENT_S)
        await silence(queen, "bee")
        sweep(queen, now())
        assert not queen.core.declared._under_way  # no other node is heard
        await queen.beat(hive="far", api_url=far.url)
        sweep(queen, now())
        await until(lambda: far.spawned)
        assert far.spawned[0]["worker_id"] == WORKER
        await queen.tell(told(LOADING, hive="far"))
        await settled(queen)
        await queen.tell(told(IDLE, hive="far", url=second.url))
        await queen.beat(mine, api_url=bee.url)
        began = now()
        sweep(queen, began)
        sweep(queen, began + SURPLUS_S - 1)
        assert not queen.core.declared._drains.under_way
        sweep(queen, began + SURPLUS_S)
        await until(lambda: bee.stopped)
        assert (bee.stopped, far.stopped) == ([WORKER], [])  # the node that was silent may be so again
        assert (await ask(queen))[1]["answer"] == "other"
        await queen.beat(api_url=bee.url)
        await until(lambda: not queen.core.declared._drains.under_way)
        assert await queen.metric('queen_rbee_drains_total{reason="surplus"}') == 1


async def test_a_request_whose_only_worker_is_on_a_silent_node_has_one_started_elsewhere(
    configured: Configured, second: WorkerPartner
) -> None:
    async with configured(models={NAME: COLD}) as queen, hive_with(100) as bee, hive_with(100) as far:
        cold = worker_id_of(NAME, msgspec.convert(COLD, DeclaredModel))
        await queen.beat(told(IDLE, cold, url="http://127.0.0.1:9"), api_url=bee.url, interval_s=SOON_SILENT_S)
        await silence(queen, "bee")
        await queen.beat(hive="far", api_url=far.url)
        asking = asyncio.create_task(ask(queen))
        await until(lambda: far.spawned)
        await queen.tell(told(LOADING, cold, hive="far"))
        await queen.tell(told(IDLE, cold, hive="far", url=second.url))
        assert (await asking)[0] == 200
        assert not bee.spawned


async def test_a_request_that_waits_while_the_node_falls_silent_is_answered_elsewhere(
    configured: Configured, second: WorkerPartner
) -> None:
    limits = {"silent_wait_s": 0.2}
    async with (
        configured(models={NAME: COLD}, requests=limits) as queen, hive_with(100) as bee, hive_with(100) as far
    ):  # fmt: skip
        cold = worker_id_of(NAME, msgspec.convert(COLD, DeclaredModel))
        await queen.beat(told(IDLE, cold, url="http://127.0.0.1:9"), api_url=bee.url, interval_s=0.4)
        await queen.beat(hive="far", api_url=far.url)
        assert (await ask(queen))[1]["error"]["code"] == "WORKER_UNREACHABLE"  # its node is heard: it may come back
        await asyncio.sleep(0.5)
        asking = asyncio.create_task(ask(queen))
        await until(lambda: far.spawned)
        await queen.tell(told(LOADING, cold, hive="far"))
        await queen.tell(told(IDLE, cold, hive="far", url=second.url))
        assert (await asking)[0] == 200


async def test_who_asks_for_a_lost_model_that_fits_nowhere_else_is_told(configured: Configured) -> None:
    async with configured(models={NAME: KEPT}) as queen, hive_with(1_000_000) as far:
        await queen.beat(told(IDLE), interval_s=SOON_SILENT_S)
        await silence(queen, "bee")
        await queen.beat(hive="far", api_url=far.url)
        status, body = await ask(queen)
        assert (status, body["error"]["code"]) == (503, "INSUFFICIENT_RAM")
        _, listing = await queen.get("/v1/models")
        assert listing["data"][0]["note"].startswith("no worker was started: the model fits nowhere")
        _, health = await queen.get("/health")
        assert any(sentence.startswith("model org/kept: a worker of it is missing") for sentence in health["degraded"])


async def test_a_changed_declaration_has_a_new_worker_ready_before_the_old_one_ends(
    configured: Configured, worker: WorkerPartner, second: WorkerPartner
) -> None:
    worker.hold = asyncio.Event()
    async with configured(models={NAME: KEPT}) as queen, hive_with(100) as hive:
        await queen.beat(told(IDLE, url=worker.url), api_url=hive.url)
        sweep(queen, now())
        asking = asyncio.create_task(ask(queen))
        await until(lambda: worker.running)
        change(queen, CHANGED)
        sweep(queen, now())
        await until(lambda: hive.spawned)
        assert hive.spawned[0] | {"worker_id": CHANGED_WORKER, "slots": 2} == hive.spawned[0]
        _, listing = await queen.get("/v1/models")
        assert listing["data"][0]["note"] == f"replacing bee/{WORKER}"
        await queen.tell(told(LOADING, CHANGED_WORKER))
        await settled(queen)
        sweep(queen, now())
        assert not queen.core.declared._drains.under_way
        await queen.tell(told(IDLE, CHANGED_WORKER, url=second.url))
        sweep(queen, now())
        assert queen.core.declared._drains.under_way == {Key("bee", WORKER)}
        assert (await ask(queen))[1]["answer"] == "other"  # the former one gets nothing new
        sweep(queen, now())
        assert not hive.stopped  # what it has is answered first
        worker.hold.set()
        assert (await asking)[0] == 200
        await until(lambda: hive.stopped == [WORKER])
        await queen.tell(told(STOPPED, reason="requested"))
        await until(lambda: not queen.core.declared._drains.under_way)
        sweep(queen, now())
        assert len(hive.spawned) == 1
        assert await queen.metric('queen_rbee_drains_total{reason="replaced"}') == 1


async def test_a_changed_declaration_whose_worker_fails_leaves_the_old_one(
    configured: Configured, worker: WorkerPartner
) -> None:
    async with configured(models={NAME: KEPT}) as queen, hive_with(100) as hive:
        await queen.beat(told(IDLE, url=worker.url), api_url=hive.url)
        sweep(queen, now())
        change(queen, CHANGED)
        sweep(queen, now())
        await until(lambda: hive.spawned)
        await queen.tell(told(LOADING, CHANGED_WORKER))
        await settled(queen)
        await queen.tell(told(FAILED, CHANGED_WORKER, reason="exit 78: its configuration is wrong", exit_status=78))
        began = now()
        for second in range(0, int(REPLACE_AGAIN_S), 10):
            sweep(queen, began + second)
        assert len(hive.spawned) == 1 and not hive.stopped
        assert (await ask(queen))[0] == 200
        _, listing = await queen.get("/v1/models")
        assert "exit 78: its configuration is wrong: those of the former one go on" in listing["data"][0]["note"]
        assert await queen.metric("queen_rbee_replacements_failed_total") == 1
        change(queen, DECLARED)  # taken back: what runs is what is declared
        sweep(queen, now())
        assert (await queen.get("/v1/models"))[1]["data"][0]["note"] == ""
        assert not queen.core.declared._under_way


async def test_a_worker_that_cannot_be_stopped_gets_requests_again(
    configured: Configured, worker: WorkerPartner
) -> None:
    async with configured(models={NAME: COLD}) as queen, hive_with(100):
        cold = worker_id_of(NAME, msgspec.convert(COLD, DeclaredModel))
        await queen.beat(told(IDLE, cold, url=worker.url, ready_unix=1.0))  # its hive has no address
        sweep(queen, now())
        assert queen.core.declared._drains.under_way
        await until(lambda: not queen.core.declared._drains.under_way)
        assert (await ask(queen))[0] == 200


async def test_a_kept_worker_whose_declaration_is_gone_ends_when_it_is_idle(
    configured: Configured, worker: WorkerPartner
) -> None:
    async with configured(models={NAME: KEPT}) as queen, hive_with(100) as hive:
        mine, theirs = told(IDLE, url=worker.url, ready_unix=time.time()), told(IDLE, "theirs", url=worker.url)
        await queen.beat(mine, theirs, api_url=hive.url)
        sweep(queen, now())
        queen.core.reconfigure(msgspec.structs.replace(queen.core.config, models={}))
        sweep(queen, now())
        assert not queen.core.declared._drains.under_way
        await queen.beat(msgspec.structs.replace(mine, ready_unix=1.0), theirs, api_url=hive.url)
        sweep(queen, now())
        await until(lambda: hive.stopped == [WORKER])


def test_workers_of_any_declaration_of_a_model_are_known_by_their_ids() -> None:
    second = worker_id_of(NAME, DECLARED, 2)
    assert all(was_declared(NAME, one) for one in (WORKER, CHANGED_WORKER, second))
    assert not any(was_declared(NAME, one) for one in ("org-kept", "org-kept-mine", f"a-{WORKER}", f"{WORKER}-x"))
    assert not was_declared("org/other", WORKER)


@contextlib.asynccontextmanager
async def crowded(
    configured: Configured, worker: WorkerPartner, held: str = REFERENCE, memory_mb: int = 0, **more: object
) -> AsyncIterator[tuple[RunningQueen, HivePartner]]:
    """A queen when the declaration of a model of 100 MB changes, whose worker, of ``held``, leaves its node 50 MB.

    ``memory_mb`` is what the worker is reported to hold; 0: its hive does not tell.
    """
    async with configured(models={NAME: KEPT}) as queen, hive_with(100) as hive:
        machine = msgspec.structs.replace(MACHINE, ram_available_bytes=50 << 20)
        mine = msgspec.structs.replace(told(IDLE, url=worker.url), model_ref=held, memory_bytes=memory_mb << 20)
        await queen.beat(mine, api_url=hive.url, machine=machine)
        sweep(queen, now())
        change(queen, msgspec.structs.replace(CHANGED, **more))
        sweep(queen, now())
        await settled(queen)
        yield queen, hive


@pytest.mark.parametrize(
    ("held", "memory_mb", "policy"),
    [
        (REFERENCE, 200, Replacement.AVAILABILITY),
        (REFERENCE, 60, Replacement.PROGRESS),
        (UNKNOWN, 0, Replacement.PROGRESS),
    ],
)
async def test_the_last_worker_goes_on_where_its_end_is_not_wanted_or_would_not_do(
    configured: Configured, worker: WorkerPartner, held: str, memory_mb: int, policy: Replacement
) -> None:
    async with crowded(configured, worker, held, memory_mb, replacement=policy) as (queen, hive):
        assert hive.surveyed == 1  # what it would fit in is seen by the facts that it did not fit by
        assert not hive.spawned and not hive.stopped and not queen.core.declared._drains.under_way
        assert (await ask(queen))[0] == 200
        note = (await queen.get("/v1/models"))[1]["data"][0]["note"]
        assert "needs 120 MB of RAM" in note and note.endswith("those of the former one go on")
        assert await queen.metric("queen_rbee_replacements_failed_total") == 1


async def test_a_worker_of_a_model_in_no_catalogue_makes_way_by_the_memory_that_it_reports(
    configured: Configured, worker: WorkerPartner
) -> None:
    async with crowded(configured, worker, UNKNOWN, 80, replacement=Replacement.PROGRESS) as (queen, hive):
        await until(lambda: hive.stopped == [WORKER])
        assert not hive.spawned
        assert await queen.metric("queen_rbee_replacements_failed_total") == 0


async def test_the_last_worker_makes_way_where_progress_is_wanted_and_who_asks_meanwhile_is_answered(
    configured: Configured, worker: WorkerPartner, second: WorkerPartner
) -> None:
    async with crowded(configured, worker, replacement=Replacement.PROGRESS) as (queen, hive):
        await until(lambda: hive.stopped == [WORKER])
        assert not hive.spawned
        asking = asyncio.create_task(ask(queen))
        await until(lambda: queen.core.admission.waiting == 1)
        await queen.beat(told(STOPPED, reason="requested"), api_url=hive.url)  # its memory is free again
        await until(lambda: not queen.core.declared._drains.under_way)
        await queen.beat(api_url=hive.url)
        sweep(queen, now())
        await until(lambda: hive.spawned)
        assert hive.spawned[0]["worker_id"] == CHANGED_WORKER
        await queen.tell(told(LOADING, CHANGED_WORKER))
        await queen.tell(told(IDLE, CHANGED_WORKER, url=second.url))
        status, body = await asking
        assert (status, body["answer"]) == (200, "other")
        assert await queen.metric('queen_rbee_drains_total{reason="makes_way"}') == 1
        assert await queen.metric("queen_rbee_replacements_failed_total") == 0


def test_how_workers_are_replaced_changes_none_of_them() -> None:
    progress = msgspec.structs.replace(DECLARED, replacement=Replacement.PROGRESS)
    assert worker_id_of(NAME, progress) == WORKER


async def test_a_replacement_goes_on_while_it_is_said_anew_how_many_are_kept_and_when(
    configured: Configured, worker: WorkerPartner
) -> None:
    two = msgspec.structs.replace(DECLARED, replicas=Replicas(1, 2))
    changed = msgspec.structs.replace(two, slots=2)
    async with configured(models={NAME: two}) as queen, hive_with(100) as hive:
        await queen.beat(told(IDLE, url=worker.url), api_url=hive.url)
        sweep(queen, now())
        change(queen, changed)
        sweep(queen, now())
        await until(lambda: hive.spawned)
        await queen.tell(told(LOADING, CHANGED_WORKER))
        await settled(queen)
        change(queen, msgspec.structs.replace(changed, warm=["00:00-24:00"]))
        await queen.tell(told(IDLE, CHANGED_WORKER, url=worker.url))
        sweep(queen, now())
        await until(lambda: hive.stopped == [WORKER])
        assert len(hive.spawned) == 1
        assert not queen.core.declared._under_way
