"""Starts of workers that no declaration places: where they are, unless their memory is known to be too little there."""

import asyncio
from typing import Any

import msgspec
import pytest
from aiohttp import web
from tests.unit.queen.conftest import Configured, RunningQueen
from tests.unit.queen.partners import MACHINE, HivePartner, WorkerPartner, report, served, until
from tests.unit.queen.test_eviction import IDLE, LOADING, STOPPED, declared, machine, of
from tests.unit.queen.test_placement import MB

from rbee.wire.messages import GpuFacts, WorkerReport
from rbee.wire.model_messages import ModelRow, ModelRows
from rbee.wire.model_reference import Provider
from rbee.wire.worker_spec import Backend

ROOM_MB = MACHINE.ram_available_bytes // MB


async def ask(queen: RunningQueen, model: str) -> tuple[int, Any]:
    async with queen.client.post(queen.url + "/v1/completions", json={"model": model}) as response:
        return response.status, await response.json()


def stopped(model: str, **more: Any) -> WorkerReport:  # noqa: ANN401
    return report(STOPPED, worker=model, model=model, url=None, **more)


class Asked(HivePartner):
    """A hive whose catalogue has a model of each name and size in MB; what it is asked for its backends is counted."""

    def __init__(self, **sizes_mb: int) -> None:
        super().__init__()
        self.sizes_mb = sizes_mb
        self.asked_backends = 0

    def app(self) -> web.Application:
        app = super().app()
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/v1/capabilities", self.capabilities)
        return app

    async def models(self, request: web.Request) -> web.StreamResponse:
        rows = [
            ModelRow(name, Provider.LOCAL, f"file:///models/{name}", "/m", size * MB, "", 0.0, 0.0)
            for name, size in self.sizes_mb.items()
        ]
        return web.Response(body=msgspec.json.encode(ModelRows(rows, 0, 0)), content_type="application/json")

    async def capabilities(self, request: web.Request) -> web.StreamResponse:
        self.asked_backends += 1
        return web.json_response({"backends": ["cpu"]})


