"""The typed stream and tasks: every event in its place, exactly one end, and a cancel that reaches the worker."""

import asyncio
import json
import uuid
from typing import Any

import pytest
from tests.unit.queen.conftest import Configured, RunningQueen
from tests.unit.queen.partners import MODEL, HivePartner, WorkerPartner, report, until

from rbee.wire.messages import Progress, WorkerState
from rbee.wire.sse import SseDecoder

BODY = {"model": MODEL, "prompt": "hello"}


def decode(raw: bytes) -> list[tuple[str, Any]]:
    return [
        (event.event, event.data if event.data == b"[DONE]" else json.loads(event.data))
        for event in SseDecoder().feed(raw)
    ]


async def infer(queen: RunningQueen, path: str = "/v1/inference", **headers: str) -> tuple[int, list[tuple[str, Any]]]:
    async with queen.client.post(queen.url + path, json=BODY, headers=headers) as response:
        raw = await response.read()
        return response.status, decode(raw) if response.content_type == "text/event-stream" else [("", json.loads(raw))]


async def test_the_whole_story_of_a_warm_model(serving: RunningQueen, worker: WorkerPartner) -> None:
    status, events = await infer(serving)
    assert status == 200
    names = [name for name, _ in events]
    assert names == ["queued", "placing", "started", "token", "token", "token", "metrics", "end", "message"]
    queued = events[0][1]
    assert queued["model"] == MODEL
    assert events[1][1]["worker_id"] == "w"
    assert events[2][1]["request_id"] == queued["request_id"] == worker.headers[0]["X-Request-Id"]
    assert events[-1][1] == b"[DONE]"


async def test_the_whole_story_of_a_cold_model(queen: RunningQueen, worker: WorkerPartner, hive: HivePartner) -> None:
    await queen.beat(report(WorkerState.STOPPED, url=None), api_url=hive.url)
    running = asyncio.create_task(infer(queen))
    await until(lambda: hive.spawned)
    for done in (10, 20):
        await queen.tell(report(WorkerState.LOADING, url=None, progress=Progress("weights", done, 20, "bytes")))
        await asyncio.sleep(0.02)
    await queen.tell(report(url=worker.url))
    status, events = await running
    names = [name for name, _ in events]
    assert status == 200
    assert names[:4] == ["queued", "placing", "loading", "loading"]
    assert names[4:] == ["started", "token", "token", "token", "metrics", "end", "message"]
    assert [(data["done"], data["total"]) for name, data in events if name == "loading"] == [(10, 20), (20, 20)]


async def test_refusals_before_the_first_byte_are_answers(serving: RunningQueen, worker: WorkerPartner) -> None:
    body = b'{"error":{"code":"INVALID_REQUEST","message":"this model does not generate","details":{}}}'
    worker.refuse_with = [(400, body)]
    status, events = await infer(serving)
    assert (status, events[0][1]) == (400, json.loads(body))
    async with serving.client.post(serving.url + "/v1/inference", json={"model": "nothing"}) as response:
        assert response.status == 404
        error = (await response.json())["error"]
        assert "type" not in error


async def test_refusals_after_the_first_byte_are_events(queen: RunningQueen, worker: WorkerPartner) -> None:
    worker.refuse_with = [(400, b'{"error":{"code":"INVALID_REQUEST","message":"no","details":{}}}')]
    await queen.tell(report(WorkerState.LOADING, url=None))
    running = asyncio.create_task(infer(queen))
    await until(lambda: queen.core.admission.waiting == 1)
    await asyncio.sleep(0.02)
    await queen.tell(report(url=worker.url))
    status, events = await running
    assert status == 200
    assert [name for name, _ in events] == ["queued", "error", "message"]
    assert events[1][1]["error"]["code"] == "INVALID_REQUEST"


async def test_a_worker_that_breaks_off_gives_one_error_event(serving: RunningQueen, worker: WorkerPartner) -> None:
    worker.break_after = 3
    _, events = await infer(serving)
    names = [name for name, _ in events]
    assert names == ["queued", "placing", "started", "token", "token", "error", "message"]
    assert events[-2][1]["error"]["code"] == "WORKER_FAILED"


async def test_delete_cancels_a_typed_stream(serving: RunningQueen, worker: WorkerPartner) -> None:
    worker.hold = asyncio.Event()
    request_id = str(uuid.uuid4())
    running = asyncio.create_task(infer(serving, **{"X-Request-Id": request_id}))
    await until(lambda: worker.running == 1)
    await asyncio.sleep(0.05)
    async with serving.client.post(
        serving.url + "/v1/inference", json=BODY, headers={"X-Request-Id": request_id}
    ) as response:
        assert response.status == 409
    for _ in range(2):
        async with serving.client.delete(f"{serving.url}/v1/inference/{request_id}") as response:
            assert response.status == 204
    _, events = await asyncio.wait_for(running, 2.0)
    assert [name for name, _ in events][-2:] == ["error", "message"]
    assert events[-2][1]["error"]["code"] == "CANCELLED"
    await until(lambda: worker.gone == 1 and worker.cancelled == [request_id])
    assert serving.state() is WorkerState.IDLE


async def test_a_client_that_leaves_cancels_at_the_worker(serving: RunningQueen, worker: WorkerPartner) -> None:
    worker.hold = asyncio.Event()
    running = asyncio.create_task(infer(serving))
    await until(lambda: worker.running == 1)
    await asyncio.sleep(0.05)
    running.cancel()
    await until(lambda: worker.gone == 1 and len(worker.cancelled) == 1, 1.0)
    await until(lambda: serving.core.admission.in_flight == 0)


