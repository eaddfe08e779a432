"""The shared HTTP server and client, over real Unix and TCP sockets."""

import asyncio
import os
import socket
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp
import msgspec
import pytest
from aiohttp import web
from multidict import CIMultiDictProxy
from prometheus_client import CollectorRegistry, Counter, Histogram

from rbee.host.sockets import bind_tcp, bind_unix
from rbee.wire.auth import Role, Secret, TokenVerifier
from rbee.wire.errors import AllSlotsBusy, ConnectionTimeout, InvalidRequest, ProtocolError, Unavailable
from rbee.wire.http import server
from rbee.wire.http.client import PEER_LIMIT_S, RemoteError, client_session, decode_answer, fetch_json
from rbee.wire.http.counts import Counts
from rbee.wire.http.durations import Durations
from rbee.wire.http.metrics import HttpMetrics, exposition
from rbee.wire.http.middleware import IDENTITY, allow, open_route
from rbee.wire.http.server import (
    Server,
    SseStream,
    build_app,
    decode_body,
    json_response,
    metrics_handler,
    read_json,
)
from rbee.wire.peer import PeerAdmins

CLIENT, HIVE = Secret("client-token"), Secret("hive-token")


class Body(msgspec.Struct, forbid_unknown_fields=True):
    count: int
    kind: Literal["a", "b"] = "a"


@dataclass
class Service:
    url: str
    socket_path: Path
    cancelled: asyncio.Event
    verifier: TokenVerifier


@open_route
async def health(_request: web.Request) -> web.StreamResponse:
    return json_response({"status": "ok"})


async def echo(request: web.Request) -> web.StreamResponse:
    body = await read_json(request, Body)
    return json_response({"count": body.count, "caller": request[IDENTITY].name})


@allow(Role.HIVE)
async def for_hives(_request: web.Request) -> web.StreamResponse:
    return json_response({})


async def busy(_request: web.Request) -> web.StreamResponse:
    raise AllSlotsBusy("all slots are taken", details={"slots_total": 2, "slots_busy": 2}, retry_after_s=1.2)


async def broken(_request: web.Request) -> web.StreamResponse:
    raise ZeroDivisionError("/home/someone/secret")


