"""What passes through the queen: bytes as they come, errors as they are, and one sure end."""

import asyncio
import io
import json
import socket
import time
import uuid
from typing import Any

import aiohttp
import msgspec
import openai
import pytest
from tests.unit.queen.conftest import API_TOKEN, Configured, Fields, RunningQueen
from tests.unit.queen.partners import MODEL, WorkerPartner, report, until

from rbee.queen.requests.asks import Head
from rbee.queen.requests.dispatch import Call, Upstream, renamed
from rbee.queen.requests.explain import Trail
from rbee.queen.requests.passage import Account, carry
from rbee.queen.requests.relay import WholeEvents
from rbee.queen.requests.stories import TypedStory
from rbee.wire.auth import Secret
from rbee.wire.http.client import client_session
from rbee.wire.messages import WorkerState

CHAT = "/v1/chat/completions"


async def stream(queen: RunningQueen, path: str = CHAT, **more: Fields) -> tuple[int, bytes]:
    body = {"model": MODEL, "stream": True} | more
    async with queen.client.post(queen.url + path, json=body) as response:
        return response.status, await response.read()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank"])
async def test_openai_routes_reach_the_worker_byte_for_byte(
    serving: RunningQueen, worker: WorkerPartner, path: str
) -> None:
    body = b'{ "model" : "talk", "odd": [1.50, 1e3],\n "\\u00e9": null}'
    request_id = str(uuid.uuid4())
    async with serving.client.post(
        serving.url + path, data=body, headers={"Content-Type": "application/json", "X-Correlation-Id": request_id}
    ) as response:
        assert response.status == 200
        assert (await response.json())["path"] == path
        assert response.headers["X-Rbee-Worker"] == "bee/w"
        assert float(response.headers["X-Rbee-Queue-Ms"]) < 1000
        assert response.headers["X-Correlation-Id"] == request_id
    assert worker.bodies == [body]
    assert worker.headers[0]["X-Correlation-Id"] == request_id
    assert worker.headers[0]["X-Rbee-Caller"].startswith("token:")


async def test_tokens_arrive_as_they_are_made(serving: RunningQueen, worker: WorkerPartner) -> None:
    worker.pace_s = 0.1
    async with serving.client.post(serving.url + CHAT, json={"model": MODEL, "stream": True}) as response:
        assert response.content_type == "text/event-stream"
        arrivals = [time.monotonic() async for _ in response.content.iter_any()]
    assert len(arrivals) >= 3
    assert arrivals[2] - arrivals[0] >= 0.15


async def test_a_slow_reader_gets_every_token_in_order(serving: RunningQueen, worker: WorkerPartner) -> None:
    worker.tokens = [f"{number}:" + "x" * 40_000 for number in range(1000)]
    async with serving.client.post(serving.url + CHAT, json={"model": MODEL, "stream": True}) as response:
        await asyncio.sleep(0.3)
        assert worker.running == 1  # 40 MB are not buffered on the way: the worker waits
        lines = [line[6:] async for line in response.content if line.startswith(b"data: {")]
    seen = [int(json.loads(line)["choices"][0]["delta"]["content"].partition(":")[0]) for line in lines]
    assert seen == list(range(1000))


async def test_an_openai_client_streams_and_raises(serving: RunningQueen, worker: WorkerPartner) -> None:
    async with openai.AsyncOpenAI(base_url=f"{serving.url}/v1", api_key=API_TOKEN, max_retries=0) as client:
        chunks = await client.chat.completions.create(model=MODEL, messages=[], stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in chunks])
        assert text == "one two three"
        worker.break_after = 2
        chunks = await client.chat.completions.create(model=MODEL, messages=[], stream=True)
        with pytest.raises(openai.APIError, match="went away"):
            async for _ in chunks:
                pass
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="nothing", messages=[])


