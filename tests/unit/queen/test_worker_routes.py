"""What administrators and clients see and do: workers, aliases, models, health, events."""

import asyncio
import json
from typing import Any

import aiohttp
import pytest
from tests.unit.queen.conftest import RunningQueen
from tests.unit.queen.partners import MODEL, HivePartner, WorkerPartner, report

from rbee import __version__
from rbee.queen.events import EventHub
from rbee.wire.messages import WorkerState
from rbee.wire.sse import SseDecoder
from rbee.wire.worker_spec import Backend

LIST = "/v2/workers/list"


@pytest.fixture
async def several(queen: RunningQueen) -> RunningQueen:
    await queen.beat(
        report(worker="gpu0", backend=Backend.CUDA, device=0),
        report(worker="gpu1", backend=Backend.CUDA, device=1, model="other"),
        report(WorkerState.STOPPED, worker="cpu", url=None, capabilities=["avx512"]),
    )
    await queen.tell(report(hive="far", worker="gpu0", backend=Backend.CUDA, device=2))
    return queen


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", ["bee/cpu", "bee/gpu0", "bee/gpu1", "far/gpu0"]),
        ("?capability=cuda:0", ["bee/gpu0"]),
        ("?capability=cuda", ["bee/gpu0", "bee/gpu1", "far/gpu0"]),
        ("?capability=cpu", ["bee/cpu"]),
        ("?capability=avx512", ["bee/cpu"]),
        ("?state=stopped", ["bee/cpu"]),
        ("?model=other", ["bee/gpu1"]),
        ("?hive=far", ["far/gpu0"]),
        ("?hive=far&capability=cuda:0", []),
    ],
)
async def test_the_list_and_its_filters(several: RunningQueen, query: str, found: list[str]) -> None:
    status, listing = await several.get(LIST + query)
    assert status == 200
    assert [f"{row['hive_id']}/{row['worker_id']}" for row in listing["workers"]] == found
    for row in listing["workers"]:
        assert {"worker_id", "hive_id", "url", "model_ref", "backend", "device", "state", "slots_total"} <= set(row)
        assert {"slots_available", "capabilities"} <= set(row)


async def test_one_worker_is_shown_patched_and_deleted(serving: RunningQueen) -> None:
    url = f"{serving.url}/v2/workers/bee/w"
    assert (await serving.get("/v2/workers/bee/w"))[1]["state"] == "idle"
    states = ["busy", "idle", "busy"]
    for state in states:
        async with serving.client.patch(url, json={"state": state}) as response:
            assert (response.status, (await response.json())["state"]) == (200, state)
    async with asyncio.TaskGroup() as group:
        for _ in range(2):
            group.create_task(_patch(serving, url, "busy"))
    assert serving.state() is WorkerState.BUSY
    async with serving.client.patch(url, json={"state": "flying"}) as response:
        assert (await response.json())["error"]["details"]["field"] == "state"
    async with serving.client.delete(url) as response:
        assert response.status == 204
    assert not await serving.rows()
    async with serving.client.delete(url) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "WORKER_NOT_FOUND")
    assert (await serving.get("/v2/workers/bee/w"))[0] == 404


async def _patch(queen: RunningQueen, url: str, state: str) -> None:
    async with queen.client.patch(url, json={"state": state}) as response:
        assert response.status == 200


async def test_a_heartbeat_after_a_patch_is_applied_after_it(serving: RunningQueen, worker: WorkerPartner) -> None:
    await _patch(serving, f"{serving.url}/v2/workers/bee/w", "busy")
    await serving.beat(report(url=worker.url, status_text="later"))
    row = (await serving.rows())["bee/w"]
    assert (row["state"], row["status_text"]) == ("busy", "later")


