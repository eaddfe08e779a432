"""Every answer says where it ran and where its time went, and a recent request can be looked at step by step."""

import asyncio
import io
import json
import uuid
from typing import Any

import pytest
from tests.unit.queen.conftest import Configured, RunningQueen
from tests.unit.queen.partners import MODEL, WorkerPartner, report, until

from rbee.queen.requests.explain import NO_WORKER, Recent, Trail

CHAT = "/v1/chat/completions"
TIMES = ("X-Rbee-Queue-Ms", "X-Rbee-Overhead-Ms")


async def ask(queen: RunningQueen, **fields: Any) -> Any:  # noqa: ANN401
    body = {"model": MODEL} | fields
    async with queen.client.post(queen.url + CHAT, json=body) as response:
        await response.read()
        return response


async def explain(queen: RunningQueen, name: str) -> dict[str, Any]:
    status, found = await queen.get(f"/v2/explain/{name}")
    assert status == 200, found
    return dict(found)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_names_its_worker_and_times(serving: RunningQueen, stream: bool) -> None:
    response = await ask(serving, stream=stream)
    assert response.headers["X-Rbee-Worker"] == "bee/w"
    assert all(0 <= float(response.headers[name]) < 5000 for name in TIMES)
    assert uuid.UUID(response.headers["X-Correlation-Id"])


async def test_the_overhead_is_neither_the_wait_nor_the_worker(serving: RunningQueen, worker: WorkerPartner) -> None:
    worker.hold = asyncio.Event()
    running = asyncio.create_task(ask(serving))
    await until(lambda: worker.running == 1)
    await asyncio.sleep(0.5)
    worker.hold.set()
    response = await running
    found = await explain(serving, response.headers["X-Correlation-Id"])
    assert found["worker_ms"] >= 500
    assert found["overhead_ms"] < found["worker_ms"]
    assert found["total_ms"] >= found["worker_ms"]
    assert float(response.headers["X-Rbee-Overhead-Ms"]) == found["overhead_ms"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/health", 200),
        ("GET", "/v1/models", 200),
        ("GET", "/nowhere", 404),
        ("POST", CHAT, 400),
        ("PUT", CHAT, 405),
        ("GET", "/v2/models/talk/versions/2", 404),
    ],
)
async def test_answers_without_a_worker_say_so(serving: RunningQueen, method: str, path: str, status: int) -> None:
    async with serving.client.request(method, serving.url + path) as response:
        assert response.status == status
        assert response.headers["X-Rbee-Worker"] == NO_WORKER
        assert all(float(response.headers[name]) >= 0 for name in TIMES)
        assert uuid.UUID(response.headers["X-Correlation-Id"])


async def test_an_unknown_model_and_a_missing_token_carry_the_headers(serving: RunningQueen) -> None:
    response = await ask(serving, model="nobody")
    assert (response.status, response.headers["X-Rbee-Worker"]) == (404, NO_WORKER)
    found = await explain(serving, response.headers["X-Correlation-Id"])
    assert (found["outcome"], found["code"], found["asked"]) == ("error", "MODEL_NOT_FOUND", "nobody")
    async with serving.client.post(serving.url + CHAT, headers={"Authorization": "Bearer wrong"}) as denied:
        assert denied.status == 401
        assert {"X-Rbee-Worker", *TIMES} <= set(denied.headers)


async def test_a_retry_is_told_with_its_reason(
    queen: RunningQueen, worker: WorkerPartner, second: WorkerPartner
) -> None:
    await queen.tell(report(url=worker.url))
    busy = {"error": {"code": "ALL_SLOTS_BUSY", "message": "full", "details": {}, "correlation_id": None}}
    worker.refuse_with = [(503, json.dumps(busy).encode())]
    await queen.tell(report(worker="x", url=second.url))
    response = await ask(queen)
    found = await explain(queen, response.headers["X-Correlation-Id"])
    whats = [step["what"] for step in found["steps"]]
    assert found["outcome"] == "ok"
    assert whats == ["placed", "refused", "placed", "answers"]
    assert (found["steps"][1]["worker"], found["steps"][1]["status"]) == ("bee/w", 503)
    assert {one["worker"] for one in found["steps"][0]["candidates"]} == {"bee/w", "bee/x"}
    assert found["caller"].startswith("token:")


async def test_a_worker_tells_why_it_gets_none(serving: RunningQueen) -> None:
    await ask(serving)
    async with serving.client.patch(serving.url + "/v2/workers/bee/w", json={"state": "busy"}) as response:
        assert response.status == 200
    for name in ("w", "bee/w"):
        found = await explain(serving, name)
        assert (found["held"], found["routable"]) == (True, False)
        assert [one["asked"] for one in found["requests"]] == [MODEL]
    status, _ = await serving.get("/v2/explain/nothing-of-that-name")
    assert status == 404


async def test_a_typed_request_is_found_by_its_own_id(serving: RunningQueen) -> None:
    request_id = str(uuid.uuid4())
    async with serving.client.post(
        serving.url + "/v1/inference", json={"model": MODEL}, headers={"X-Request-Id": request_id}
    ) as response:
        await response.read()
    found = await explain(serving, request_id)
    assert (found["request_id"], found["outcome"], found["worker"]) == (request_id, "ok", "bee/w")


def test_only_the_latest_are_kept() -> None:
    recent = Recent(most=3)
    for name in ("a", "b", "a", "c", "d"):
        recent.keep(Trail(CHAT, name, None))
    assert recent.find("b") is None
    assert all(recent.find(name) is not None for name in ("a", "c", "d"))


async def test_the_body_limit_is_that_of_the_route(configured: Configured, worker: WorkerPartner) -> None:
    async with configured(requests={"max_body_mb": 2}) as queen:
        await queen.tell(report(url=worker.url))
        for path, size, status in (
            (CHAT, 1_500_000, 200),
            (CHAT, 3_000_000, 413),
            ("/v2/workers/spawn", 1_500_000, 413),
        ):
            body = json.dumps({"model": MODEL, "filler": "x" * size}).encode()
            async with queen.client.post(queen.url + path, data=io.BytesIO(body)) as response:
                assert response.status == status, (path, size)
                if path == CHAT and status == 413:
                    assert (await response.json())["error"]["type"] == "invalid_request_error"


async def test_open_inference_paths_with_a_version(serving: RunningQueen, worker: WorkerPartner) -> None:
    head = {"Inference-Header-Content-Length": "2", "Content-Type": "application/octet-stream"}
    url = f"{serving.url}/v2/models/{MODEL}/versions/1"
    async with serving.client.get(url + "/ready") as response:
        assert response.status == 200
    async with serving.client.post(url + "/infer", data=b"{}\x00\x01", headers=head) as response:
        assert response.status in (200, 500), "the partner reads JSON only"
    assert worker.bodies == [b"{}\x00\x01"]
    assert worker.headers[0]["Inference-Header-Content-Length"] == "2"
    async with serving.client.post(f"{serving.url}/v2/models/{MODEL}/versions/7/infer", data=b"{}") as response:
        assert response.status == 404
