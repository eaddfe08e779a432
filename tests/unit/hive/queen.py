"""A queen of the tests: a real HTTP server that answers, refuses, fails or hangs as it is told."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from aiohttp import web

from rbee.wire.auth import Secret
from rbee.wire.http.client import client_session

TOKEN = "a-token-of-the-tests"
Seen = tuple[str, dict[str, Any], str]


class Queen:
    """Keeps what it got as (path, body, Authorization); ``faults`` are taken one a request: a status, or ``hang``."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.times: list[float] = []
        self.faults: list[int | str] = []
        self.instance_id = "queen-1"
        self.has_session = True
        self.token: str | None = None  # any
        self.refused: Counter[str] = Counter()
        self.sessions = 0
        self.port = 0
        self._news = asyncio.Event()
        self._end_sessions = asyncio.Event()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/v2/workers/ready", self._post)
        app.router.add_post("/v2/workers/state", self._post)
        app.router.add_post("/v2/hives/{hive}/heartbeat", self._post)
        app.router.add_get("/v2/hives/{hive}/session", self._session)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def close_sessions(self) -> None:
        """End every session that is open, as a queen that restarts does."""
        self._end_sessions.set()
        await asyncio.sleep(0)
        self._end_sessions = asyncio.Event()

    def _check(self, request: web.Request) -> None:
        if self.token is None or request.headers.get("Authorization") == f"Bearer {self.token}":
            return
        self.refused[request.path.rpartition("/")[2]] += 1
        self._news.set()
        error = {"code": "INVALID_API_KEY", "message": "no", "details": {"reason": "unknown_token"}}
        raise web.HTTPUnauthorized(text=json.dumps({"error": error}), content_type="application/json")

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "healthy"})

    async def _post(self, request: web.Request) -> web.Response:
        self._check(request)
        self.seen.append((request.path, await request.json(), request.headers.get("Authorization", "")))
        self.times.append(time.monotonic())
        self._news.set()
        fault = self.faults.pop(0) if self.faults else None
        if fault == "hang":
            await asyncio.sleep(60)
        if isinstance(fault, int):
            error = {"code": "INVALID_API_KEY" if fault == 401 else "INTERNAL", "message": "no"}
            return web.json_response({"error": error}, status=fault)
        answer = {"success": True, "message": "stored", "instance_id": self.instance_id, "version": "0.1.0"}
        return web.json_response(answer)

    async def _session(self, request: web.Request) -> web.StreamResponse:
        self._check(request)
        if not self.has_session:
            raise web.HTTPNotFound
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.sessions += 1
        hello = json.dumps({"instance_id": self.instance_id})
        await response.write(f"event: hello\ndata: {hello}\n\n".encode())
        self._news.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60):
                await self._end_sessions.wait()
        return response

    def paths(self) -> list[str]:
        return [path.rpartition("/")[2] for path, _, _ in self.seen]

    async def until(self, fits: Callable[[], bool], limit_s: float = 10.0) -> None:
        async with asyncio.timeout(limit_s):
            while not fits():
                self._news.clear()
                await self._news.wait()


@asynccontextmanager
async def queen_and_session() -> AsyncIterator[tuple[Queen, aiohttp.ClientSession]]:
    queen = Queen()
    await queen.start()
    session = client_session(token=Secret(TOKEN))
    try:
        yield queen, session
    finally:
        await session.close()
        await queen.stop()
