"""The OpenAPI document says what the queen does: each of its routes, and what its answers really look like."""

import pytest
from aiohttp import web
from tests.unit.documents import check_reads, check_whole, document, open_paths, routes_of, written_routes
from tests.unit.queen.conftest import RunningQueen
from tests.unit.queen.partners import MODEL

from rbee.wire.http.openapi import NotDescribed, described


def app_of(queen: RunningQueen) -> web.Application:
    return queen.daemon._server._runner.app


async def test_every_route_is_in_it_and_nothing_else(queen: RunningQueen) -> None:
    written = written_routes(await document(queen.client, queen.url))
    assert written == routes_of(app_of(queen))
    assert ("POST", "/v1/chat/completions") in written


async def test_a_route_that_is_not_described_is_a_defect() -> None:
    async def bare(request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application()
    app.router.add_get("/bare", bare)
    with pytest.raises(NotDescribed, match="/bare"):
        list(described(app))


async def test_every_operation_is_whole_and_only_health_and_metrics_are_open(queen: RunningQueen) -> None:
    found = await document(queen.client, queen.url)
    check_whole(found)
    assert open_paths(found) == {"/health", "/metrics"}


async def test_answers_have_the_media_and_status_that_are_written(serving: RunningQueen) -> None:
    found = await document(serving.client, serving.url)
    known = {"{model}": MODEL, "{hive}": "bee", "{worker}": "w", "{version}": "1", "{name}": "w", "{task}": "none"}
    await check_reads(serving.client, serving.url, found, known, ("/v2/events", "/v2/hives/{hive}/session"))