async def test_a_refusal_of_the_worker_reaches_the_client_unchanged(
    serving: RunningQueen, worker: WorkerPartner
) -> None:
    body = b'{"error":{"code":"UNSUPPORTED_PARAMETER","message":"no","details":{"field":"n"},"correlation_id":"x"}}'
    for streamed in (True, False):
        worker.refuse_with = [(400, body)]
        assert await stream(serving, stream=streamed) == (400, body)
    assert await serving.metric('queen_rbee_errors_total{code="UNSUPPORTED_PARAMETER"}') == 2
    assert serving.state() is WorkerState.IDLE


@pytest.mark.parametrize("way", [{}, {"X-Rbee-Priority": "batch"}], ids=["straight", "long"])
async def test_tensors_asked_for_by_an_alias_go_on_as_they_are(
    serving: RunningQueen, worker: WorkerPartner, way: dict[str, str]
) -> None:
    async with serving.client.put(f"{serving.url}/v2/aliases/gpt", json={"model": MODEL}) as response:
        assert response.status < 300
    head = {"Inference-Header-Content-Length": "2", "Content-Type": "application/octet-stream", **way}
    async with serving.client.post(f"{serving.url}/v2/models/gpt/infer", data=b"{}\xff\x01", headers=head) as response:
        await response.read()
    assert worker.bodies == [b"{}\xff\x01"]


async def test_an_alias_is_rewritten_and_nothing_else(serving: RunningQueen, worker: WorkerPartner) -> None:
    async with serving.client.put(f"{serving.url}/v2/aliases/gpt", json={"model": MODEL}) as response:
        assert response.status == 200
    body = b'{"seed":  7,"model":"gpt","x":1.50}'
    async with serving.client.post(serving.url + CHAT, data=body) as response:
        assert response.status == 200
    assert worker.bodies == [b'{"seed":  7,"model":"gpt","x":1.50,"model":"talk"}']
    assert json.loads(worker.bodies[0]) == {"seed": 7, "model": "talk", "x": 1.5}


async def test_the_metadata_of_an_alias_is_that_of_its_model(serving: RunningQueen) -> None:
    async with serving.client.put(f"{serving.url}/v2/aliases/gpt", json={"model": MODEL}) as response:
        assert response.status == 200
    assert await serving.get("/v2/models/gpt") == (200, {"name": MODEL, "inputs": []})


@pytest.mark.parametrize(
    "body", [b' {"model":"gpt"}\r\n\t ', b'{"a":{"model":"gpt"},"model":"gpt","b":"}"}', b'{"model":"x","model":"gpt"}']
)
def test_a_renamed_body_says_the_new_name_wherever_the_old_one_stood(body: bytes) -> None:
    found = msgspec.json.decode(renamed(body, 'the "new"'), type=dict[str, Any])
    assert found == json.loads(body) | {"model": 'the "new"'}
    assert msgspec.json.decode(renamed(body, "talk"), type=Head) == Head("talk")


async def test_open_inference_goes_to_the_workers_own_name(serving: RunningQueen, worker: WorkerPartner) -> None:
    body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}]}'
    async with serving.client.post(f"{serving.url}/v2/models/{MODEL}/infer", data=body) as response:
        assert (await response.json())["path"] == f"/v2/models/{MODEL}/infer"
    assert worker.bodies == [body]


async def test_a_worker_that_is_gone_is_passed_over_and_doubted(queen: RunningQueen, worker: WorkerPartner) -> None:
    await queen.tell(report(worker="dead", url="http://127.0.0.1:9"))
    await queen.tell(report(worker="w", url=worker.url))
    for _ in range(4):
        assert (await stream(queen))[0] == 200
    assert queen.state("dead") is WorkerState.UNHEALTHY
    rows = await queen.rows()
    assert rows["bee/dead"]["reason"] == "does not answer"
    assert await queen.metric("queen_rbee_requests_total") == 4


async def test_a_worker_that_dies_before_its_first_byte(
    queen: RunningQueen, worker: WorkerPartner, second: WorkerPartner
) -> None:
    worker.break_after = 0  # half an event comes and the connection breaks: nothing of it went to the client
    await queen.tell(report(worker="a", url=worker.url))
    await queen.tell(report(worker="b", url=second.url))
    for _ in range(2):
        status, body = await stream(queen)
        assert status == 200
        assert b"other" in body
        assert b"error" not in body
    assert len(worker.bodies) == 1
    assert queen.state("a") is WorkerState.UNHEALTHY


