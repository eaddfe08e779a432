"""The routes about models as a caller sees them: answers, events, refusals, tickets."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry
from tests.behaviour.support.model_source import Fault, ModelSource
from tests.unit.hive.audit import audit_in
from tests.unit.hive.models.conftest import Bench

from rbee.hive.models.orders import ModelOrders
from rbee.hive.models.routes import PROGRESS_PATH, ModelRoutes
from rbee.hive.models.tickets import LASTS_S, Tickets
from rbee.wire.auth import TokenVerifier
from rbee.wire.errors import InvalidApiKey, MissingApiKey
from rbee.wire.http.metrics import HttpMetrics
from rbee.wire.http.server import build_app
from rbee.wire.peer import PeerAdmins
from rbee.wire.sse import SseDecoder

FILES = {"model.onnx": b"a" * 300_000}
EVENTS = {"Accept": "text/event-stream"}


class Caller:
    def __init__(self, client: aiohttp.ClientSession, url: str) -> None:
        self.client = client
        self.url = url

    async def call(self, method: str, path: str, body: object = None) -> tuple[int, Any, str]:
        async with self.client.request(method, self.url + path, json=body) as response:
            return response.status, await response.json(), response.headers.get("Location", "")

    async def events(self, method: str, path: str, body: object = None) -> list[tuple[str, bytes]]:
        async with self.client.request(method, self.url + path, json=body, headers=EVENTS) as response:
            assert (response.status, response.content_type) == (200, "text/event-stream")
            return [(event.event, event.data) for event in SseDecoder().feed(await response.read())]


@pytest.fixture
async def caller(bench: Bench) -> AsyncIterator[Caller]:
    metrics = HttpMetrics(CollectorRegistry(), "hive")
    app = build_app(verifier=TokenVerifier({}), admins=PeerAdmins(frozenset()), metrics=metrics)
    folder = bench.config.paths.state_dir
    ModelRoutes(bench.store, ModelOrders(bench.store, folder, audit_in(folder))).add_to(app)
    async with TestServer(app) as server, aiohttp.ClientSession() as client:
        yield Caller(client, f"http://127.0.0.1:{server.port}")


async def test_a_download_can_be_ordered_and_asked_for_later(caller: Caller, source: ModelSource) -> None:
    reference = source.folder("tiny", FILES)
    status, answer, place = await caller.call("POST", "/v1/models/download", {"reference": reference})
    assert (status, place) == (202, f"{PROGRESS_PATH}?model={answer['model']}")
    events = await caller.events("GET", place)
    assert [name for name, _ in events[-2:]] == ["complete", "message"]
    assert events[-1][1] == b"[DONE]"
    for path in (place, f"{PROGRESS_PATH}?reference={reference}"):
        status, shown, _ = await caller.call("GET", path)
        assert (status, shown["stage"], shown["bytes_downloaded"]) == (200, "complete", 300_000)
    _, listed, _ = await caller.call("GET", PROGRESS_PATH)
    assert [each["model"] for each in listed["downloads"]] == [answer["model"]]


async def test_a_client_that_leaves_its_stream_ends_nothing(caller: Caller, bench: Bench, source: ModelSource) -> None:
    source.pace_s = 0.1
    body = {"reference": source.folder("tiny", FILES)}
    async with caller.client.post(f"{caller.url}/v1/models/download", json=body, headers=EVENTS) as response:
        await response.content.readuntil(b"\n\n")
    (download,) = bench.store.downloads()
    async with asyncio.timeout(20):
        assert (await download.result()).size_bytes == 300_000


async def test_a_download_that_failed_tells_its_error_as_an_event_and_later(
    caller: Caller, source: ModelSource
) -> None:
    reference = source.folder("tiny", FILES)
    source.fault("model.onnx", Fault(status=403))
    *_, (name, data), (_, end) = await caller.events("POST", "/v1/models/download", {"reference": reference})
    assert (name, end) == ("error", b"[DONE]")
    assert b'"code":"MODEL_ACCESS_DENIED"' in data
    _, shown, _ = await caller.call("GET", f"{PROGRESS_PATH}?reference={reference}")
    assert (shown["stage"], shown["error"]["code"]) == ("failed", "MODEL_ACCESS_DENIED")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("GET", f"{PROGRESS_PATH}?model=none", None, 404, "MODEL_NOT_HERE"),
        ("DELETE", "/v1/models/none", None, 404, "MODEL_NOT_HERE"),
        ("POST", "/v1/models/none/verify", None, 404, "MODEL_NOT_HERE"),
        ("POST", "/v1/models/none/ticket", None, 404, "MODEL_NOT_HERE"),
        ("PUT", "/v1/models/none/pin", {"pinned": True}, 404, "MODEL_NOT_HERE"),
        ("PUT", "/v1/models/none/pin", {"pinned": "yes"}, 400, "INVALID_REQUEST"),
        ("DELETE", "/v1/models/..%2fhive", None, 400, "INVALID_REQUEST"),
        ("DELETE", "/v1/models/.partial", None, 400, "INVALID_REQUEST"),
        ("GET", "/v1/models?provider=ftp", None, 400, "INVALID_REQUEST"),
        ("POST", "/v1/models/download", {"reference": "garbage"}, 400, "INVALID_MODEL_REFERENCE"),
        ("POST", "/v1/models/download", {"reference": "hf:a/b", "more": 1}, 400, "INVALID_REQUEST"),
        ("GET", "/v1/models/none/files", None, 401, "MISSING_API_KEY"),
    ],
)
async def test_what_cannot_be_done_is_refused(
    caller: Caller, method: str, path: str, body: object, status: int, code: str
) -> None:
    async with caller.client.request(method, caller.url + path, json=body) as response:
        assert (response.status, (await response.json())["error"]["code"]) == (status, code)


async def test_a_pin_is_shown_and_taken_back(caller: Caller, bench: Bench, source: ModelSource) -> None:
    row = await bench.pull(source.folder("tiny", FILES))
    for pinned in (True, False):
        _, answer, _ = await caller.call("PUT", f"/v1/models/{row.id}/pin", {"pinned": pinned})
        _, listed, _ = await caller.call("GET", "/v1/models")
        assert (answer["pinned"], listed["models"][0]["pinned"]) == (pinned, pinned)


def test_a_ticket_is_for_one_model_and_for_a_while() -> None:
    now = 1000.0
    tickets = Tickets(lambda: now)
    secret, expires = tickets.give("a")
    assert expires == now + LASTS_S
    header = f"Bearer {secret.reveal()}"
    tickets.check("a", header)
    for model, presented in (("b", header), ("a", header + "x"), ("a", secret.reveal()), ("a", "Bearer ")):
        with pytest.raises(InvalidApiKey):
            tickets.check(model, presented)
    with pytest.raises(MissingApiKey):
        tickets.check("a", None)
    now = expires
    with pytest.raises(InvalidApiKey):
        tickets.check("a", header)


def test_tickets_are_bounded() -> None:
    tickets = Tickets(lambda: 0.0)
    first, _ = tickets.give("a")
    for _ in range(8):
        last, _ = tickets.give("a")
    tickets.check("a", f"Bearer {last.reveal()}")
    with pytest.raises(InvalidApiKey):
        tickets.check("a", f"Bearer {first.reveal()}")
    for number in range(256):
        tickets.give(f"m{number}")
    with pytest.raises(InvalidApiKey):
        tickets.check("a", f"Bearer {last.reveal()}")
