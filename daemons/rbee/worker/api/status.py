"""Health, readiness, and the progress of loading."""

import asyncio

import msgspec
from aiohttp import web

from rbee.wire.http.operations import EVENTS, operation
from rbee.wire.http.server import SseStream, json_response
from rbee.wire.messages import Progress, WorkerHealth, WorkerState
from rbee.worker.progress import Loaded, Stage, describe
from rbee.worker.service import WorkerService

PROGRESS_ROUTE = "/v1/loading/progress"
KEEP_OPEN_S = 10.0


class Readiness(msgspec.Struct, frozen=True):
    """GET /v1/ready; ``progress_url`` is where loading is told."""

    ready: bool
    state: WorkerState
    model_loaded: bool
    progress_url: str


class StatusRoutes:
    """Routes that tell what the worker is about; none of them counts as activity."""

    def __init__(self, service: WorkerService) -> None:
        self._service = service

    @operation(WorkerHealth, more=(503,))
    async def health(self, request: web.Request) -> web.StreamResponse:
        """GET /health: 200, or 503 when a step of inference is stuck."""
        health = self._service.health()
        return json_response(health, status=200 if health.status == "healthy" else 503)

    @operation(Readiness)
    async def ready(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/ready."""
        state = self._service.state
        return json_response(Readiness(state.ready, state, self._service.loaded is not None, PROGRESS_ROUTE))

    @operation(media=(EVENTS,))
    async def progress(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/loading/progress: stages as events, then ready or error, then [DONE]."""
        stream = await SseStream.open(request)
        stages = aiter(self._service.board.follow())
        upcoming = asyncio.ensure_future(anext(stages, None))
        try:
            while True:
                await asyncio.wait({upcoming}, timeout=KEEP_OPEN_S)
                if not upcoming.done():
                    await stream.comment("still loading")
                    continue
                stage = upcoming.result()
                if stage is None:
                    break
                await stream.send(*self._event(stage))
                upcoming = asyncio.ensure_future(anext(stages, None))
        finally:
            upcoming.cancel()
        await stream.done()
        return stream.response

    def _event(self, stage: Stage) -> tuple[str, object]:
        if isinstance(stage, Progress):
            return "progress", {**msgspec.structs.asdict(stage), "text": describe(stage)}
        if isinstance(stage, Loaded):
            ready = {"model": self._service.definition.model, "load_seconds": round(stage.seconds, 3)}
            return "ready", {**ready, "state": self._service.state.value}
        return "error", stage.info(None)