async def test_spawn_and_shutdown_go_to_the_hive(queen: RunningQueen, hive: HivePartner) -> None:
    body = {"worker_id": "new", "model_ref": "file:///models/talk", "backend": "cpu", "slots": 2}
    async with queen.client.post(queen.url + "/v2/workers/spawn", json=body) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (503, "HIVE_UNREACHABLE")
    await queen.beat(report(worker="w"), api_url=hive.url)
    async with queen.client.post(queen.url + "/v2/workers/spawn", json=body | {"hive_id": "bee"}) as response:
        assert response.status == 202
        assert (await response.json())["answer"] == {"worker_id": "w", "state": "loading"}
    assert hive.spawned[0] | body == hive.spawned[0]
    assert hive.spawned[0]["hive_id"] is None
    async with queen.client.post(queen.url + "/v2/workers/shutdown", json={"worker_id": "w"}) as response:
        assert response.status == 202
    assert hive.stopped == ["w"]
    await queen.beat(hive="far", api_url=hive.url)
    async with queen.client.post(queen.url + "/v2/workers/spawn", json=body) as response:
        assert (response.status, (await response.json())["error"]["details"]["hives"]) == (409, ["bee", "far"])


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("spawn", {"worker_id": "a b"}, "worker_id"),
        ("spawn", {"worker_id": "a", "slots": 0}, "slots"),
        ("spawn", {"worker_id": "a", "model_ref": "/etc/passwd"}, "model_ref"),
        ("shutdown", {}, "body"),
        ("register", {"worker_id": "a", "url": "http://h:1", "model_ref": "x", "backend": "tpu"}, "backend"),
    ],
)
async def test_bad_requests_name_their_field(queen: RunningQueen, path: str, body: dict[str, Any], field: str) -> None:
    async with queen.client.post(f"{queen.url}/v2/workers/{path}", json=body) as response:
        assert response.status == 400
        error = (await response.json())["error"]
        assert error["details"]["field"] in (field, "worker_id")


async def test_a_worker_registered_by_hand_serves(queen: RunningQueen, worker: WorkerPartner) -> None:
    body = {"worker_id": "hand", "url": worker.url, "model_ref": "file:///models/mine", "backend": "cpu"}
    async with queen.client.post(queen.url + "/v2/workers/register", json=body) as response:
        assert (response.status, (await response.json())["model"]) == (200, "mine")
    async with queen.client.post(queen.url + "/v1/completions", json={"model": "mine"}) as response:
        assert (response.status, response.headers["X-Rbee-Worker"]) == (200, "external/hand")


async def test_models_are_listed_with_state_and_aliases(several: RunningQueen, worker: WorkerPartner) -> None:
    async with several.client.put(several.url + "/v2/aliases/org/best:7b", json={"model": MODEL}) as response:
        assert response.status == 200
    _, listing = await several.get("/v1/models")
    found = {
        model["id"]: (model["state"], model["workers"], model["ready"], model["root"]) for model in listing["data"]
    }
    assert found == {
        "org/best:7b": ("idle", 3, 2, MODEL),
        "other": ("idle", 1, 1, "other"),
        MODEL: ("idle", 3, 2, MODEL),
    }
    assert listing["object"] == "list"
    for model in listing["data"]:
        assert await several.get(f"/v1/models/{model['id']}") == (200, model)
    status, answer = await several.get("/v1/models/nobody")
    assert (status, answer["error"]["code"]) == (404, "MODEL_NOT_FOUND")
    assert (await several.get("/v2/aliases"))[1] == {"aliases": {"org/best:7b": MODEL}}
    for _ in range(2):
        async with several.client.delete(several.url + "/v2/aliases/org/best:7b") as response:
            assert response.status == 204
    assert (await several.get("/v2/aliases"))[1] == {"aliases": {}}


async def test_open_inference_metadata(serving: RunningQueen, hive: HivePartner) -> None:
    assert (await serving.get("/v2"))[1]["version"] == __version__
    assert await serving.get("/v2/health/live") == (200, {"live": True})
    assert await serving.get("/v2/health/ready") == (200, {"ready": True})
    assert await serving.get(f"/v2/models/{MODEL}/ready") == (200, {"name": MODEL, "ready": True})
    assert await serving.get(f"/v2/models/{MODEL}") == (200, {"name": MODEL, "inputs": []})
    assert (await serving.get("/v2/models/nothing/ready"))[0] == (await serving.get("/v2/models/nothing"))[0] == 404
    await serving.tell(report(WorkerState.LOADING, url=None))
    assert await serving.get(f"/v2/models/{MODEL}/ready") == (503, {"name": MODEL, "ready": False})
    status, body = await serving.get(f"/v2/models/{MODEL}")
    assert (status, body["error"]["code"]) == (503, "MODEL_LOADING")
    await serving.beat(report(WorkerState.STOPPED, url=None), api_url=hive.url)
    assert (await serving.get(f"/v2/models/{MODEL}"))[0] == 503
    assert hive.spawned == []