async def test_a_task_outlives_its_asker_and_is_read_twice(serving: RunningQueen, worker: WorkerPartner) -> None:
    async with serving.client.post(serving.url + "/v2/tasks", json=BODY) as response:
        assert response.status == 202
        task = await response.json()
        assert response.headers["Location"] == task["task_url"]
    async with serving.client.get(serving.url + task["events_url"]) as response:
        raw = await response.read()
    assert [name for name, _ in decode(raw)] == [
        "queued", "placing", "started", "token", "token", "token", "metrics", "end", "message",
    ]  # fmt: skip
    ids = [event.id for event in SseDecoder().feed(raw) if event.id is not None]
    assert ids == [str(number) for number in range(1, 9)]
    async with serving.client.get(serving.url + task["events_url"], headers={"Last-Event-ID": "6"}) as response:
        assert [name for name, _ in decode(await response.read())] == ["metrics", "end", "message"]
    status, found = await serving.get(task["task_url"])
    assert (status, found["state"]) == (200, "ended")
    assert worker.headers[0]["X-Request-Id"] == task["task_id"]


async def test_a_task_can_stream_at_once(serving: RunningQueen) -> None:
    status, events = await infer(serving, "/v2/tasks", Accept="text/event-stream")
    assert status == 200
    assert [name for name, _ in events][-2:] == ["end", "message"]


async def test_a_task_is_cancelled_by_delete(serving: RunningQueen, worker: WorkerPartner) -> None:
    worker.hold = asyncio.Event()
    async with serving.client.post(serving.url + "/v2/tasks", json=BODY) as response:
        task = await response.json()
    await until(lambda: worker.running == 1)
    await asyncio.sleep(0.05)
    for _ in range(2):
        async with serving.client.delete(serving.url + task["task_url"]) as response:
            assert response.status == 204
    async with serving.client.get(serving.url + task["events_url"]) as response:
        events = decode(await response.read())
    assert [name for name, _ in events][-2:] == ["error", "message"]
    assert events[-2][1]["error"]["code"] == "CANCELLED"
    assert (await serving.get(task["task_url"]))[1]["state"] == "cancelled"
    await until(lambda: worker.gone == 1 and worker.cancelled == [task["task_id"]])


async def test_a_failed_task_says_so(queen: RunningQueen) -> None:
    await queen.tell(report(WorkerState.LOADING, url=None))
    async with queen.client.post(queen.url + "/v2/tasks", json=BODY) as response:
        task = await response.json()
    await queen.tell(report(WorkerState.FAILED, url=None, reason="broken", exit_status=78))
    async with queen.client.get(queen.url + task["events_url"]) as response:
        events = decode(await response.read())
    assert [name for name, _ in events] == ["queued", "error", "message"]
    assert events[1][1]["error"]["code"] == "WORKER_FAILED"
    assert (await queen.get(task["task_url"]))[1]["state"] == "failed"


async def test_tasks_are_bounded(configured: Configured, worker: WorkerPartner) -> None:
    worker.hold = asyncio.Event()
    worker.tokens = [str(number) for number in range(100)]
    async with configured(requests={"max_tasks": 2, "task_events": 16}) as queen:
        await queen.tell(report(url=worker.url))
        tasks = []
        for expected in (202, 202, 429):
            async with queen.client.post(queen.url + "/v2/tasks", json=BODY) as response:
                assert response.status == expected
                tasks.append(await response.json())
        worker.hold.set()
        await until(lambda: queen.core.tasks.get(tasks[0]["task_id"]).over)
        async with queen.client.get(queen.url + tasks[0]["events_url"]) as response:
            events = decode(await response.read())
        assert events[0][0] == "gap"
        assert events[0][1]["missed"] == 105 - 16
        assert len(events) == 16 + 2
        await until(lambda: queen.core.tasks.get(tasks[1]["task_id"]).over)
        async with queen.client.post(queen.url + "/v2/tasks", json=BODY) as response:
            assert response.status == 202  # an ended one made room
        async with queen.client.get(queen.url + tasks[0]["events_url"]) as response:
            assert response.status == 404
            assert (await response.json())["error"]["code"] == "TASK_NOT_FOUND"


async def test_an_ended_task_is_kept_for_its_time(configured: Configured, worker: WorkerPartner) -> None:
    async with configured(requests={"task_retention_s": 0.2}) as queen:
        await queen.tell(report(url=worker.url))
        _, events = await infer(queen, "/v2/tasks", Accept="text/event-stream")
        task_id = events[0][1]["request_id"]
        assert (await queen.get(f"/v2/tasks/{task_id}"))[0] == 200
        await asyncio.sleep(0.4)
        assert (await queen.get(f"/v2/tasks/{task_id}"))[0] == 404


@pytest.mark.parametrize(
    ("body", "status"), [({"model": "nothing"}, 404), ({}, 400), ({"model": MODEL, "stream": False}, 400)]
)
async def test_what_makes_no_task(serving: RunningQueen, body: dict[str, Any], status: int) -> None:
    async with serving.client.post(serving.url + "/v2/tasks", json=body) as response:
        assert response.status == status
    async with serving.client.get(serving.url + "/v2/tasks/x/events", headers={"Last-Event-ID": "x"}) as response:
        assert response.status == 404
