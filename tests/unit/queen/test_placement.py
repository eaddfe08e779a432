"""Where workers start: the decision on its own, and by a queen that asks her hives."""

import contextlib
import dataclasses
import json
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import msgspec
import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.queen.conftest import Fields, RunningQueen
from tests.unit.queen.partners import MACHINE, HivePartner, report, served

from rbee.queen.placement.decision import Basis, Decision, Device, Need, Node, decide
from rbee.queen.placement.refusals import refusal
from rbee.wire.declarations import Strategy
from rbee.wire.messages import GpuFacts, WorkerState
from rbee.wire.model_messages import ModelRow, ModelRows
from rbee.wire.model_reference import Provider
from rbee.wire.worker_spec import Backend

MB = 1 << 20
REFERENCE = "hf:org/repo"
BOTH = frozenset(Backend)
ON_CPU, ON_CUDA = Need(REFERENCE, Backend.CPU), Need(REFERENCE, Backend.CUDA)


def node(name: str = "a", ram_mb: int = 8000, **more: Fields) -> Node:
    return Node(**{"name": name, "ram_free_bytes": ram_mb * MB, "disk_free_bytes": 100_000 * MB} | more)


def gpus(*free_mb: int, temperature: int = 40) -> dict[str, Any]:
    devices = tuple(Device(index, free * MB, temperature) for index, free in enumerate(free_mb))
    return {"devices": devices, "backends": BOTH}


def sized(need: Need, megabytes: int, **more: Fields) -> Need:
    return dataclasses.replace(need, size_bytes=megabytes * MB, **more)


def chosen(decision: Decision) -> tuple[str, int | None] | None:
    return None if decision.chosen is None else (decision.chosen.node, decision.chosen.device)


def test_the_need_is_the_files_and_a_fifth() -> None:
    assert sized(ON_CPU, 5000).required_bytes == 6000 * MB
    assert ON_CPU.required_bytes is None
    assert (sized(ON_CPU, 5000).basis, ON_CPU.basis) == (Basis.FILES, Basis.NOTHING)
    assert chosen(decide(sized(ON_CPU, 5000), [node(ram_mb=8000)])) == ("a", None)
    assert chosen(decide(sized(ON_CPU, 5000), [node(ram_mb=6000)])) == ("a", None)
    assert chosen(decide(sized(ON_CPU, 5000), [node(ram_mb=5999)])) is None


@pytest.mark.parametrize("need", [ON_CPU, sized(ON_CPU, 5000), sized(ON_CPU, 1)])
def test_what_was_measured_counts_instead_of_the_files_and_a_tenth_on_top(need: Need) -> None:
    measured = dataclasses.replace(need, measured_bytes=2000 * MB)
    assert (measured.required_bytes, measured.basis) == (2200 * MB, Basis.MEASURED)
    assert chosen(decide(measured, [node(ram_mb=2200)])) == ("a", None)
    decision = decide(measured, [node(ram_mb=2199)])
    assert (chosen(decision), decision.basis, decision.size_bytes) == (None, Basis.MEASURED, need.size_bytes)
    error = refusal(decision)
    assert "it needs 2200 MB of RAM, as measured at its last start, and the best place" in error.message
    assert (error.details["basis"], error.details["required_ram_mb"]) == (Basis.MEASURED, 2200)


@pytest.mark.parametrize(
    ("need", "nodes", "place"),
    [
        (sized(ON_CPU, 100), [node("a", workers=2), node("b", workers=1)], ("b", None)),
        (sized(ON_CPU, 100), [node("a", ram_mb=900), node("b", ram_mb=1000)], ("b", None)),
        (sized(ON_CPU, 100), [node("a"), node("b", workers=3, has_model=True)], ("b", None)),
        (sized(ON_CPU, 100), [node("a"), node("b", replicas=1, workers=1, has_model=True)], ("a", None)),
        (sized(ON_CPU, 100, strategy=Strategy.PACK), [node("a"), node("b", ram_mb=200)], ("b", None)),
        (dataclasses.replace(ON_CPU, strategy=Strategy.PACK), [node("a"), node("b", ram_mb=200)], ("a", None)),
        (sized(ON_CUDA, 3000), [node("a", **gpus(4000, 6000, 5000))], ("a", 1)),
        (sized(ON_CUDA, 3000, device=2), [node("a", **gpus(4000, 6000, 5000))], ("a", 2)),
        (sized(ON_CUDA, 3000), [node("a", **gpus(9000, temperature=81)), node("b", **gpus(4000))], ("b", 0)),
        (ON_CUDA, [node("a", answers=False, **gpus(9000)), node("b", **gpus(4000))], ("b", 0)),
        (ON_CUDA, [node("a"), node("b", **gpus(10))], ("b", 0)),
    ],
)  # fmt: skip
def test_the_best_place_is_chosen(need: Need, nodes: list[Node], place: tuple[str, int | None]) -> None:
    assert chosen(decide(need, nodes)) == place
    assert chosen(decide(need, nodes[::-1])) == place