async def test_health_is_open_and_deep_health_asks(serving: RunningQueen, hive: HivePartner) -> None:
    async with serving.client.get(serving.url + "/health", headers={"Authorization": ""}) as response:
        assert (response.status, (await response.json())["status"]) == (200, "ok")
    _, deep = await serving.get("/health?deep=1")
    assert deep["degraded"] == ["hive bee: hive bee has not said where it can be reached: check that it runs and "
                                "reports here"]  # fmt: skip
    assert deep["deep_workers"][0]["reachable"]
    await asyncio.sleep(1.1)
    row = (await serving.rows())["bee/w"]
    await serving.beat(report(url=row["url"]), report(worker="dead"), api_url=hive.url)
    _, deep = await serving.get("/health?deep=1")
    assert deep["degraded"] == ["worker bee/dead does not answer"]
    assert deep["deep_hives"][0]["problem"] == ""
    _, health = await serving.get("/v2/workers/health")
    assert {one["worker_id"]: one["reachable"] for one in health["workers"]} == {"w": True, "dead": False}


async def test_events_tell_every_change(queen: RunningQueen, worker: WorkerPartner) -> None:
    decoder = SseDecoder()
    seen: list[Any] = []
    async with queen.client.get(queen.url + "/v2/events") as response:
        chunks = response.content.iter_any()
        assert next(iter(decoder.feed(await anext(chunks)))).event == "hello"
        await queen.tell(report(WorkerState.LOADING, url=None))
        await queen.tell(report(url=worker.url))
        async with queen.client.post(queen.url + "/v1/completions", json={"model": MODEL}) as answer:
            assert answer.status == 200
        async with queen.client.delete(queen.url + "/v2/workers/bee/w") as answer:
            assert answer.status == 204
        while len(seen) < 5:
            seen += [json.loads(event.data) for event in decoder.feed(await anext(chunks))]
    assert [event["report"]["state"] for event in seen] == ["loading", "idle", "busy", "idle", "idle"]
    assert [event["removed"] for event in seen] == [False] * 4 + [True]
    clocks = [event["monotonic_us"] for event in seen]
    assert clocks == sorted(clocks)


async def test_a_client_registers_no_worker_of_another_machine(queen: RunningQueen) -> None:
    body = {"worker_id": "w", "url": "http://198.51.100.7:8081", "model_ref": "file:///m/tiny", "backend": "cpu"}
    async with queen.client.post(queen.url + "/v2/workers/register", json=body) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (403, "FORBIDDEN")
    assert not await queen.rows()
    socket = queen.core.config.run_dir + "/queen.sock"
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket)) as administrator,
        administrator.post("http://queen/v2/workers/register", json=body) as response,
    ):
        assert response.status == 200


async def test_aliases_are_bounded(queen: RunningQueen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbee.queen.routes.workers.MOST_ALIASES", 2)
    statuses = []
    for alias in ("a", "b", "c", "a"):
        async with queen.client.put(f"{queen.url}/v2/aliases/{alias}", json={"model": MODEL}) as response:
            statuses.append(response.status)
    assert statuses == [200, 200, 429, 200]


async def test_a_hives_first_report_is_an_event_and_the_next_is_none(
    queen: RunningQueen, worker: WorkerPartner
) -> None:
    decoder, told = SseDecoder(), []
    async with queen.client.get(queen.url + "/v2/events") as response:
        chunks = response.content.iter_any()
        for url in (None, worker.url):
            await queen.beat(report(url=url), report(worker="x", url=url))
        while sum(name == "worker" for name, _ in told) < 4:
            told += [(event.event, event.data) for event in decoder.feed(await anext(chunks))]
    hives = [json.loads(data) for name, data in told if name == "hive"]
    assert [(event["hive_id"], event["what"]) for event in hives] == [("bee", "first report")]


async def test_a_listener_that_does_not_keep_up_is_let_go() -> None:
    hub = EventHub(limit=3)
    with hub.listen() as slow, hub.listen() as quick:
        for number in range(4):
            hub.publish("worker", number)
            assert await quick.next() == f"event: worker\ndata: {number}\n\n".encode()
        assert slow.dropped
        last = await slow.next()
        assert last is not None
        assert b"event: dropped" in last
        assert await slow.next() is None
    assert not hub.listened


async def test_metrics_are_legal_and_scraping_changes_nothing(serving: RunningQueen) -> None:
    async with serving.client.get(serving.url + "/metrics", headers={"Authorization": ""}) as response:
        assert response.status == 200
        text = await response.text()
    for name in ("requests_total", "worker_ready_notifications_received_total", "readiness_fallback_polls_total"):
        assert f"# HELP queen_rbee_{name}" in text
        assert f"\nqueen_rbee_{name} " in text
    async with serving.client.get(serving.url + "/metrics") as response:
        again = await response.text()

    def samples(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("queen_rbee_") and "/metrics" not in line]

    assert [line for line in samples(again) if "_http_" not in line] == [
        line for line in samples(text) if "_http_" not in line
    ]
