"""A stream to a reader who does not read: bounded, in order, and ended in time."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web
from tests.unit.worker.process import read_events

from rbee.wire.errors import InferenceCancelled
from rbee.wire.http.server import SseStream
from rbee.worker.api.events import BoundedStream

PADDING = "." * 65536


@asynccontextmanager
async def served(handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    app = web.Application()
    app.add_routes([web.get("/", handler)])
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def test_a_reader_that_stops_reading_is_cancelled_and_little_was_produced() -> None:
    sent: list[int] = []
    ended: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    async def handler(request: web.Request) -> web.StreamResponse:
        stream = BoundedStream(await SseStream.open(request), limit_s=0.4)
        try:
            for index in range(10_000):
                await stream.send("token", {"index": index, "text": PADDING})
                sent.append(index)
        except InferenceCancelled as error:
            ended.set_result(error)
        return stream.response

    async with served(handler) as url, aiohttp.ClientSession() as client, client.get(url):
        async with asyncio.timeout(5):
            assert "took nothing for 0.4 s" in str(await ended)
    assert len(sent) < 1000


async def test_the_connection_of_a_reader_that_stopped_reading_is_closed() -> None:
    handled: asyncio.Future[asyncio.BaseTransport] = asyncio.get_running_loop().create_future()

    async def handler(request: web.Request) -> web.StreamResponse:
        transport = request.transport
        assert transport is not None
        stream = BoundedStream(await SseStream.open(request), limit_s=0.2)
        with contextlib.suppress(InferenceCancelled):
            while True:
                await stream.send("token", {"text": PADDING})
        await stream.finish(("error", {}))
        handled.set_result(transport)
        return stream.response

    async with served(handler) as url, aiohttp.ClientSession() as client, client.get(url):
        async with asyncio.timeout(5):
            transport = await handled
            while transport.get_extra_info("socket").fileno() != -1:  # noqa: ASYNC110 - the close of a socket has no event
                await asyncio.sleep(0.02)


async def test_a_reader_that_pauses_gets_everything_in_order() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        stream = await BoundedStream.open(request, {})
        for index in range(200):
            await stream.send("token", {"index": index, "text": PADDING})
        await stream.finish(("end", {}))
        return stream.response

    async with served(handler) as url, aiohttp.ClientSession() as client, client.get(url) as answer:
        await asyncio.sleep(0.3)
        events = await read_events(answer)
    indices = [json.loads(event.data)["index"] for event in events if event.event == "token"]
    assert indices == list(range(200))
    assert [event.event for event in events[-2:]] == ["end", "message"]