@pytest.mark.parametrize(
    ("need", "nodes", "code", "details"),
    [
        (sized(ON_CPU, 5000), [node(ram_mb=4000)], "INSUFFICIENT_RAM",
         {"required_ram_mb": 6000, "available_ram_mb": 4000, "model_ref": REFERENCE}),
        (sized(ON_CUDA, 5000), [node(**gpus(4000)), node("b")], "VRAM_EXHAUSTED",
         {"required_vram_mb": 6000, "available_vram_mb": 4000, "model_ref": REFERENCE}),
        (ON_CUDA, [node(**gpus(9000, temperature=81))], "GPU_TOO_HOT", {}),
        (ON_CUDA, [node()], "BACKEND_UNAVAILABLE", {"field": "backend"}),
        (dataclasses.replace(ON_CUDA, device=3), [node(**gpus(9000))], "INVALID_DEVICE", {"field": "device"}),
        (dataclasses.replace(ON_CUDA, device=3), [node(**gpus(9000)), node("b")], "INVALID_DEVICE", {}),
        (dataclasses.replace(ON_CPU, device=1), [node()], "INVALID_DEVICE", {}),
        (sized(ON_CUDA, 5000), [node(**gpus(4000)), node("b", **gpus(9000, temperature=90))],
         "INSUFFICIENT_RESOURCES", {"required_vram_mb": 6000}),
        (sized(ON_CPU, 5000), [node(disk_free_bytes=4000 * MB)], "INSUFFICIENT_RESOURCES", {}),
    ],
)  # fmt: skip
def test_no_place_is_refused_with_its_numbers(
    need: Need, nodes: list[Node], code: str, details: dict[str, object]
) -> None:
    error = refusal(decide(need, nodes))
    assert error.code == code
    assert error.details | details == error.details
    assert [told["node"] for told in error.details["nodes"]] == [one.name for one in nodes]
    assert json.loads(msgspec.json.encode(error.details))["nodes"][0]["obstacle"]


_DEVICES = st.lists(
    st.builds(
        Device, st.integers(0, 3), st.integers(0, 20_000).map(lambda amount: amount * MB),
        st.none() | st.integers(20, 100),
    ),
    max_size=3, unique_by=lambda device: device.index,
)  # fmt: skip
_NODES = st.lists(
    st.builds(
        Node, st.sampled_from("abcdefgh"), st.integers(-1000, 20_000).map(lambda amount: amount * MB),
        st.integers(0, 20_000).map(lambda amount: amount * MB), _DEVICES.map(tuple),
        st.sampled_from([frozenset({Backend.CPU}), BOTH, frozenset()]), st.booleans(), st.integers(0, 5),
        st.integers(0, 3), st.booleans(),
    ),
    max_size=6, unique_by=lambda one: one.name,
)  # fmt: skip
_NEEDS = st.builds(
    Need, st.just(REFERENCE), st.sampled_from(Backend), st.none() | st.integers(0, 3),
    st.none() | st.integers(1, 20_000).map(lambda amount: amount * MB), st.sampled_from(Strategy),
    measured_bytes=st.none() | st.integers(1, 1 << 35),
)  # fmt: skip


@given(_NEEDS, _NODES, st.randoms())
def test_a_choice_fits_and_no_fit_is_said_of_every_node(need: Need, nodes: list[Node], random: Random) -> None:
    decision = decide(need, nodes)
    assert {option.node for option in decision.options} == {one.name for one in nodes}
    shuffled = list(nodes)
    random.shuffle(shuffled)
    assert decide(need, shuffled).chosen == decision.chosen
    if decision.chosen is None:
        assert all(option.obstacle for option in decision.options)
        if nodes:
            assert refusal(decision).status in (400, 503)
        return
    place = next(one for one in nodes if one.name == decision.chosen.node)
    required = need.required_bytes or -(1 << 50)
    assert need.backend in place.backends
    if need.backend is Backend.CUDA:
        device = next(one for one in place.devices if one.index == decision.chosen.device)
        assert need.device in (None, device.index)
        assert device.free_bytes >= required
        assert (device.temperature_c or 0) <= 80
    else:
        assert place.ram_free_bytes >= required
    if need.size_bytes is not None and not place.has_model:
        assert place.disk_free_bytes >= need.size_bytes


# by a queen


