"""Models that the configuration declares: placed by the first request, once for all that wait."""

import asyncio
from typing import Any

import msgspec
import pytest
from tests.unit.queen.conftest import Configured, RunningQueen
from tests.unit.queen.partners import MACHINE, HivePartner, WorkerPartner, report, until
from tests.unit.queen.test_placement import REFERENCE, hive_with

from rbee.queen.config import check_models
from rbee.queen.placement.replicas import worker_id_of
from rbee.wire.declarations import DeclaredModel
from rbee.wire.errors import ConfigError
from rbee.wire.messages import WorkerReport, WorkerState
from rbee.wire.names import WORKER_ID

NAME = "org/cold:7b"
MODELS = {NAME: {"reference": REFERENCE, "slots": 2, "idle_limit_s": 60}}
WORKER = worker_id_of(NAME, msgspec.convert(MODELS[NAME], DeclaredModel))


def placed(state: WorkerState, url: str | None = None, **more: Any) -> WorkerReport:  # noqa: ANN401
    return report(state, worker=WORKER, url=url, model=NAME, **more)


async def ask(queen: RunningQueen, model: str = NAME, **headers: str) -> tuple[int, Any]:
    async with queen.client.post(queen.url + "/v1/completions", json={"model": model}, headers=headers) as response:
        return response.status, await response.json()


async def test_many_that_ask_at_once_have_one_worker_placed(configured: Configured, worker: WorkerPartner) -> None:
    async with configured(models=MODELS) as queen, hive_with(100) as hive:
        await queen.beat(api_url=hive.url)
        waiting = [asyncio.create_task(ask(queen)) for _ in range(20)]
        await until(lambda: hive.spawned)
        await until(lambda: queen.core.admission.waiting == 20)
        await queen.tell(placed(WorkerState.LOADING))
        await queen.tell(placed(WorkerState.IDLE, worker.url))
        assert {status for status, _ in await asyncio.gather(*waiting)} == {200}
        assert [spawned["worker_id"] for spawned in hive.spawned] == [WORKER]
        asked = {"model_ref": REFERENCE, "name": NAME, "slots": 2, "idle_limit_s": 60, "ephemeral": True}
        assert hive.spawned[0] | asked == hive.spawned[0]
        await queen.tell(placed(WorkerState.STOPPED))  # idle past its limit: it is placed anew
        again = asyncio.create_task(ask(queen))
        await until(lambda: len(hive.spawned) == 2)
        assert hive.spawned[1] == hive.spawned[0]
        await queen.tell(placed(WorkerState.LOADING))
        await queen.tell(placed(WorkerState.IDLE, worker.url))
        assert (await again)[0] == 200


async def test_a_start_whose_client_has_left_is_told_as_under_way_until_a_hive_tells_of_it(
    configured: Configured,
) -> None:
    async with configured(models=MODELS) as queen, hive_with(100) as hive:
        await queen.beat(api_url=hive.url)
        assert (await queen.get("/health"))[1]["starting"] == 0
        asking = asyncio.create_task(ask(queen))
        await until(lambda: hive.spawned)
        asking.cancel()
        await until(lambda: queen.core.admission.waiting == 0)
        assert (await queen.get("/health"))[1]["starting"] == 1
        await queen.tell(placed(WorkerState.LOADING))
        await until(lambda: queen.core.starting == 0)


async def test_a_crash_that_is_reported_twice_does_not_end_the_wait_for_its_successor(
    configured: Configured, worker: WorkerPartner
) -> None:
    async with configured(models=MODELS) as queen, hive_with(100) as hive:
        crashed = placed(WorkerState.FAILED, reason="crashed: SIGKILL", invocation_id="first")
        await queen.beat(crashed, api_url=hive.url)
        waiting = asyncio.create_task(ask(queen))
        await until(lambda: hive.spawned)
        await queen.tell(msgspec.structs.replace(crashed, restarts=1))
        await queen.tell(placed(WorkerState.LOADING, invocation_id="second"))
        await queen.tell(placed(WorkerState.IDLE, worker.url, invocation_id="second"))
        assert (await waiting)[0] == 200
        assert len(hive.spawned) == 1


