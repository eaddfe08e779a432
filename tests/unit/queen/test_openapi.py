"""The OpenAPI document says what the queen does: each of its routes, and what its answers really look like."""

import re
from typing import Any

import pytest
from tests.unit.queen.conftest import RunningQueen
from tests.unit.queen.partners import MODEL

from rbee.wire.http.openapi import NotDescribed, described

METHODS = {"get", "post", "put", "patch", "delete"}


async def document(queen: RunningQueen) -> dict[str, Any]:
    status, found = await queen.get("/openapi.json")
    assert status == 200
    return dict(found)


def app_of(queen: RunningQueen) -> Any:  # noqa: ANN401
    return queen.daemon._server._runner.app


async def test_every_route_is_in_it_and_nothing_else(queen: RunningQueen) -> None:
    written = {(method.upper(), path) for path, item in (await document(queen))["paths"].items() for method in item}
    routes = {
        (route.method, route.resource.canonical)
        for route in app_of(queen).router.routes()
        if route.method != "HEAD" and route.resource is not None
    }
    assert written == routes
    assert ("POST", "/v1/chat/completions") in written


async def test_a_route_that_is_not_described_is_a_defect(queen: RunningQueen) -> None:
    from aiohttp import web

    async def bare(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/bare", bare)
    with pytest.raises(NotDescribed, match="/bare"):
        list(described(app))


async def test_every_operation_is_whole(queen: RunningQueen) -> None:
    found = await document(queen)
    assert found["openapi"] == "3.1.0"
    seen = set()
    for path, item in found["paths"].items():
        for method, operation in item.items():
            assert method in METHODS
            assert operation["summary"], (method, path)
            assert operation["operationId"] not in seen
            seen.add(operation["operationId"])
            placeholders = set(re.findall(r"\{(\w+)\}", path))
            named = {one["name"] for one in operation["parameters"] if one["in"] == "path"}
            assert named == placeholders, path
            assert "default" in operation["responses"]


async def test_every_reference_leads_somewhere(queen: RunningQueen) -> None:
    found = await document(queen)

    def references(node: object) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [one for value in node.values() for one in references(value)]
        return [one for value in node for one in references(value)] if isinstance(node, list) else []

    for reference in references(found):
        place: Any = found
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


async def test_only_health_and_metrics_are_open(queen: RunningQueen) -> None:
    found = await document(queen)
    free = {path for path, item in found["paths"].items() for one in item.values() if not one["security"]}
    assert free == {"/health", "/metrics"}


async def test_answers_have_the_media_and_status_that_are_written(serving: RunningQueen) -> None:
    found = await document(serving)
    known = {"{model}": MODEL, "{hive}": "bee", "{worker}": "w", "{version}": "1", "{name}": "w", "{task}": "none"}
    for path, item in found["paths"].items():
        if "get" not in item or path in ("/v2/events", "/v2/hives/{hive}/session"):
            continue
        url = path
        for placeholder, value in known.items():
            url = url.replace(placeholder, value)
        async with serving.client.get(serving.url + url) as response:
            written = item["get"]["responses"]
            answer = written.get(str(response.status), written["default"])
            assert response.content_type in answer["content"], (path, response.status)
            assert all(name in response.headers for name in answer["headers"]), (path, response.headers)
