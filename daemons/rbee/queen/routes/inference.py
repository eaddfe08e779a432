"""Routes that run a model: OpenAI's, Open Inference's, the typed stream, and tasks."""

import asyncio
import dataclasses
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable
from urllib.parse import quote

import msgspec
from aiohttp import web

from rbee.queen.core import Core
from rbee.queen.registry.registry import Worker
from rbee.queen.requests.asks import Ask, Head, read_ask
from rbee.queen.requests.dispatch import REQUEST_ID_HEADER, Call, Refused
from rbee.queen.requests.explain import Trail
from rbee.queen.requests.passage import Account, accounted, carry
from rbee.queen.requests.reply import TRAIL, Reply, Sink, refused
from rbee.queen.requests.stories import OpenAiStory, Story, TypedStory
from rbee.queen.requests.tasks import Task, TaskState
from rbee.wire import context
from rbee.wire.errors import Conflict, InferenceCancelled, InvalidRequest, ModelNotFound
from rbee.wire.http.operations import BYTES, EVENTS, JSON, operation
from rbee.wire.http.server import SseStream, json_response
from rbee.wire.names import request_id as valid_request_id
from rbee.wire.sse import CONTENT_TYPE

OPENAI_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/rerank")
INFER_ROUTE = "/v2/models/{model:.+}/infer"
VERSIONED_INFER_ROUTE = "/v2/models/{model:.+}/versions/{version}/infer"
TYPED_ROUTE = "/v1/inference"
COMMENT_S = 15.0
REQUEST_HEADERS = {
    "X-Request-Deadline": "when nobody waits any more: ISO-8601 with an offset, or epoch milliseconds",
    "Prefer": "respond-async: refuse at once where the model is not ready",
}
INFER_HEADERS = REQUEST_HEADERS | {"Inference-Header-Content-Length": "bytes of JSON before the binary tensors"}


class TaskAnswer(msgspec.Struct, frozen=True):
    """A task: its id, its state, and where its events are."""

    task_id: str
    model: str
    state: TaskState
    events_url: str
    task_url: str


@runtime_checkable
class Carrier(Protocol):
    """A connection that may have tried to take a request straight to a worker."""

    def take_trail(self) -> Trail | None:
        """What was written of the request in hand so far, once."""