async def test_what_does_not_fit_is_refused_with_its_numbers_and_not_started(queen: RunningQueen) -> None:
    hive = Asked(large=ROOM_MB)
    async with served(hive.app()) as url:
        await queen.beat(stopped("large"), api_url=url)
        answers = await asyncio.gather(*(ask(queen, "large") for _ in range(3)))
    for status, body in answers:
        assert (status, body["error"]["code"]) == (503, "INSUFFICIENT_RAM")
        assert body["error"]["details"]["available_ram_mb"] == ROOM_MB
        assert body["error"]["details"]["required_ram_mb"] == -(-ROOM_MB * 6 // 5)
        assert body["error"]["details"]["nodes"][0]["node"] == "bee"
    assert hive.spawned == []
    assert await queen.metric('queen_rbee_worker_placements_total{outcome="INSUFFICIENT_RAM"}') >= 1


async def test_what_fits_starts_as_it_is_and_its_memory_counts_as_taken(
    queen: RunningQueen, worker: WorkerPartner
) -> None:
    hive = Asked(one=ROOM_MB // 2, two=ROOM_MB // 2)
    async with served(hive.app()) as url:
        await queen.beat(stopped("one"), stopped("two"), api_url=url)
        asking = asyncio.create_task(ask(queen, "one"))
        await until(lambda: hive.spawned)
        assert hive.spawned[0]["worker_id"] == "one"
        assert hive.spawned[0].get("model_ref") is None
        assert (await ask(queen, "two"))[1]["error"]["code"] == "INSUFFICIENT_RAM"
        await queen.tell(report(LOADING, worker="one", model="one", url=None))
        await queen.tell(report(worker="one", model="one", url=worker.url))
        assert (await asking)[0] == 200
        _, why = await queen.get("/v2/explain/bee/one")
        assert why["placement"]["chosen"]["available_bytes"] == MACHINE.ram_available_bytes


async def test_a_start_that_its_hive_refuses_gives_the_memory_back(queen: RunningQueen) -> None:
    hive = Asked(one=ROOM_MB // 2, two=ROOM_MB // 2)
    async with served(hive.app()) as url:
        await queen.beat(stopped("one"), stopped("two"), api_url=url)
        hive.status, hive.answer = 409, b'{"error": {"code": "CONFLICT", "message": "no", "details": {}}}'
        for model in ("one", "two"):
            assert (await ask(queen, model))[1]["error"]["code"] == "CONFLICT"
        assert len(hive.spawned) == 2


@pytest.mark.parametrize("more", [{"model_ref": "somewhere else"}, {"model_ref": None}, {"backend": None}])
async def test_what_nobody_knows_the_need_of_starts(queen: RunningQueen, more: dict[str, Any]) -> None:
    hive = Asked(large=ROOM_MB)
    async with served(hive.app()) as url:
        await queen.beat(msgspec.structs.replace(stopped("large"), **more), api_url=url)
        asking = asyncio.create_task(ask(queen, "large"))
        await until(lambda: hive.spawned)
        asking.cancel()


@pytest.mark.parametrize(
    ("device", "code"), [(0, "VRAM_EXHAUSTED"), (1, None), (2, None), (3, None)], ids=["full", "free", "hot", "gone"]
)
async def test_a_worker_of_a_gpu_needs_the_memory_of_that_one(
    queen: RunningQueen, device: int, code: str | None
) -> None:
    hive = Asked(large=5000)
    gpus = [
        GpuFacts(0, "H100", "GPU-0", 80_000 * MB, 79_000 * MB, 50),
        GpuFacts(1, "H100", "GPU-1", 80_000 * MB, 0, 50),
        GpuFacts(2, "H100", "GPU-2", 80_000 * MB, 0, 95),
    ]
    async with served(hive.app()) as url:
        facts = msgspec.structs.replace(MACHINE, gpus=gpus)
        await queen.beat(stopped("large", backend=Backend.CUDA, device=device), api_url=url, machine=facts)
        asking = asyncio.create_task(ask(queen, "large"))
        if code is None:
            await until(lambda: hive.spawned)
            asking.cancel()
        else:
            status, body = await asking
            assert (status, body["error"]["code"]) == (503, code)
            assert body["error"]["details"]["available_vram_mb"] == 1000
            assert hive.spawned == []
        assert hive.asked_backends == 0  # it started there before


async def test_an_idle_worker_of_a_declared_model_ends_for_it(configured: Configured, worker: WorkerPartner) -> None:
    config = declared()
    async with configured(**config) as queen, machine() as node:
        own = msgspec.structs.replace(stopped("own"), model_ref="hf:org/second")
        await queen.beat(of(config, "first", IDLE, worker.url), own, api_url=node.hive.url)
        asking = asyncio.create_task(ask(queen, "own"))
        await until(lambda: node.hive.stopped)
        assert node.hive.spawned == []
        node.free_mb = 7000
        await queen.tell(of(config, "first", STOPPED))
        await until(lambda: node.hive.spawned)
        assert node.hive.spawned[0]["worker_id"] == "own"
        asking.cancel()


async def test_who_waited_while_room_was_made_for_another_decides_by_what_there_is_then(
    configured: Configured, worker: WorkerPartner
) -> None:
    config = declared()
    async with configured(**config) as queen, machine() as node:
        one, two = (msgspec.structs.replace(stopped(name), model_ref="hf:org/second") for name in ("one", "two"))
        await queen.beat(of(config, "first", IDLE, worker.url), one, two, api_url=node.hive.url)
        asking = [asyncio.create_task(ask(queen, name)) for name in ("one", "two")]
        await until(lambda: node.hive.stopped and queen.core.placements._makers == 2)
        node.free_mb = 14_000
        await queen.tell(of(config, "first", STOPPED))
        await until(lambda: len(node.hive.spawned) == 2)
        assert len(node.hive.stopped) == 1
        for each in asking:
            each.cancel()
