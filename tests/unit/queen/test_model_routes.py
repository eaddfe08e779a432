"""Orders about a node's models on their way through the queen: passed on as they are, answered as the hive answers."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.unit.queen.conftest import RunningQueen
from tests.unit.queen.partners import HIVE_TOKEN, served

REFERENCE = "hf:org/tiny"
MODEL = "org--tiny-74c07321"
TICKET = "t" * 32


class Store:
    """Speaks a hive's routes for models and records what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.tokens: set[str | None] = set()
        self.url = ""
        self.refuse: tuple[int, str] | None = None
        self.refuse_tickets = False
        self.go_on = asyncio.Event()

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_route("*", "/{path:.+}", self.answer)
        return app

    async def answer(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        self.asked.append((request.method, request.path_qs, json.loads(text) if text else None))
        self.tokens.add(request.headers.get("Authorization"))
        if self.refuse is not None:
            status, code = self.refuse
            return web.json_response({"error": {"code": code, "message": "no", "details": {"a": 1}}}, status=status)
        if request.path.endswith("/ticket") and self.refuse_tickets:
            return web.json_response({"error": {"code": "MODEL_NOT_HERE", "message": "no", "details": {}}}, status=404)
        if request.path.endswith("/ticket"):
            return web.json_response({"model": MODEL, "reference": REFERENCE, "ticket": TICKET, "expires_unix": 9e9})
        if request.headers.get("Accept") == "text/event-stream":
            return await self.stream(request)
        return web.json_response({"said": request.path})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'event: progress\ndata: {"n": 1}\n\n')
        await self.go_on.wait()
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    made = Store()
    async with served(made.app()) as made.url:
        yield made
        made.go_on.set()


@pytest.fixture
async def fleet(queen: RunningQueen, store: Store) -> RunningQueen:
    """A queen to whom the hives bee and far report, both at the store's address."""
    for hive in ("bee", "far"):
        await queen.beat(hive=hive, api_url=store.url)
    return queen


async def call(queen: RunningQueen, method: str, path: str, body: object = None) -> tuple[int, Any]:
    async with queen.client.request(method, queen.url + path, json=body) as response:
        return response.status, await response.json()


@pytest.mark.parametrize(
    ("method", "path", "body", "there"),
    [
        ("GET", "models?provider=hf", None, "/v1/models?provider=hf"),
        ("GET", f"models/download/progress?model={MODEL}", None, f"/v1/models/download/progress?model={MODEL}"),
        ("DELETE", f"models/{MODEL}", None, f"/v1/models/{MODEL}"),
        ("POST", f"models/{MODEL}/verify", None, f"/v1/models/{MODEL}/verify"),
        ("PUT", f"models/{MODEL}/pin", {"pinned": True}, f"/v1/models/{MODEL}/pin"),
        ("POST", "catalog/backup", None, "/v1/catalog/backup"),
    ],
)
async def test_an_order_reaches_the_hive_with_the_queens_token(
    fleet: RunningQueen, store: Store, method: str, path: str, body: object, there: str
) -> None:
    status, answer = await call(fleet, method, f"/v2/hives/bee/{path}", body)
    assert (status, answer) == (200, {"said": there.partition("?")[0]})
    assert store.asked == [(method, there, body)]
    assert store.tokens == {f"Bearer {HIVE_TOKEN}"}


async def test_a_download_streams_as_it_comes(fleet: RunningQueen, store: Store) -> None:
    headers = {"Accept": "text/event-stream"}
    url = f"{fleet.url}/v2/hives/bee/models/download"
    async with fleet.client.post(url, json={"reference": REFERENCE}, headers=headers) as response:
        assert response.content_type == "text/event-stream"
        assert await response.content.readuntil(b"\n\n") == b'event: progress\ndata: {"n": 1}\n\n'
        store.go_on.set()
        assert await response.content.read() == b"data: [DONE]\n\n"
    assert store.asked == [("POST", "/v1/models/download", {"reference": REFERENCE, "source": None})]


async def test_a_copy_is_ordered_with_a_ticket_of_the_hive_that_has_it(fleet: RunningQueen, store: Store) -> None:
    await call(fleet, "POST", "/v2/hives/bee/models/download", {"reference": REFERENCE, "from_hive": "far"})
    assert store.asked == [
        ("POST", f"/v1/models/{MODEL}/ticket", None),
        (
            "POST",
            "/v1/models/download",
            {"reference": REFERENCE, "source": {"url": store.url, "model": MODEL, "ticket": TICKET, "optional": False}},
        ),
    ]


async def test_a_copy_is_taken_from_whichever_hive_has_it_else_from_the_source(
    fleet: RunningQueen, store: Store
) -> None:
    body = {"reference": REFERENCE, "copy": True}
    await fleet.beat(hive="dead", api_url="http://127.0.0.1:9")
    await call(fleet, "POST", "/v2/hives/bee/models/download", body)
    source = {"url": store.url, "model": MODEL, "ticket": TICKET, "optional": True}
    assert store.asked == [
        ("POST", f"/v1/models/{MODEL}/ticket", None),
        ("POST", "/v1/models/download", {"reference": REFERENCE, "source": source}),
    ]
    store.refuse_tickets = True
    await call(fleet, "POST", "/v2/hives/bee/models/download", body)
    assert store.asked[-1] == ("POST", "/v1/models/download", {"reference": REFERENCE, "source": None})


async def test_a_folder_of_one_machine_is_not_copied_to_another(fleet: RunningQueen, store: Store) -> None:
    body = {"reference": "file:///srv/models/x", "from_hive": "far"}
    status, answer = await call(fleet, "POST", "/v2/hives/bee/models/download", body)
    assert (status, answer["error"]["code"]) == (400, "INVALID_REQUEST")
    assert store.asked == []


async def test_the_hives_refusal_comes_back_as_it_is(fleet: RunningQueen, store: Store) -> None:
    store.refuse = (409, "MODEL_IN_USE")
    status, answer = await call(fleet, "DELETE", f"/v2/hives/bee/models/{MODEL}")
    assert (status, answer["error"]["code"], answer["error"]["details"]) == (409, "MODEL_IN_USE", {"a": 1})
    store.refuse = (401, "INVALID_API_KEY")
    status, answer = await call(fleet, "GET", "/v2/hives/bee/models")
    assert (status, answer["error"]["code"]) == (503, "HIVE_UNREACHABLE")


@pytest.mark.parametrize("hive", ["nobody", "gone"])
async def test_a_hive_that_is_not_there_is_named(fleet: RunningQueen, hive: str) -> None:
    await fleet.beat(hive="gone", api_url="http://127.0.0.1:9")
    status, answer = await call(fleet, "GET", f"/v2/hives/{hive}/models")
    assert (status, answer["error"]["code"]) == (503, "HIVE_UNREACHABLE")
    assert answer["error"]["details"]["hive_id"] == hive


async def test_only_an_administrator_orders(fleet: RunningQueen, store: Store) -> None:
    async with aiohttp.ClientSession() as nobody, nobody.get(f"{fleet.url}/v2/hives/bee/models") as response:
        assert response.status == 401
    async with fleet.hive.get(f"{fleet.url}/v2/hives/bee/models") as response:
        assert response.status == 403
    assert store.asked == []