async def test_a_busy_worker_is_left_for_another(
    queen: RunningQueen, worker: WorkerPartner, second: WorkerPartner
) -> None:
    busy = b'{"error":{"code":"ALL_SLOTS_BUSY","message":"busy","details":{"slots_total":1,"slots_busy":1}}}'
    worker.refuse_with = [(503, busy)]
    await queen.tell(report(worker="a", url=worker.url))
    await queen.tell(report(worker="b", url=second.url))
    for _ in range(2):
        assert (await stream(queen))[0] == 200
    assert not worker.refuse_with
    assert queen.state("a") is WorkerState.IDLE


async def test_a_lone_busy_worker_is_asked_again_and_then_the_client_is_told(
    serving: RunningQueen, worker: WorkerPartner
) -> None:
    busy = b'{"error":{"code":"ALL_SLOTS_BUSY","message":"busy","details":{"slots_total":1,"slots_busy":1}}}'
    worker.refuse_with = [(503, busy)] * 2
    assert (await stream(serving))[0] == 200
    worker.refuse_with = [(503, busy)] * 4  # once by the straight way, then three times
    status, body = await stream(serving)
    assert status == 503
    error = json.loads(body)["error"]
    assert (error["code"], error["details"]) == ("ALL_SLOTS_BUSY", {"slots_total": 1, "slots_busy": 1})


async def test_a_draining_worker_is_left_for_another(
    queen: RunningQueen, worker: WorkerPartner, second: WorkerPartner
) -> None:
    draining = b'{"error":{"code":"WORKER_DRAINING","message":"stopping","details":{}}}'
    worker.refuse_with = [(503, draining)]
    await queen.tell(report(worker="a", url=worker.url))
    await queen.tell(report(worker="b", url=second.url))
    for _ in range(2):
        assert (await stream(queen))[0] == 200
    assert queen.state("a") is WorkerState.UNHEALTHY


async def test_a_worker_that_refuses_the_queens_token(serving: RunningQueen, worker: WorkerPartner) -> None:
    serving.core.tokens.worker_api = None
    deadline = str(int((time.time() + 0.5) * 1000))
    body = {"model": MODEL}
    async with serving.client.post(serving.url + CHAT, json=body, headers={"X-Request-Deadline": deadline}) as response:
        assert response.status == 408  # it waits for a worker that takes it, and none comes
    assert serving.state() is WorkerState.UNHEALTHY
    assert (await serving.rows())["bee/w"]["reason"] == "the queen's token is not accepted"


async def test_broken_after_the_first_byte_ends_with_exactly_one_error(
    serving: RunningQueen, worker: WorkerPartner
) -> None:
    worker.break_after = 2
    status, body = await stream(serving)
    assert status == 200
    events = [event for event in body.split(b"\n\n") if event]
    assert b"one" in events[0]
    assert b"two" in events[1]
    error = json.loads(events[2].removeprefix(b"data: "))["error"]
    assert (error["code"], error["details"]["worker"]) == ("WORKER_FAILED", "bee/w")
    assert events[3:] == [b"data: [DONE]"]
    assert serving.state() is WorkerState.UNHEALTHY
    assert await serving.metric('queen_rbee_errors_total{code="WORKER_FAILED"}') == 1


async def test_a_whole_answer_that_breaks_off_is_asked_of_another(
    queen: RunningQueen, worker: WorkerPartner, second: WorkerPartner
) -> None:
    worker.break_after = 0
    await queen.tell(report(worker="a", url=worker.url))
    await queen.tell(report(worker="b", url=second.url))
    for _ in range(2):
        status, body = await stream(queen, stream=False)
        assert (status, json.loads(body)["answer"]) == (200, "other")
    assert len(worker.bodies) == 1
    assert queen.state("a") is WorkerState.UNHEALTHY