@contextlib.asynccontextmanager
async def hive_with(*sizes_mb: int, backends: list[str] | None = None) -> AsyncIterator[HivePartner]:
    """A hive whose catalogue has the model once for each size, and that says which backends start there."""
    partner = HivePartner()
    rows = [ModelRow("repo-1", Provider.HF, REFERENCE, "/m", size * MB, "", 0.0, 0.0) for size in sizes_mb]
    app = partner.app()

    async def models(request: web.Request) -> web.StreamResponse:
        partner.surveyed += 1
        return web.Response(body=msgspec.json.encode(ModelRows(rows, 0, 0)), content_type="application/json")

    async def capabilities(request: web.Request) -> web.StreamResponse:
        return web.json_response({"backends": backends or ["cpu"]})

    app.router.add_get("/v1/models", models)
    app.router.add_get("/v1/capabilities", capabilities)
    async with served(app) as partner.url:
        yield partner


async def spawn(queen: RunningQueen, **more: Fields) -> tuple[int, Any]:
    body = {"worker_id": "new", "model_ref": REFERENCE} | more
    async with queen.client.post(queen.url + "/v2/workers/spawn", json=body) as response:
        return response.status, await response.json()


async def test_a_spawn_without_a_hive_goes_where_the_model_is_and_says_why(queen: RunningQueen) -> None:
    async with hive_with() as near, hive_with(100) as far:
        await queen.beat(hive="near", api_url=near.url)
        await queen.beat(hive="far", api_url=far.url)
        status, answer = await spawn(queen)
        assert (status, answer["hive_id"], near.spawned) == (202, "far", [])
        assert far.spawned[0]["model_ref"] == REFERENCE
        await queen.tell(report(WorkerState.LOADING, hive="far", worker="new", url=None))
        _, why = await queen.get("/v2/explain/far/new")
        assert why["placement"]["required_bytes"] == 120 * MB
        assert why["placement"]["chosen"]["has_model"]
        assert {option["node"] for option in why["placement"]["options"]} == {"near", "far"}
        assert await queen.metric('queen_rbee_worker_placements_total{outcome="placed"}') == 1


async def test_what_was_promised_is_not_promised_again(queen: RunningQueen) -> None:
    room = MACHINE.ram_available_bytes // MB
    async with hive_with(int(room * 0.6)) as near:
        await queen.beat(hive="near", api_url=near.url)
        assert (await spawn(queen))[0] == 202
        status, answer = await spawn(queen, worker_id="another")
        assert (status, answer["error"]["code"]) == (503, "INSUFFICIENT_RAM")
        assert answer["error"]["details"]["available_ram_mb"] < room // 2
        assert len(near.spawned) == 1
        await queen.tell(report(hive="near", worker="new"))  # it is ready: what it took shows in the machine's facts
        assert (await spawn(queen, worker_id="another"))[0] == 202


async def test_a_refused_start_gives_its_memory_back(queen: RunningQueen) -> None:
    async with hive_with(int(MACHINE.ram_available_bytes / MB * 0.6)) as near:
        await queen.beat(hive="near", api_url=near.url)
        near.status, near.answer = 409, b'{"error": {"code": "CONFLICT", "message": "no", "details": {}}}'
        assert (await spawn(queen))[0] == 409
        near.status = 202
        assert (await spawn(queen))[0] == 202


async def test_a_gpu_that_no_provider_starts_on_is_none(queen: RunningQueen) -> None:
    gpu = GpuFacts(1, "H100", "GPU-1", 80_000 * MB, 0, 50)
    machine = msgspec.structs.replace(MACHINE, gpus=[gpu])
    async with hive_with() as broken, hive_with(backends=["cpu", "cuda"]) as good:
        await queen.beat(hive="a-broken", api_url=broken.url, machine=machine)
        status, answer = await spawn(queen, backend="cuda")
        assert (status, answer["error"]["code"]) == (400, "BACKEND_UNAVAILABLE")
        await queen.beat(hive="good", api_url=good.url, machine=machine)
        assert (await spawn(queen, backend="cuda"))[1]["hive_id"] == "good"
        assert good.spawned[0]["device"] == 1
        status, answer = await spawn(queen, worker_id="other", backend="tpu")
        assert (status, answer["error"]["details"]["accepted"]) == (400, ["cpu", "cuda"])


async def test_a_pinned_node_is_asked_whether_it_fits(queen: RunningQueen) -> None:
    async with hive_with() as near, hive_with(1_000_000) as far:
        await queen.beat(hive="near", api_url=near.url)
        await queen.beat(hive="far", api_url=far.url)
        status, answer = await spawn(queen, hive_id="far")
        assert (status, answer["error"]["code"]) == (503, "INSUFFICIENT_RAM")
        assert [told["node"] for told in answer["error"]["details"]["nodes"]] == ["far"]
        assert (await spawn(queen, hive_id="none"))[1]["error"]["code"] == "HIVE_UNREACHABLE"