class InferenceRoutes:
    """Handlers for clients that want a model to run."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._running: dict[str, asyncio.Task[object]] = {}
        self._cancelled: set[str] = set()

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        for path in OPENAI_ROUTES:
            app.router.add_post(path, self.openai)
        app.router.add_post(VERSIONED_INFER_ROUTE, self.infer)
        app.router.add_post(INFER_ROUTE, self.infer)
        app.router.add_post(TYPED_ROUTE, self.typed)
        app.router.add_delete(TYPED_ROUTE + "/{request_id}", self.cancel_typed)
        app.router.add_post("/v2/tasks", self.start_task)
        app.router.add_get("/v2/tasks/{task}", self.task)
        app.router.add_get("/v2/tasks/{task}/events", self.task_events)
        app.router.add_delete("/v2/tasks/{task}", self.cancel_task)

    @operation(media=(JSON, EVENTS), body=Head, headers=REQUEST_HEADERS)
    async def openai(self, request: web.Request) -> web.StreamResponse:
        """OpenAI's routes, as bytes to a worker and back; a stream that waits over 5 s is held open by comments."""
        path = request.path
        with self._accounted(request, path) as account:
            ask = await self._read(request, account)
            return await self._answer(request, _call(ask, account, lambda worker: path), OpenAiStory(), account)

    @operation(media=(JSON, BYTES), bodies=(JSON, BYTES), headers=INFER_HEADERS)
    async def infer(self, request: web.Request) -> web.StreamResponse:
        """POST /v2/models/M/infer of the Open Inference Protocol, JSON or binary tensors as they come."""
        with self._accounted(request, "/v2/models/{model}/infer") as account:
            only_version(request)
            ask = await self._read(request, account, request.match_info["model"])
            call = _call(ask, account, lambda worker: f"{model_path(worker, ask.asked)}/infer")
            call = dataclasses.replace(call, names_model=False)
            return await self._answer(request, call, OpenAiStory(), account)

    @operation(media=(EVENTS,), body=Head, headers=REQUEST_HEADERS)
    async def typed(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/inference: typed events from queued to exactly one end or error."""
        with self._accounted(request, TYPED_ROUTE) as account:
            ask = await self._read(request, account, streams=True)
            request_id = self._request_id(request)
            self._core.recent.name(account.trail, request_id)
            call = _typed_call(ask, account, request_id)
            story = TypedStory(request_id, ask.asked)
            return await self._cancellable(request, call, story, account, request_id)

    @contextmanager
    def _accounted(self, request: web.Request, route: str) -> Iterator[Account]:
        so_far = request.protocol.take_trail() if isinstance(request.protocol, Carrier) else None
        trail = so_far or self._core.trail(route)
        with accounted(self._core.metrics, self._core.recent, trail) as account:
            request[TRAIL] = account.trail
            yield account

    async def _read(
        self, request: web.Request, account: Account, model: str | None = None, *, streams: bool = False
    ) -> Ask:
        most = self._core.config.requests.max_body_mb << 20
        ask = await read_ask(request, self._core.aliases, most, model, streams=streams)
        account.trail.came(ask.model, ask.asked)
        return ask

    def _request_id(self, request: web.Request) -> str:
        wanted = request.headers.get(REQUEST_ID_HEADER)
        if wanted is None:
            return str(uuid.uuid4())
        if valid_request_id(wanted) in self._running:
            raise Conflict("a request of this id runs already: use a new id", details={"request_id": wanted})
        return valid_request_id(wanted)

    async def _cancellable(
        self, request: web.Request, call: Call, story: TypedStory, account: Account, request_id: str
    ) -> web.StreamResponse:
        me = asyncio.current_task()
        if me is not None:
            self._running[request_id] = me
        reply = Reply(request)
        try:
            return await self._answer(request, call, story, account, reply)
        except asyncio.CancelledError:
            if request_id not in self._cancelled or me is None:
                raise
            me.uncancel()
            error = InferenceCancelled("the request was cancelled by DELETE", details={"request_id": request_id})
            if reply.response is None:
                raise error from None
            account.failed(error.code)
            await reply.write(story.error(error.info(context.correlation_id.get())))
            await reply.end()
            return reply.response
        finally:
            self._running.pop(request_id, None)
            self._cancelled.discard(request_id)

    async def _answer(
        self, request: web.Request, call: Call, story: Story, account: Account, reply: Reply | None = None
    ) -> web.StreamResponse:
        reply = reply or Reply(request)
        answer = await carry(self._core.dispatcher, call, reply, story, account)
        if answer is not None:
            return refused(answer)
        if reply.response is None:
            raise ConnectionResetError("the client left before its answer began")
        return reply.response

    @operation(status=204)
    async def cancel_typed(self, request: web.Request) -> web.StreamResponse:
        """DELETE /v1/inference/R: 204, also for one that is over."""
        request_id = valid_request_id(request.match_info["request_id"])
        running = self._running.get(request_id)
        if running is not None:
            self._cancelled.add(request_id)
            running.cancel()
        return web.Response(status=204)

    @operation(TaskAnswer, status=202, body=Head, headers=REQUEST_HEADERS)
    async def start_task(self, request: web.Request) -> web.StreamResponse:
        """POST /v2/tasks: 202 with the task, or its events at once where the client accepts a stream of events."""
        core = self._core
        ask = await read_ask(request, core.aliases, core.config.requests.max_body_mb << 20, streams=True)
        if not ask.stream:
            raise InvalidRequest(
                "a task's answer is its events: leave 'stream' out", details={"field": "stream"}, param="stream"
            )
        if not core.admission.known(ask.model) and not core.settling:
            raise ModelNotFound(
                "no worker serves that model: GET /v1/models lists those that can be asked for",
                details={"model": ask.asked},
                param="model",
            )

        async def run(task: Task) -> Refused | None:
            with accounted(core.metrics, core.recent, core.trail("/v2/tasks")) as account:
                account.trail.came(ask.model, ask.asked)
                core.recent.name(account.trail, task.task_id)
                sink: Sink = task
                story = TypedStory(task.task_id, ask.asked)
                return await carry(core.dispatcher, _typed_call(ask, account, task.task_id), sink, story, account)

        task = core.tasks.start(str(uuid.uuid4()), ask.asked, run)
        if CONTENT_TYPE in request.headers.get("Accept", ""):
            return await self._follow(request, task, 0)
        headers = {"Location": f"/v2/tasks/{task.task_id}"}
        return json_response(_task_answer(task), status=202, headers=headers)

    @operation(TaskAnswer)
    async def task(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/tasks/T: its state."""
        return json_response(_task_answer(self._core.tasks.get(request.match_info["task"])))

    @operation(media=(EVENTS,), headers={"Last-Event-ID": "the event after which to go on"})
    async def task_events(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/tasks/T/events: from the start, or after the event that Last-Event-ID names."""
        task = self._core.tasks.get(request.match_info["task"])
        last = request.headers.get("Last-Event-ID", "0")
        if not (last.isascii() and last.isdigit() and len(last) <= 12):
            raise InvalidRequest("Last-Event-ID is not the id of an event", details={"header": "Last-Event-ID"})
        return await self._follow(request, task, int(last))

    async def _follow(self, request: web.Request, task: Task, after: int) -> web.StreamResponse:
        stream = await SseStream.open(request, {"X-Rbee-Task": task.task_id})
        async with stream.kept_open(COMMENT_S):
            async for events in task.follow(after):
                await stream.raw(events)
        await stream.end()
        return stream.response

    @operation(status=204)
    async def cancel_task(self, request: web.Request) -> web.StreamResponse:
        """DELETE /v2/tasks/T: 204, also for one that is over or unknown."""
        self._core.tasks.cancel(request.match_info["task"])
        return web.Response(status=204)


def model_path(worker: Worker, asked: str) -> str:
    """The path of a model at ``worker``, which knows it by its own name, whatever alias was ``asked`` for."""
    return f"/v2/models/{quote(worker.report.model or asked, safe='')}"


def only_version(request: web.Request) -> None:
    """Raise ModelNotFound where the path asks for another version than ``1``: a model of a worker has no other."""
    version = request.match_info.get("version", "1")
    if version != "1":
        raise ModelNotFound(
            "a model has the version '1' and no other: leave the version out, or ask for another model",
            details={"version": version[:64]},
        )


def _call(ask: Ask, account: Account, path: Callable[[Worker], str]) -> Call:
    return Call(
        ask.model, ask.asked, path, ask.body, ask.headers, ask.stream, account.trail, deadline=ask.deadline,
        patient=ask.patient, priority=ask.priority,
    )  # fmt: skip


def _typed_call(ask: Ask, account: Account, request_id: str) -> Call:
    return Call(
        ask.model, ask.asked, lambda worker: TYPED_ROUTE, ask.body, ask.headers, ask.stream, account.trail,
        deadline=ask.deadline, patient=ask.patient, priority=ask.priority, request_id=request_id,
    )  # fmt: skip


def _task_answer(task: Task) -> TaskAnswer:
    url = f"/v2/tasks/{task.task_id}"
    return TaskAnswer(task.task_id, task.model, task.state, f"{url}/events", url)