async def hang(_request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(30)
    return json_response({})


async def not_json(_request: web.Request) -> web.StreamResponse:
    return web.Response(body=b'{"a": 1,\n "b": }', content_type="application/json")


async def break_after_head(request: web.Request) -> web.StreamResponse:
    stream = await SseStream.open(request)
    await stream.send("token", {"text": "a"})
    raise Unavailable("gone")


async def leave_after_head(request: web.Request) -> web.StreamResponse:
    stream = await SseStream.open(request)
    await stream.send("token", {"text": "a"})
    raise ConnectionResetError("the client left")


@pytest.fixture
def socket_folder() -> Iterator[Path]:
    """A folder that other users can reach, as /run/rbee is; pytest's own are private."""
    with tempfile.TemporaryDirectory(prefix="rbee-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
async def service(socket_folder: Path) -> AsyncIterator[Service]:
    registry = CollectorRegistry()
    verifier = TokenVerifier({Role.API: [CLIENT], Role.HIVE: [HIVE]})
    app = build_app(
        verifier=verifier, admins=PeerAdmins(), metrics=HttpMetrics(registry, "test"),
        max_body=1000, openai_prefixes=("/v1/chat",),
    )  # fmt: skip
    cancelled = asyncio.Event()

    async def endless(request: web.Request) -> web.StreamResponse:
        stream = await SseStream.open(request)
        try:
            while True:
                await stream.send("token", {"text": "x"})
                await asyncio.sleep(0.01)
        finally:
            cancelled.set()

    app.add_routes([
        web.get("/health", health), web.get("/metrics", metrics_handler(registry)), web.post("/echo", echo),
        web.get("/hives", for_hives), web.get("/busy", busy), web.get("/v1/chat/busy", busy),
        web.get("/broken", broken), web.get("/hang", hang), web.get("/not-json", not_json),
        web.get("/endless", endless), web.get("/breaks", break_after_head),
        web.get("/left", leave_after_head),
    ])  # fmt: skip
    tcp = bind_tcp("127.0.0.1", 0)
    server = Server(app, [tcp, bind_unix(socket_folder / "test.sock")], grace_s=0.2)
    await server.start()
    yield Service(f"http://127.0.0.1:{tcp.getsockname()[1]}", socket_folder / "test.sock", cancelled, verifier)
    await server.close()


async def answer(
    service: Service, method: str, path: str, *, token: str | None = "client-token", **arguments: object
) -> tuple[int, dict[str, object], CIMultiDictProxy[str]]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.request(method, service.url + path, **arguments) as response,  # type: ignore[arg-type]
    ):
        return response.status, await response.json(), response.headers


async def test_health_and_metrics_are_open_and_every_other_route_is_not(service: Service) -> None:
    assert (await answer(service, "GET", "/health", token=None))[0] == 200
    for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
        for path in ("/echo", "/nowhere"):
            status, body, headers = await answer(service, method, path, token=None)
            assert status == 401
            assert body["error"]["code"] == "MISSING_API_KEY"  # type: ignore[index]
            assert headers["WWW-Authenticate"] == "Bearer"


async def test_a_token_opens_the_routes_of_its_role_only(service: Service) -> None:
    assert (await answer(service, "GET", "/hives", token="hive-token"))[0] == 200
    assert (await answer(service, "GET", "/hives", token="client-token"))[0] == 403
    assert (await answer(service, "POST", "/echo", token="hive-token", json={"count": 1}))[0] == 403


async def test_every_answer_names_its_correlation_id(service: Service) -> None:
    mine = str(uuid.uuid4())
    _, body, headers = await answer(service, "GET", "/busy", headers={"X-Correlation-Id": mine})
    assert headers["X-Correlation-Id"] == mine == body["error"]["correlation_id"]  # type: ignore[index]
    _, _, other = await answer(service, "GET", "/health", headers={"X-Correlation-Id": "not a uuid"})
    assert uuid.UUID(other["X-Correlation-Id"])


async def test_errors_have_one_shape_and_openai_fields_on_its_routes(service: Service) -> None:
    status, body, headers = await answer(service, "GET", "/busy")
    assert (status, headers["Retry-After"]) == (503, "1")
    error = body["error"]
    assert set(error) == {"code", "message", "details", "correlation_id"}  # type: ignore[call-overload]
    assert error["details"] == {"slots_total": 2, "slots_busy": 2}  # type: ignore[index]
    _, body, _ = await answer(service, "GET", "/v1/chat/busy")
    assert body["error"]["type"] == "api_error"  # type: ignore[index]
    assert body["error"]["param"] is None  # type: ignore[index]


@pytest.mark.parametrize(
    ("method", "path", "payload", "status", "code"),
    [
        ("GET", "/nowhere", None, 404, "NOT_FOUND"),
        ("DELETE", "/echo", None, 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/echo", b"{", 400, "INVALID_REQUEST"),
        ("POST", "/echo", b'{"count": "x"}', 400, "INVALID_REQUEST"),
        ("POST", "/echo", b'{"count": 1, "more": 2}', 400, "INVALID_REQUEST"),
        ("POST", "/echo", b'"' + b"x" * 2000 + b'"', 413, "PAYLOAD_TOO_LARGE"),
        ("GET", "/broken", None, 500, "INTERNAL"),
    ],
)
async def test_each_failure_has_its_status_and_code_and_no_inside(
    service: Service, method: str, path: str, payload: bytes | None, status: int, code: str
) -> None:
    found, body, _ = await answer(service, method, path, data=payload)
    assert found == status
    assert body["error"]["code"] == code  # type: ignore[index]
    assert "/home" not in str(body)


UNREADABLE = [b"[" * 200_000, b'{"a": "\xff"}', b'{"a":' * 100_000 + b"1" + b"}" * 100_000]


@pytest.mark.parametrize("body", UNREADABLE)
def test_a_body_that_is_nested_without_end_or_no_utf8_is_no_fault_of_ours(body: bytes) -> None:
    with pytest.raises(InvalidRequest, match="not valid JSON"):
        decode_body(body, Any)
    with pytest.raises(ProtocolError, match="not valid JSON"):
        decode_answer(body, Any)


@pytest.mark.parametrize("body", [b'{"count": 1, "kind": "hunter2"}', b'{"count": 1, "' + b"x" * 500 + b'": 1}'])
def test_what_was_sent_is_not_echoed(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        decode_body(body, Body)
    assert "hunter2" not in caught.value.message
    assert len(caught.value.message) < 300


async def test_a_body_that_does_not_come_is_not_awaited_for_ever(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "BODY_LIMIT_S", 0.2)

    async def never() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    async with asyncio.timeout(5):
        status, body, _ = await answer(service, "POST", "/echo", data=never())
    assert (status, body["error"]["code"]) == (408, "REQUEST_TIMEOUT")  # type: ignore[index]


async def test_root_and_the_daemons_own_user_administer_by_unix_socket(service: Service) -> None:
    async with client_session(unix_socket=str(service.socket_path)) as session:
        found = await fetch_json(session, "POST", "http://odd_host!/echo", dict, body={"count": 3}, timeout_s=5)
        assert found == {"count": 3, "caller": f"uid:{os.geteuid()}"}
        await fetch_json(session, "GET", "http://x/hives", dict, timeout_s=5)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
async def test_another_user_gets_403_by_unix_socket(service: Service) -> None:
    nobody = 65534
    curl = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--unix-socket", str(service.socket_path), "http://test/busy",
        stdout=asyncio.subprocess.PIPE, user=nobody, group=nobody, extra_groups=[],
    )  # fmt: skip
    output, _ = await asyncio.wait_for(curl.communicate(), 10)
    error = msgspec.json.decode(output)["error"]
    assert error["code"] == "FORBIDDEN"
    assert error["details"] == {"uid": nobody, "group": "rbee"}


async def test_without_a_token_loopback_is_trusted(service: Service) -> None:
    service.verifier.replace({})
    status, body, _ = await answer(service, "POST", "/echo", token=None, json={"count": 1})
    assert (status, body["caller"]) == (200, "anonymous-loopback")


@pytest.mark.parametrize(
    ("origin", "status"),
    [("http://evil.example", 403), ("null", 403), ("http://localhost:8080", 200), ("http://[::1]", 200)],
)
async def test_without_a_token_a_foreign_page_in_a_browser_is_not_trusted(
    service: Service, origin: str, status: int
) -> None:
    service.verifier.replace({})
    headers = {"Origin": origin}
    assert (await answer(service, "POST", "/echo", token=None, json={"count": 1}, headers=headers))[0] == status


async def test_a_client_that_leaves_cancels_its_handler(service: Service) -> None:
    async with client_session(token=CLIENT) as session:
        async with session.get(service.url + "/endless") as response:
            await response.content.readany()
        async with asyncio.timeout(2):
            await service.cancelled.wait()


async def test_a_stream_that_breaks_ends_short(service: Service) -> None:
    async with client_session(token=CLIENT) as session:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.get(service.url + "/breaks") as response:
                await response.read()


async def test_a_client_that_left_is_no_error_in_the_log(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    async with client_session(token=CLIENT) as session:
        with pytest.raises(aiohttp.ClientPayloadError):
            async with session.get(service.url + "/left") as response:
                await response.read()
        async with session.get(service.url + "/metrics") as response:
            assert '{method="GET",route="/left",status="499"}' in await response.text()
    assert [record.message for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


@pytest.mark.parametrize("watched", [True, False])
async def test_a_watched_session_has_its_peers_machine_asked_whether_it_is_there(
    service: Service, watched: bool
) -> None:
    async with (
        client_session(token=CLIENT, watched=watched) as session,
        session.get(service.url + "/endless") as response,
    ):
        assert response.connection is not None and response.connection.transport is not None
        raw = response.connection.transport.get_extra_info("socket")
        assert bool(raw.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is watched
        limit_ms = raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert limit_ms == (PEER_LIMIT_S * 1000 if watched else 0)


async def test_the_client_tells_apart_what_went_wrong(service: Service) -> None:
    async with client_session(token=CLIENT) as session:
        with pytest.raises(ConnectionTimeout):
            await fetch_json(session, "GET", service.url + "/hang", dict, timeout_s=0.1)
        with pytest.raises(ProtocolError, match="line 2 column"):
            await fetch_json(session, "GET", service.url + "/not-json", dict, timeout_s=5)
        with pytest.raises(ProtocolError, match="status"):
            await fetch_json(session, "GET", service.url + "/health", Body, timeout_s=5)
        with pytest.raises(RemoteError) as caught:
            await fetch_json(session, "GET", service.url + "/busy", dict, timeout_s=5)
        assert (caught.value.code, caught.value.status) == ("ALL_SLOTS_BUSY", 503)
        with pytest.raises(Unavailable):
            await fetch_json(session, "GET", "http://127.0.0.1:1/", dict, timeout_s=5)


async def test_metrics_count_each_request_once_in_both_formats(service: Service) -> None:
    for _ in range(3):
        await answer(service, "GET", "/busy")
    async with aiohttp.ClientSession() as session:
        text = await (await session.get(service.url + "/metrics")).text()
        assert 'test_http_requests_total{method="GET",route="/busy",status="503"} 3.0' in text
        assert 'test_http_errors_total{code="ALL_SLOTS_BUSY"} 3.0' in text
        response = await session.get(service.url + "/metrics", headers={"Accept": "application/openmetrics-text"})
        assert (await response.text()).endswith("# EOF\n")


def test_counts_look_like_prometheus_own_counter() -> None:
    texts = []
    for kind in (Counts, Counter):
        registry = CollectorRegistry()
        family = kind("things_total", "What was seen", ("route",), registry=registry)
        kind("bare_total", "Without labels", registry=registry)
        for route in ("/a", "/b", "/a"):
            family.labels(route).inc()
        for content in ("text/plain", "application/openmetrics-text"):
            lines = exposition(registry, content)[0].decode().splitlines()
            texts.append([line.rpartition(" ")[0] if "_created" in line else line for line in lines])
    assert texts[:2] == texts[2:]
    assert 'things_total{route="/a"} 2.0' in texts[0]
    with pytest.raises(ValueError, match="route"):
        Counts("s_total", "S", ("route",), registry=CollectorRegistry()).labels()


def test_durations_look_like_prometheus_own_histogram() -> None:
    values = [0.001, 0.005, 0.0051, 0.3, 7.0, 0.005]
    texts = []
    for kind in (Durations, Histogram):
        registry = CollectorRegistry()
        family = kind("seconds", "What took so long", ("route",), buckets=(0.005, 0.1, 5.0), registry=registry)
        for value in values:
            family.labels("/a").observe(value, {"correlation_id": f"id-{value}"})
        for content in ("text/plain", "application/openmetrics-text"):
            text = exposition(registry, content)[0].decode()
            texts.append([line.split(" # ")[0] for line in text.splitlines() if "_created" not in line])
        assert 'correlation_id="id-7.0"' in text
    assert texts[:2] == texts[2:]
    with pytest.raises(ValueError, match="route"):
        family = Durations("s", "S", ("route",), buckets=(1.0,), registry=CollectorRegistry())
        family.labels()
