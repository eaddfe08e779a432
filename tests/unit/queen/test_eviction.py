"""Which idle workers end so that another one fits: the decision on its own, and by a queen."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.queen.conftest import Configured, RunningQueen
from tests.unit.queen.partners import MACHINE, HivePartner, WorkerPartner, report, served, until
from tests.unit.queen.test_placement import MB

from rbee.queen.placement.decision import Need, Node, decide
from rbee.queen.placement.eviction import Idle, make_room
from rbee.queen.placement.replicas import worker_id_of
from rbee.wire.declarations import DeclaredModel
from rbee.wire.messages import WorkerReport, WorkerState
from rbee.wire.model_messages import ModelRow, ModelRows
from rbee.wire.model_reference import Provider
from rbee.wire.worker_spec import Backend

WANTED = "hf:org/wanted"
IDLE, LOADING, STOPPED = WorkerState.IDLE, WorkerState.LOADING, WorkerState.STOPPED


def idle(worker: str, held_mb: int, idle_s: float = 100.0, load_s: float = 1.0, node: str = "a") -> Idle:
    return Idle(node, worker, None, held_mb * MB, idle_s, load_s)


def ended(size_mb: int, free: dict[str, int], *there: Idle) -> list[str]:
    need = Need(WANTED, Backend.CPU, size_bytes=size_mb * MB)
    nodes = [Node(name, room * MB, 1 << 50) for name, room in free.items()]
    return [one.worker_id for one in make_room(decide(need, nodes), there)]


def test_the_longest_idle_and_quickest_to_load_end_and_none_in_vain() -> None:
    assert ended(1000, {"a": 200}, idle("old", 1000, 500), idle("new", 1000, 50)) == ["old"]
    assert ended(1000, {"a": 200}, idle("slow", 1000, load_s=60), idle("quick", 1000)) == ["quick"]
    assert ended(1000, {"a": 200}, idle("small", 100, 900), idle("large", 1000, 500)) == ["large"]
    assert ended(1000, {"a": 200}, idle("one", 600), idle("two", 600)) == ["one", "two"]
    assert ended(1000, {"a": 200, "b": 200}, idle("a1", 1000, 50), idle("b1", 1000, 500, node="b")) == ["b1"]


def test_nothing_ends_where_that_makes_no_room() -> None:
    assert ended(1000, {"a": 200}, idle("one", 500)) == []
    assert ended(1000, {"a": 200}, idle("elsewhere", 5000, node="b")) == []
    assert ended(1000, {"a": 1200}, idle("one", 5000)) == []
    assert ended(1000, {"a": 200}, idle("unknown", 0)) == []


@given(st.integers(0, 2000), st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 1000), st.floats(0, 100))))
def test_what_ends_is_enough_and_none_of_it_too_much(free: int, workers: list[tuple[int, float, float]]) -> None:
    there = [idle(str(number), *values) for number, values in enumerate(workers)]
    need = Need(WANTED, Backend.CPU, size_bytes=2000 * MB)
    plan = make_room(decide(need, [Node("a", free * MB, 1 << 50)]), there)
    room = free * MB + sum(one.held_bytes for one in plan)
    if plan:
        assert room >= 2400 * MB
        assert all(room - one.held_bytes < 2400 * MB for one in plan)
    else:
        assert free * MB + sum(one.held_bytes for one in there) < 2400 * MB


# by a queen


class Machine:
    """A hive's HTTP in whose memory one model of 5000 MB has room beside 1000 MB; what ends frees it."""

    def __init__(self) -> None:
        self.hive = HivePartner()
        self.free_mb = 1000

    async def models(self, request: web.Request) -> web.StreamResponse:
        rows = [
            ModelRow(name, Provider.HF, f"hf:org/{name}", "/m", 5000 * MB, "", 0.0, 0.0)
            for name in ("wanted", "first", "second")
        ]
        return web.Response(body=msgspec.json.encode(ModelRows(rows, 0, 0)), content_type="application/json")

    async def resources(self, request: web.Request) -> web.StreamResponse:
        facts = msgspec.structs.replace(MACHINE, ram_available_bytes=self.free_mb * MB)
        return web.Response(body=msgspec.json.encode(facts), content_type="application/json")