async def test_a_large_answer_that_breaks_off_is_cut_and_counted_as_an_error(
    serving: RunningQueen, worker: WorkerPartner
) -> None:
    worker.break_after, worker.tokens = 0, ["x" * (8 << 20)]
    with pytest.raises(aiohttp.ClientPayloadError):
        await stream(serving, stream=False)
    assert serving.state() is WorkerState.UNHEALTHY
    assert await serving.metric('queen_rbee_errors_total{code="WORKER_FAILED"}') == 1
    name = 'queen_rbee_request_duration_seconds_count{outcome="error",route="/v1/chat/completions"}'
    assert await serving.metric(name) == 1


async def reader_that_stalls(queen: RunningQueen, path: str, body: dict[str, Any], *more: str) -> socket.socket:
    """A client that sends its request and takes no byte of the answer."""
    data = json.dumps(body).encode()
    lines = (
        f"POST {path} HTTP/1.1",
        "Host: queen",
        f"Authorization: Bearer {API_TOKEN}",
        f"Content-Length: {len(data)}",
        *more,
    )
    head = "\r\n".join((*lines, "", ""))
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(reader, ("127.0.0.1", int(queen.url.rpartition(":")[2])))
    await loop.sock_sendall(reader, head.encode() + data)
    return reader


@pytest.mark.parametrize("tokens", [["x" * 40_000] * 1000, ["y" * (5 << 20)]])
async def test_a_client_that_stops_reading_holds_no_slot(
    serving: RunningQueen, worker: WorkerPartner, monkeypatch: pytest.MonkeyPatch, tokens: list[str]
) -> None:
    monkeypatch.setattr("rbee.wire.http.server.CLIENT_STALL_S", 0.3)
    worker.tokens = tokens  # many events, or one that is large
    reader = await reader_that_stalls(serving, CHAT, {"model": MODEL, "stream": True})
    try:
        await until(lambda: serving.core.admission.in_flight == 1)
        await until(lambda: serving.core.admission.in_flight == 0)
        await until(lambda: worker.running == 0)
        assert serving.state() is WorkerState.IDLE
    finally:
        reader.close()


def left_by_clients(queen: RunningQueen, route: str) -> int:
    """How many requests of a route ended because their client left or stopped reading."""
    labels = {"route": route, "method": "POST", "status": "499"}
    return int(queen.core.metrics.registry.get_sample_value("queen_rbee_http_requests_total", labels) or 0)


