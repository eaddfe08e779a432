"""The straight way gives what the long way gives, however the bytes of a connection come."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.unit.queen.conftest import API_TOKEN, RunningQueen
from tests.unit.queen.partners import MODEL, WorkerPartner, report, until

from rbee.queen.express.connection import ExpressConnection
from rbee.wire.auth import Secret

CHAT = "/v1/chat/completions"
Raw = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def request(
    path: str = CHAT, body: bytes | None = None, *more: str, token: str = API_TOKEN, method: str = "POST"
) -> bytes:
    body = json.dumps({"model": MODEL}).encode() if body is None else body
    lines = [f"{method} {path} HTTP/1.1", "Host: queen", f"Authorization: Bearer {token}", *more]
    if method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + (body if method == "POST" else b"")


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    async with asyncio.timeout(10):
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        else:
            body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(int(status.split()[1]), headers, body)


@contextlib.asynccontextmanager
async def connected(queen: RunningQueen) -> AsyncIterator[Raw]:
    parts = urlsplit(queen.url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        yield reader, writer
    finally:
        writer.close()


@contextlib.asynccontextmanager
async def unread(queen: RunningQueen) -> AsyncIterator[Raw]:
    """A connection whose client's side holds a few kB, so that it is slow as soon as nobody reads."""
    parts = urlsplit(queen.url)
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await asyncio.get_running_loop().sock_connect(sock, (parts.hostname, parts.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
        try:
            yield reader, writer
        finally:
            writer.close()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[ExpressConnection]:
    """The queen's sides of all connections from now on, whose sockets hold a few kB."""
    found: list[ExpressConnection] = []
    connection_made = ExpressConnection.connection_made

    def narrow(self: ExpressConnection, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        connection_made(self, transport)
        found.append(self)

    monkeypatch.setattr(ExpressConnection, "connection_made", narrow)
    return found


def straight(queen: RunningQueen) -> int:
    """How many kept connections of the straight way there are: 0 where it was never gone."""
    return sum(len(idle) for idle in queen.core.upstreams._idle.values())


async def test_one_connection_carries_both_kinds_in_any_order(serving: RunningQueen, worker: WorkerPartner) -> None:
    asked = [
        (request(), 200), (request("/v1/models", method="GET"), 200), (request(), 200), (request("/nowhere"), 404),
        (request(token="wrong"), 401), (request(), 200), (request(body=b"{"), 400),
        (request("/health", method="GET"), 200),
        (request(body=b'{"model":"nobody"}'), 404), (request(), 200),
    ]  # fmt: skip
    async with connected(serving) as (reader, writer):
        for data, status in asked:
            writer.write(data)
            answer = await read_answer(reader)
            assert answer.status == status
            assert {"x-rbee-worker", "x-rbee-queue-ms", "x-rbee-overhead-ms", "x-correlation-id"} <= set(answer.headers)
    assert len(worker.bodies) == 4
    assert straight(serving) == 1


async def test_a_body_to_an_alias_goes_on_as_it_came_but_for_the_name(
    serving: RunningQueen, worker: WorkerPartner
) -> None:
    async with serving.client.put(f"{serving.url}/v2/aliases/gpt", json={"model": MODEL}) as response:
        assert response.status == 200
    async with connected(serving) as (reader, writer):
        writer.write(request(body=b'{"x":  1.50,"model":"gpt"}\n'))
        assert (await read_answer(reader)).status == 200
    assert worker.bodies == [b'{"x":  1.50,"model":"gpt","model":"talk"}']
    assert straight(serving) == 1
    assert serving.core.admission.in_flight == 0


async def test_a_refusal_that_is_no_text_is_passed_on(serving: RunningQueen, worker: WorkerPartner) -> None:
    refusals = [b'{"error":{"code":"\xff"}}', b'{"error":' + b"[" * 100_000]
    async with connected(serving) as (reader, writer):
        for body in refusals:
            worker.refuse_with = [(400, body)]
            writer.write(request())
            answer = await read_answer(reader)
            assert (answer.status, answer.body) == (400, body)
    assert serving.core.admission.in_flight == 0


async def test_any_token_and_any_byte_of_a_head_reach_the_worker_as_they_are(
    serving: RunningQueen, worker: WorkerPartner
) -> None:
    serving.core.tokens.worker_api = Secret("w\u00f6rker-\u03a9")
    async with connected(serving) as (_, writer):
        writer.write(request(CHAT, None, "Accept: text/\u03a9"))
        await until(lambda: worker.headers)
    assert worker.headers[0]["Authorization"] == "Bearer w\u00f6rker-\u03a9"
    assert worker.headers[0]["Accept"] == "text/\u03a9"


@pytest.mark.parametrize("size", [1, 7, 60, 1000])
async def test_bytes_that_come_in_pieces(serving: RunningQueen, worker: WorkerPartner, size: int) -> None:
    body = json.dumps({"model": MODEL, "text": "x" * 300}).encode()
    data = request(body=body) + request("/v1/models", method="GET") + request(body=body)
    async with connected(serving) as (reader, writer):
        for at in range(0, len(data), size):
            writer.write(data[at : at + size])
            await writer.drain()
            if at % 200 < size:
                await asyncio.sleep(0.001)
        answers = [await read_answer(reader) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 200]
    assert worker.bodies == [body, body]


async def test_head_and_body_in_two_packets_go_straight(serving: RunningQueen) -> None:
    data = request()
    cut = data.index(b"\r\n\r\n") + 4
    async with connected(serving) as (reader, writer):
        for _ in range(2):
            writer.write(data[:cut])
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.write(data[cut:])
            assert (await read_answer(reader)).status == 200
    assert straight(serving) == 1


async def test_a_body_that_stops_coming_is_given_up(serving: RunningQueen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbee.wire.http.server.BODY_LIMIT_S", 0.1)
    async with connected(serving) as (reader, writer):
        writer.write(request()[:-3])
        answer = await read_answer(reader)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (408, "REQUEST_TIMEOUT")


async def test_no_body_is_gathered_for_a_caller_who_is_not_known(serving: RunningQueen) -> None:
    async with connected(serving) as (reader, writer):
        writer.write(request(token="wrong")[:-3])
        assert (await read_answer(reader)).status == 401


async def test_requests_in_a_pipeline_are_answered_in_order(serving: RunningQueen, worker: WorkerPartner) -> None:
    bodies = [json.dumps({"model": MODEL, "number": number}).encode() for number in range(5)]
    async with connected(serving) as (reader, writer):
        writer.write(request(body=bodies[0]))
        for body in bodies[1:]:
            await asyncio.sleep(0)
            writer.write(request(body=body))
        answers = [await read_answer(reader) for _ in bodies]
    assert all(answer.status == 200 for answer in answers)
    assert worker.bodies == bodies


async def test_a_stream_ends_with_done_and_the_connection_goes_on(serving: RunningQueen) -> None:
    body = json.dumps({"model": MODEL, "stream": True}).encode()
    async with connected(serving) as (reader, writer):
        for _ in range(3):
            writer.write(request(body=body))
            answer = await read_answer(reader)
            assert answer.headers["content-type"] == "text/event-stream"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.body.endswith(b"data: [DONE]\n\n") and answer.body.count(b"content") == 3


async def test_a_client_that_leaves_is_told_to_the_worker_at_once(serving: RunningQueen, worker: WorkerPartner) -> None:
    worker.hold = asyncio.Event()
    for body in ({"model": MODEL}, {"model": MODEL, "stream": True}):
        gone = worker.gone
        async with connected(serving) as (_, writer):
            writer.write(request(body=json.dumps(body).encode()))
            await until(lambda: worker.running == 1)
            began = time.monotonic()
        await until(lambda: worker.gone == gone + 1)  # noqa: B023 - waited for here
        assert time.monotonic() - began < 2.0, "100 ms is the promise, and this machine is busy"
        assert serving.core.admission.in_flight == 0
    assert (
        await serving.metric('queen_rbee_http_requests_total{method="POST",route="/v1/chat/completions",status="499"}')
        == 2
    )


async def test_a_kept_connection_that_the_worker_closed_costs_nothing(
    queen: RunningQueen, worker: WorkerPartner
) -> None:
    await queen.tell(report(url=worker.url))
    async with connected(queen) as (reader, writer):
        writer.write(request())
        assert (await read_answer(reader)).status == 200
        (idle,) = queen.core.upstreams._idle.values()
        idle[0][1]._transport.close()  # type: ignore[union-attr]
        writer.write(request())
        assert (await read_answer(reader)).status == 200
    assert not any(one.suspect for one in queen.core.registry.workers())


async def test_a_stop_lets_the_answer_under_way_end(serving: RunningQueen, worker: WorkerPartner) -> None:
    worker.hold = asyncio.Event()
    async with connected(serving) as (reader, writer):
        writer.write(request())
        await until(lambda: worker.running == 1)
        stopping = asyncio.create_task(serving.stop())
        await asyncio.sleep(0.3)
        worker.hold.set()
        assert (await read_answer(reader)).status == 200
        await asyncio.wait_for(stopping, 10)
        assert await reader.read() == b""


async def test_a_request_whose_worker_goes_away_within_a_stop_is_answered(
    serving: RunningQueen, worker: WorkerPartner, made: list[ExpressConnection]
) -> None:
    worker.hold, worker.break_after = asyncio.Event(), 0
    async with connected(serving) as (reader, writer):
        writer.write(request())
        await until(lambda: worker.running == 1)
        stopping = asyncio.create_task(serving.stop())
        await until(lambda: made[0].is_ending)
        worker.hold.set()
        answer = await read_answer(reader)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "WORKER_UNREACHABLE")
        assert await reader.read() == b""
        await asyncio.wait_for(stopping, 10)
    assert serving.core.admission.in_flight == 0
    trail = serving.core.recent.find(answer.headers["x-correlation-id"])
    assert trail is not None and (trail.outcome, trail.code) == ("error", "WORKER_UNREACHABLE")


async def test_a_worker_that_is_not_there_is_left_for_another(queen: RunningQueen, worker: WorkerPartner) -> None:
    await queen.tell(report(worker="a", url="http://127.0.0.1:9"))
    await queen.tell(report(worker="b", url=worker.url))
    async with connected(queen) as (reader, writer):
        for _ in range(4):
            writer.write(request())
            answer = await read_answer(reader)
            assert (answer.status, answer.headers["x-rbee-worker"]) == (200, "bee/b")


async def test_a_client_that_does_not_read_its_answer_stops_no_other(
    serving: RunningQueen, worker: WorkerPartner, made: list[ExpressConnection]
) -> None:
    worker.tokens = ["x" * 500_000]
    async with unread(serving) as (slow, writer), connected(serving) as (reader, other):
        writer.write(request())
        await until(lambda: any(one.writing_paused for one in made))
        assert straight(serving) == 1
        worker.tokens = ["y"]
        other.write(request())
        assert (await read_answer(reader)).status == 200
        assert (await read_answer(slow)).status == 200


async def test_a_request_behind_an_answer_that_is_not_read_goes_the_long_way(
    serving: RunningQueen, worker: WorkerPartner, made: list[ExpressConnection]
) -> None:
    worker.tokens = ["x" * 500_000]
    async with unread(serving) as (reader, writer):
        writer.write(request())
        await until(lambda: any(one.writing_paused for one in made))
        (connection,) = made
        worker.hold = asyncio.Event()
        writer.write(request())
        await until(lambda: worker.running)
        assert connection._exchange is None
        worker.hold.set()
        assert [(await read_answer(reader)).status for _ in range(2)] == [200, 200]


async def test_a_client_that_reads_slowly_is_no_silence_of_the_worker(
    serving: RunningQueen, worker: WorkerPartner, made: list[ExpressConnection]
) -> None:
    worker.tokens = ["x" * 200_000] * 5
    async with unread(serving) as (reader, writer):
        writer.write(request(body=json.dumps({"model": MODEL, "stream": True}).encode()))
        await until(lambda: any(one.writing_paused for one in made))
        (connection,) = made
        exchange = connection._exchange
        assert exchange is not None and exchange._connection is not None
        assert exchange._connection._due == float("inf")
        assert (await read_answer(reader)).body.endswith(b"data: [DONE]\n\n")


async def test_an_unanswered_request_ends_at_its_limit(serving: RunningQueen, worker: WorkerPartner) -> None:
    worker.hold = asyncio.Event()
    serving.core.dispatcher.limits = type(serving.core.dispatcher.limits)(0.3, 0.3)
    async with connected(serving) as (reader, writer):
        writer.write(request())
        answer = await read_answer(reader)
        assert (answer.status, json.loads(answer.body)["error"]["code"]) == (408, "REQUEST_TIMEOUT")
        writer.write(request(body=json.dumps({"model": MODEL, "stream": True}).encode()))
        answer = await read_answer(reader)
        assert answer.status == 200
        last = json.loads(answer.body.split(b"\n\n")[-3].removeprefix(b"data: "))
        assert last["error"]["code"] == "WORKER_FAILED"


async def test_every_request_is_counted_once(serving: RunningQueen) -> None:
    async def of(name: str) -> Any:  # noqa: ANN401
        return await serving.metric(name)

    async with connected(serving) as (reader, writer):
        for number in range(6):
            writer.write(request(CHAT, None, *(["Prefer: x"] if number % 2 else [])))
            assert (await read_answer(reader)).status == 200
    assert await of("queen_rbee_requests_total") == 6
    assert await of('queen_rbee_request_duration_seconds_count{outcome="ok",route="/v1/chat/completions"}') == 6
    assert await of('queen_rbee_http_requests_total{method="POST",route="/v1/chat/completions",status="200"}') == 6
    assert await of('queen_rbee_queue_seconds_count{priority="interactive"}') == 6