@contextlib.asynccontextmanager
async def machine() -> AsyncIterator[Machine]:
    made = Machine()
    app = made.hive.app()
    app.router.add_get("/v1/models", made.models)
    app.router.add_get("/v1/resources", made.resources)
    async with served(app) as made.hive.url:
        yield made


def declared(**first: Any) -> dict[str, Any]:  # noqa: ANN401
    models = {name: {"reference": f"hf:org/{name}"} for name in ("wanted", "first", "second")}
    return {"models": {**models, "first": models["first"] | first}, "placement": {"evict_idle_s": 0.0}}


def of(config: dict[str, Any], name: str, state: WorkerState, url: str | None = None) -> WorkerReport:
    worker = worker_id_of(name, msgspec.convert(config["models"][name], DeclaredModel))
    now = time.time()
    serves = report(state, worker=worker, model=name, url=url, ready_unix=now - 100, spawned_unix=now - 101)
    return msgspec.structs.replace(serves, model_ref=f"hf:org/{name}")


async def ask(queen: RunningQueen, model: str) -> tuple[int, Any]:
    async with queen.client.post(queen.url + "/v1/completions", json={"model": model}) as response:
        return response.status, await response.json()


async def test_the_idle_worker_of_a_declared_model_ends_for_another(
    configured: Configured, worker: WorkerPartner
) -> None:
    config = declared()
    async with configured(**config) as queen, machine() as node:
        first, second = of(config, "first", IDLE, worker.url), of(config, "second", IDLE, worker.url)
        own = report(IDLE, worker="own", model="own", url=worker.url)
        await queen.beat(first, second, own, api_url=node.hive.url)
        assert (await ask(queen, "second"))[0] == 200  # used just now: the other one has been idle for longer
        asking = asyncio.create_task(ask(queen, "wanted"))
        await until(lambda: node.hive.stopped)
        assert node.hive.stopped == [first.worker_id]
        assert node.hive.spawned == []  # not before the memory is free
        node.free_mb = 7000
        await queen.tell(of(config, "first", STOPPED))
        await until(lambda: node.hive.spawned)
        await queen.tell(of(config, "wanted", LOADING))
        await queen.tell(of(config, "wanted", IDLE, worker.url))
        assert (await asking)[0] == 200
        assert await queen.metric("queen_rbee_evictions_total") == 1


async def test_what_a_worker_holds_is_what_its_hive_tells_and_not_its_models_files(
    configured: Configured, worker: WorkerPartner
) -> None:
    config = declared()
    async with configured(**config) as queen, machine() as node:
        light = msgspec.structs.replace(of(config, "first", IDLE, worker.url), memory_bytes=4000 * MB)
        await queen.beat(light, api_url=node.hive.url)
        assert (await ask(queen, "wanted"))[1]["error"]["code"] == "INSUFFICIENT_RAM"
        assert node.hive.stopped == []  # its end would not be enough: 1000 and 4000 MB, and 6000 are needed
        unknown = msgspec.structs.replace(of(config, "second", IDLE, worker.url), memory_bytes=5000 * MB)
        unknown = msgspec.structs.replace(unknown, model_ref="hf:org/in-no-catalogue")
        await queen.beat(unknown, api_url=node.hive.url)
        asking = asyncio.create_task(ask(queen, "wanted"))
        await until(lambda: node.hive.stopped)
        assert node.hive.stopped == [unknown.worker_id]
        asking.cancel()