async def test_a_reader_of_a_task_that_stops_reading_is_no_defect(
    serving: RunningQueen,
    worker: WorkerPartner,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("rbee.wire.http.server.CLIENT_STALL_S", 0.3)
    worker.tokens = ["y" * (3 << 20)] * 4
    reader = await reader_that_stalls(serving, "/v2/tasks", {"model": MODEL}, "Accept: text/event-stream")
    try:
        await until(lambda: "request failed" in caplog.text or left_by_clients(serving, "/v2/tasks"))
    finally:
        reader.close()
    assert "request failed" not in caplog.text


async def test_a_queen_that_stops_lets_answers_end_and_takes_no_new_connection(
    configured: Configured, worker: WorkerPartner
) -> None:
    worker.hold = asyncio.Event()
    async with configured() as queen:
        await queen.tell(report(url=worker.url))
        streamed, whole = (asyncio.create_task(stream(queen, stream=value)) for value in (True, False))
        await until(lambda: worker.running == 2)
        stopping = asyncio.create_task(queen.stop())
        await until(lambda: queen.core.closing)
        await asyncio.sleep(0.1)
        async with client_session(token=Secret(API_TOKEN)) as late:
            with pytest.raises(aiohttp.ClientConnectorError):
                await late.get(queen.url + "/health")
        assert not stopping.done()
        worker.hold.set()
        assert (await whole)[0] == 200
        status, body = await streamed
        assert (status, body.endswith(b"data: [DONE]\n\n"), b"error" in body) == (200, True, False)
        async with asyncio.timeout(5.0):
            await stopping


async def test_a_queen_that_stops_ends_what_outlasts_its_grace(
    configured: Configured, worker: WorkerPartner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbee.queen.daemon.GRACE_S", 0.3)
    worker.hold = asyncio.Event()
    async with configured() as queen:
        await queen.tell(report(url=worker.url))
        running = asyncio.create_task(stream(queen))
        async with queen.client.post(f"{queen.url}/v2/tasks", json={"model": MODEL}) as response:
            assert response.status == 202
        await until(lambda: worker.running == 2)
        async with asyncio.timeout(5.0):
            await queen.stop()
        assert worker.gone == 2
        with pytest.raises(aiohttp.ClientPayloadError):
            await running
        assert queen.core.admission.in_flight == 0


async def test_a_worker_that_falls_silent_is_given_up(configured: Configured, worker: WorkerPartner) -> None:
    worker.hold = asyncio.Event()
    async with configured(requests={"stall_s": 0.3}) as queen:
        await queen.tell(report(url=worker.url))
        status, body = await stream(queen)
        assert status == 200
        assert b'"reason":"stalled"' in body
        await until(lambda: worker.gone == 1)
        assert queen.core.admission.in_flight == 0


async def test_a_deadline_within_a_stream_ends_it(serving: RunningQueen, worker: WorkerPartner) -> None:
    worker.hold = asyncio.Event()
    deadline = str(int((time.time() + 0.4) * 1000))
    async with serving.client.post(
        serving.url + CHAT, json={"model": MODEL, "stream": True}, headers={"X-Request-Deadline": deadline}
    ) as response:
        body = await response.read()
    assert b"REQUEST_TIMEOUT" in body
    assert worker.headers[0]["X-Request-Deadline"] == deadline
    await until(lambda: worker.gone == 1)


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_leaves_stops_the_worker_at_once(
    serving: RunningQueen, worker: WorkerPartner, streamed: bool
) -> None:
    worker.hold = asyncio.Event()
    task = asyncio.create_task(stream(serving, stream=streamed))
    await until(lambda: worker.running == 1)
    await asyncio.sleep(0.05)
    left = time.monotonic()
    task.cancel()
    await until(lambda: worker.gone == 1, 1.0)
    assert time.monotonic() - left < 0.5
    await until(lambda: serving.core.admission.in_flight == 0, 1.0)
    name = 'queen_rbee_request_duration_seconds_count{outcome="cancelled",route="/v1/chat/completions"}'
    assert await serving.metric(name) == 1
    assert serving.state() is WorkerState.IDLE


async def test_a_stream_that_waits_long_is_held_open_by_comments(
    queen: RunningQueen, worker: WorkerPartner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbee.queen.requests.stories.OpenAiStory.first_word_s", 0.2)
    monkeypatch.setattr("rbee.queen.requests.stories.OpenAiStory.still_s", 0.1)
    await queen.tell(report(WorkerState.LOADING, url=None))
    async with queen.client.post(queen.url + CHAT, json={"model": MODEL, "stream": True}) as response:
        assert response.status == 200
        assert (await response.content.readline()).startswith(b": waiting")
        await queen.tell(report(url=worker.url))
        body = await response.read()
    assert b"three" in body
    assert body.endswith(b"data: [DONE]\n\n")
    await queen.tell(report(WorkerState.LOADING, url=None))
    async with queen.client.post(queen.url + CHAT, json={"model": MODEL, "stream": True}) as response:
        await response.content.readline()
        await queen.tell(report(WorkerState.FAILED, url=None, reason="broken", exit_status=1))
        body = await response.read()
    assert body.count(b"WORKER_FAILED") == 1
    assert body.endswith(b"data: [DONE]\n\n")


async def test_what_is_counted_is_what_was_sent(serving: RunningQueen) -> None:
    for _ in range(7):
        await stream(serving)
    await stream(serving, model="nothing")
    before = await serving.metric("queen_rbee_requests_total")
    assert before == await serving.metric("queen_rbee_requests_total") == 8
    route = 'route="/v1/chat/completions"'
    assert await serving.metric(f'queen_rbee_request_duration_seconds_count{{outcome="ok",{route}}}') == 7
    assert await serving.metric(f'queen_rbee_request_duration_seconds_count{{outcome="error",{route}}}') == 1
    assert await serving.metric('queen_rbee_errors_total{code="MODEL_NOT_FOUND"}') == 1
    assert await serving.metric('queen_rbee_queue_seconds_count{priority="interactive"}') == 7


async def test_a_hundred_at_once_half_of_them_invalid(
    queen: RunningQueen, worker: WorkerPartner, second: WorkerPartner
) -> None:
    await queen.tell(report(worker="a", url=worker.url))
    await queen.tell(report(worker="b", url=second.url))

    async def one(number: int) -> int:
        body: dict[str, Any] = {"model": MODEL} if number % 2 else {"model": ["not", "a", "name"]}
        async with queen.client.post(queen.url + CHAT, json=body) as response:
            await response.read()
            return response.status

    statuses = await asyncio.gather(*(one(number) for number in range(100)))
    assert [statuses.count(200), statuses.count(400)] == [50, 50]
    assert len(worker.bodies) + len(second.bodies) == 50
    assert min(len(worker.bodies), len(second.bodies)) >= 15
    assert queen.core.admission.in_flight == 0


async def test_a_body_over_the_limit(configured: Configured) -> None:
    async with configured(requests={"max_body_mb": 1}) as queen:
        body = io.BytesIO(b"x" * (2 << 20))
        async with queen.client.post(queen.url + CHAT, data=body) as response:
            assert response.status == 413


@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_only_whole_events_pass(size: int) -> None:
    text = b"data: one\n\ndata: two\n\ndata: cut in the mid"
    whole = WholeEvents()
    out = b"".join(whole.feed(text[at : at + size]) for at in range(0, len(text), size))
    assert out == b"data: one\n\ndata: two\n\n"


async def test_the_unix_socket_serves_the_same(serving: RunningQueen) -> None:
    socket = serving.core.config.run_dir + "/queen.sock"
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(socket)) as local:
        async with local.post("http://queen" + CHAT, json={"model": MODEL}) as response:
            assert response.status == 200
        async with local.get("http://queen/v2/workers/list") as response:
            assert len((await response.json())["workers"]) == 1


class LeavingSink:
    """A client that leaves while it is told that its request waits, just as a worker takes the request."""

    begun = False

    def __init__(self, left: asyncio.Event) -> None:
        self._left = left

    async def begin(self, upstream: Upstream | None) -> None:
        await self._left.wait()
        raise ConnectionResetError("the client left")

    async def write(self, chunk: bytes) -> None:
        raise AssertionError("the answer has not begun")

    async def end(self) -> None:
        raise AssertionError("the answer has not begun")

    def abort(self) -> None:
        raise AssertionError("the answer has not begun")


async def test_a_client_that_leaves_in_the_turn_of_its_placing_holds_no_slot(
    queen: RunningQueen, worker: WorkerPartner
) -> None:
    worker.hold = asyncio.Event()
    await queen.tell(report(WorkerState.LOADING, url=None))
    left = asyncio.Event()
    call = Call(MODEL, MODEL, lambda _: CHAT, b'{"model":"talk","stream":true}', {}, True, Trail(CHAT, None, None))
    story = TypedStory("id", MODEL)
    carrying = asyncio.create_task(
        carry(queen.core.dispatcher, call, LeavingSink(left), story, Account(Trail(CHAT, None, None)))
    )
    await until(lambda: queen.core.admission.waiting == 1)
    await queen.tell(report(url=worker.url))
    await until(lambda: worker.running == 1)
    await asyncio.sleep(0.05)
    left.set()
    with pytest.raises(ConnectionResetError):
        await carrying
    assert queen.core.admission.in_flight == 0
    await until(lambda: worker.gone == 1)
