"""Real HTTP servers that the queen's tests put in a worker's and a hive's place, and messages as a hive sends them."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web
from multidict import CIMultiDictProxy

from rbee import __version__
from rbee.wire.messages import MachineFacts, WorkerHealth, WorkerReport, WorkerState
from rbee.wire.worker_spec import Backend, Task

Fields = Any
MODEL = "talk"
WORKER_TOKEN = "worker-token"
HIVE_TOKEN = "hive-token"


async def until(condition: Callable[[], object], limit_s: float = 5.0) -> None:
    """Wait until ``condition`` holds; what is waited for happens in this very process."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - what a server saw has no event of its own
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def served(app: web.Application, port: int = 0) -> AsyncIterator[str]:
    """An application on a port of 127.0.0.1; yields its address."""
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, reuse_address=True)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass
class WorkerPartner:
    """Speaks a worker's routes. ``tokens`` are streamed ``pace_s`` apart; ``break_after`` cuts the connection."""

    tokens: list[str] = field(default_factory=lambda: ["one ", "two ", "three"])
    pace_s: float = 0.0
    break_after: int | None = None
    refuse_with: list[tuple[int, bytes]] = field(default_factory=list)
    ready: bool = True
    ready_hold: asyncio.Event | None = None
    hold: asyncio.Event | None = None
    bodies: list[bytes] = field(default_factory=list)
    headers: list[CIMultiDictProxy[str]] = field(default_factory=list)
    arrived: list[float] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    gone: int = 0
    polls: int = 0
    running: int = 0
    url: str = ""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", self.openai)
        app.router.add_post("/v1/completions", self.openai)
        app.router.add_post("/v1/embeddings", self.openai)
        app.router.add_post("/v1/rerank", self.openai)
        app.router.add_post("/v2/models/{model:.+}/infer", self.openai)
        app.router.add_post("/v1/inference", self.inference)
        app.router.add_delete("/v1/inference/{id}", self.cancel)
        app.router.add_get("/v1/ready", self.ready_route)
        app.router.add_get("/v2/models/{model:.+}", self.metadata)
        app.router.add_get("/health", self.health)
        return app

    async def _take(self, request: web.Request) -> web.Response | None:
        self.arrived.append(time.monotonic())
        self.bodies.append(await request.read())
        self.headers.append(request.headers)
        if request.headers.get("Authorization") != f"Bearer {WORKER_TOKEN}":
            return web.Response(status=401)
        if self.refuse_with:
            status, body = self.refuse_with.pop(0)
            return web.Response(status=status, body=body, content_type="application/json")
        return None

    async def openai(self, request: web.Request) -> web.StreamResponse:
        refused = await self._take(request)
        if refused is not None:
            return refused
        body = json.loads(self.bodies[-1])
        if not isinstance(body, dict):
            return web.json_response({"error": {"code": "INVALID_REQUEST", "message": "no object"}}, status=400)
        if not body.get("stream"):
            await self._wait()
            answer = {"model": body.get("model"), "path": request.path, "answer": "".join(self.tokens)}
            return await self._whole(request, json.dumps(answer).encode())
        lines = [json.dumps({"choices": [{"delta": {"content": token}}]}) for token in self.tokens]
        return await self._stream(request, [f"data: {line}\n\n".encode() for line in lines])

    async def inference(self, request: web.Request) -> web.StreamResponse:
        refused = await self._take(request)
        if refused is not None:
            return refused
        request_id = request.headers["X-Request-Id"]
        events: list[tuple[str, dict[str, Any]]] = [("started", {"request_id": request_id})]
        events += [("token", {"text": token, "index": number}) for number, token in enumerate(self.tokens)]
        events += [("metrics", {"completion_tokens": len(self.tokens)}), ("end", {"finish_reason": "stop"})]
        return await self._stream(
            request, [f"event: {name}\ndata: {json.dumps(data)}\n\n".encode() for name, data in events]
        )

    async def _whole(self, request: web.Request, body: bytes) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
        await response.prepare(request)
        if self.break_after is not None:
            await response.write(body[: len(body) // 2])
            await asyncio.sleep(0.05)
            assert request.transport is not None
            request.transport.abort()
            return response
        await response.write(body)
        return response

    async def _wait(self) -> None:
        self.running += 1
        try:
            if self.hold is not None:
                await self.hold.wait()
        except asyncio.CancelledError:
            self.gone += 1
            raise
        finally:
            self.running -= 1

    async def _stream(self, request: web.Request, events: list[bytes]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        self.running += 1
        try:
            for number, event in enumerate(events):
                if number == self.break_after:
                    await response.write(event[: len(event) // 2])  # an event cut in the middle
                    await asyncio.sleep(0.05)
                    assert request.transport is not None
                    request.transport.abort()
                    return response
                await response.write(event)
                if self.hold is not None and number == 1:
                    await self.hold.wait()
                await asyncio.sleep(self.pace_s)
            await response.write(b"data: [DONE]\n\n")
        except (asyncio.CancelledError, ConnectionError):
            self.gone += 1
            raise
        finally:
            self.running -= 1
        return response

    async def cancel(self, request: web.Request) -> web.StreamResponse:
        self.cancelled.append(request.match_info["id"])
        return web.Response(status=204)

    async def ready_route(self, request: web.Request) -> web.StreamResponse:
        self.polls += 1
        if self.ready_hold is not None:
            await self.ready_hold.wait()
        return web.json_response({"ready": self.ready, "state": "idle" if self.ready else "loading"})

    async def metadata(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"name": request.match_info["model"], "inputs": []})

    async def health(self, request: web.Request) -> web.StreamResponse:
        facts = WorkerHealth("healthy", WorkerState.IDLE, "w", __version__, 4, 0, 1.0, 0)
        return web.Response(body=msgspec.json.encode(facts), content_type="application/json")


@dataclass
class HivePartner:
    """Speaks a hive's routes and records what it was asked; ``surveyed`` counts questions for its catalogue.

    ``forgotten`` are those of the workers that were ``stopped`` whose definitions were to be forgotten.
    """

    spawned: list[dict[str, Any]] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    answer: bytes = b'{"worker_id": "w", "state": "loading"}'
    status: int = 202
    tokens: list[str | None] = field(default_factory=list)
    surveyed: int = 0
    url: str = ""

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/workers/spawn", self.spawn)
        app.router.add_delete("/v1/workers/{worker}", self.stop)
        app.router.add_get("/v1/health", self.health)
        return app

    async def spawn(self, request: web.Request) -> web.StreamResponse:
        self.spawned.append(await request.json())
        self.tokens.append(request.headers.get("Authorization"))
        return web.Response(status=self.status, body=self.answer, content_type="application/json")

    async def stop(self, request: web.Request) -> web.StreamResponse:
        self.stopped.append(request.match_info["worker"])
        if request.query.get("forget") == "true":
            self.forgotten.append(request.match_info["worker"])
        return web.json_response({"state": "draining"})

    async def health(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "ok"})


MACHINE = MachineFacts("host", 2, 1 << 34, 1 << 33, 1 << 40, 1 << 39)


def report(
    state: WorkerState = WorkerState.IDLE,
    *,
    worker: str = "w",
    hive: str = "bee",
    boot: str = "boot-1",
    revision: int = 1,
    url: str | None = "http://127.0.0.1:9",
    model: str = MODEL,
    **more: Fields,
) -> WorkerReport:
    """A worker's report as a hive sends it."""
    values: dict[str, Any] = {"slots_total": 4, "backend": Backend.CPU, "task": Task.GENERATE} | more
    return WorkerReport(
        worker_id=worker,
        hive_id=hive,
        boot_id=boot,
        revision=revision,
        state=state,
        url=url,
        model=model,
        model_ref=f"file:///models/{model}",
        **values,
    )