async def test_all_that_wait_hear_that_it_fits_nowhere(configured: Configured) -> None:
    async with configured(models=MODELS) as queen, hive_with(1_000_000) as hive:
        await queen.beat(api_url=hive.url)
        for status, body in await asyncio.gather(*(ask(queen) for _ in range(5))):
            assert (status, body["error"]["code"]) == (503, "INSUFFICIENT_RAM")
            assert body["error"]["details"]["required_ram_mb"] == 1_200_000
            assert body["error"]["details"]["nodes"][0]["node"] == "bee"
        assert hive.spawned == []
        assert queen.core.admission.waiting == 0


async def test_a_refused_start_is_told_and_tried_anew_by_the_next(configured: Configured, hive: HivePartner) -> None:
    async with configured(models=MODELS) as queen:
        status, body = await ask(queen)
        assert (status, body["error"]["code"]) == (503, "HIVE_UNREACHABLE")
        await queen.beat(api_url=hive.url)
        hive.status, hive.answer = 400, b'{"error": {"code": "INVALID_MODEL_REFERENCE", "message": "no"}}'
        for count in (1, 2):
            status, body = await ask(queen)
            assert (status, body["error"]["code"]) == (400, "INVALID_MODEL_REFERENCE")
            assert len(hive.spawned) == count


async def test_who_does_not_wait_is_told_that_it_is_placed(configured: Configured, hive: HivePartner) -> None:
    async with configured(models=MODELS) as queen:
        await queen.beat(api_url=hive.url)
        status, body = await ask(queen, Prefer="respond-async")
        assert (status, body["error"]["code"]) == (503, "MODEL_LOADING")
        assert body["error"]["details"]["loading"]["stage"] == "placing"
        await until(lambda: hive.spawned)
        await queen.tell(placed(WorkerState.FAILED, reason="DOWNLOAD_FAILED: gone"))


async def test_a_declared_model_is_listed_and_not_started_for_a_look(configured: Configured, hive: HivePartner) -> None:
    async with configured(models=MODELS, aliases={"short": NAME}) as queen:
        await queen.beat(api_url=hive.url)
        _, listing = await queen.get("/v1/models")
        assert [(row["id"], row["state"], row["workers"]) for row in listing["data"]] == [
            (NAME, "stopped", 0), ("short", "stopped", 0),
        ]  # fmt: skip
        assert (await queen.get(f"/v2/models/{NAME}/ready"))[0] == 503
        assert (await queen.get(f"/v2/models/{NAME}"))[0] == 503
        assert hive.spawned == []


async def test_a_reload_declares_and_forgets(queen: RunningQueen) -> None:
    assert (await ask(queen))[0] == 404
    declared = {NAME: DeclaredModel(REFERENCE)}
    queen.core.reconfigure(msgspec.structs.replace(queen.core.config, models=declared))
    assert (await ask(queen))[1]["error"]["code"] == "HIVE_UNREACHABLE"
    queen.core.reconfigure(msgspec.structs.replace(queen.core.config, models={}))
    assert (await ask(queen))[0] == 404


def test_a_worker_id_is_one_of_systemds_and_follows_the_declaration() -> None:
    declared = DeclaredModel(REFERENCE)
    for name in (NAME, "a" * 128, "x_/:."):
        assert WORKER_ID.fullmatch(worker_id_of(name, declared))
    other = msgspec.structs.replace(declared, slots=8)
    assert len({worker_id_of(*of) for of in ((NAME, declared), (NAME, other), ("org/cold.7b", declared))}) == 3


def test_a_wrong_reference_is_named_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match=r"models.a.reference: ") as caught:
        check_models({"a": DeclaredModel("https://user:secret@host/m")})
    assert "secret" not in caught.value.message


async def test_a_model_runs_where_its_labels_are(configured: Configured) -> None:
    models = {NAME: {**MODELS[NAME], "labels": ["fast-disk"]}}
    async with configured(models=models) as queen, hive_with(100) as plain, hive_with(100) as fast:
        await queen.beat(hive="a-plain", api_url=plain.url)
        status, body = await ask(queen)
        assert (status, body["error"]["code"]) == (503, "INSUFFICIENT_RESOURCES")
        assert body["error"]["details"] == {"labels": ["fast-disk"], "nodes": {"a-plain": []}}
        labelled = msgspec.structs.replace(MACHINE, labels=["fast-disk", "gpu"])
        await queen.beat(hive="fast", api_url=fast.url, machine=labelled)
        asking = asyncio.create_task(ask(queen, Prefer="respond-async"))
        await until(lambda: fast.spawned)
        assert (await asking)[0] == 503
        assert plain.spawned == []