async def test_what_is_kept_or_busy_or_a_persons_does_not_end(configured: Configured, worker: WorkerPartner) -> None:
    worker.hold = asyncio.Event()
    config = declared(replicas={"min": 1})
    async with configured(**config) as queen, machine() as node:
        first, second = of(config, "first", IDLE, worker.url), of(config, "second", IDLE, worker.url)
        own = msgspec.structs.replace(report(IDLE, worker="own", model="second", url=None), model_ref="hf:org/second")
        await queen.beat(first, second, own, api_url=node.hive.url)
        busy = asyncio.create_task(ask(queen, "second"))
        await until(lambda: worker.running)
        status, body = await ask(queen, "wanted")
        assert (status, body["error"]["code"]) == (503, "INSUFFICIENT_RAM")
        assert body["error"]["details"]["available_ram_mb"] == 1000
        assert node.hive.stopped == node.hive.spawned == []
        worker.hold.set()
        await busy


async def test_a_worker_that_was_just_used_stays(configured: Configured, worker: WorkerPartner) -> None:
    config = declared() | {"placement": {"evict_idle_s": 30.0}}
    async with configured(**config) as queen, machine() as node:
        await queen.beat(of(config, "first", IDLE, worker.url), api_url=node.hive.url)
        assert (await ask(queen, "first"))[0] == 200
        assert (await ask(queen, "wanted"))[0] == 503
        assert node.hive.stopped == []


async def test_who_ended_for_another_is_placed_anew_and_not_into_its_memory(
    configured: Configured, worker: WorkerPartner
) -> None:
    config = declared(replicas={"min": 0, "max": 2})
    async with configured(**config) as queen, machine() as full, machine() as roomy:
        await queen.beat(of(config, "first", STOPPED), api_url=full.hive.url)
        for status, body in await asyncio.gather(*(ask(queen, "first") for _ in range(3))):
            assert (status, body["error"]["code"]) == (503, "INSUFFICIENT_RAM")
        assert full.hive.spawned == []
        roomy.free_mb = 7000
        await queen.beat(hive="roomy", api_url=roomy.hive.url)
        asking = [asyncio.create_task(ask(queen, "first")) for _ in range(3)]
        await until(lambda: roomy.hive.spawned)
        ready = msgspec.structs.replace(of(config, "first", IDLE, worker.url), hive_id="roomy")
        await queen.tell(msgspec.structs.replace(ready, state=LOADING, url=None))
        await queen.tell(ready)
        assert [status for status, _ in await asyncio.gather(*asking)] == [200, 200, 200]
        assert (len(full.hive.spawned), len(roomy.hive.spawned)) == (0, 1)


async def test_who_ended_for_another_and_is_kept_from_then_on_starts_again(
    configured: Configured, worker: WorkerPartner
) -> None:
    config = declared()
    async with configured(**config) as queen, machine() as node:
        first = of(config, "first", IDLE, worker.url)
        await queen.beat(first, api_url=node.hive.url)
        asking = asyncio.create_task(ask(queen, "wanted"))
        await until(lambda: node.hive.stopped)
        node.free_mb = 20_000
        stopped = msgspec.structs.replace(of(config, "first", STOPPED), reason="requested", since_unix=time.time())
        await queen.tell(stopped)
        await until(lambda: node.hive.spawned)
        wanted = of(config, "wanted", IDLE, worker.url)
        await queen.tell(msgspec.structs.replace(wanted, state=LOADING, url=None))
        await queen.tell(wanted)
        assert (await asking)[0] == 200
        there = [one for one in (stopped, wanted) if one.worker_id not in node.hive.forgotten]
        await queen.beat(*there, api_url=node.hive.url)
        kept = msgspec.convert(declared(replicas={"min": 1})["models"], dict[str, DeclaredModel])
        queen.core.reconfigure(msgspec.structs.replace(queen.core.config, models=kept))
        queen.core.declared.sweep(asyncio.get_running_loop().time(), queen.core.admission.waiting_for)
        await until(lambda: len(node.hive.spawned) == 2)
        assert node.hive.spawned[1]["worker_id"] == first.worker_id
