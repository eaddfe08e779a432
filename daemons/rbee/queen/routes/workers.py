"""Routes for administrators and clients: workers, starts and stops, aliases, models, and the events of all changes."""

import asyncio
import time
from collections.abc import Iterator
from typing import Annotated
from urllib.parse import unquote

import aiohttp
import msgspec
from aiohttp import web
from msgspec import Meta

from rbee.host.addresses import answers_here
from rbee.host.audit.entries import EventType, Value
from rbee.queen.core import Core
from rbee.queen.hives.client import JsonObject
from rbee.queen.hives.places import peer_of
from rbee.queen.placement.decision import Need
from rbee.queen.placement.placements import no_hive
from rbee.queen.registry.registry import Hive, Worker
from rbee.queen.routing.decision import Key
from rbee.wire.errors import BackendUnavailable, Conflict, Forbidden, TooManyRequests, WorkerNotFound
from rbee.wire.http.middleware import IDENTITY
from rbee.wire.http.operations import EVENTS, operation
from rbee.wire.http.server import SseStream, json_response, read_json
from rbee.wire.messages import (
    HiveId,
    ShutdownRequest,
    SpawnRequest,
    Text,
    Url,
    WorkerId,
    WorkerList,
    WorkerReport,
    WorkerState,
)
from rbee.wire.messages import WorkerHealth as HealthAnswer
from rbee.wire.names import MODEL_NAME, model_name, model_reference
from rbee.wire.worker_spec import Backend, Task

HEALTH_LIMIT_S = 2.0
HEALTH_AT_ONCE = 32
COMMENT_S = 15.0
MANUAL_HIVE = "external"
MOST_ALIASES = 10_000
FILTERS = {
    "hive": "workers of that hive",
    "state": "workers in that state",
    "model": "workers of that model or alias",
    "capability": "workers that have it: cuda, cuda:0, cpu, or a word of their own",
}


class Patch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PATCH of a worker: ``busy`` keeps new work from it until ``idle`` or its next life."""

    state: Annotated[str, Meta(pattern="^(idle|busy)$")]


class RegisterRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v2/workers/register: a worker outside any hive; ``model`` defaults to the last part of ``model_ref``."""

    worker_id: WorkerId
    url: Url
    model_ref: Text
    backend: Annotated[str, Meta(max_length=32, extra_json_schema={"enum": [known.value for known in Backend]})]
    device: Annotated[int, Meta(ge=0)] = 0
    model: Text | None = None
    task: Task = Task.GENERATE
    slots_total: Annotated[int, Meta(ge=1, le=256)] = 1
    hive_id: HiveId = MANUAL_HIVE


class AliasRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """PUT /v2/aliases/ALIAS: the model that it stands for."""

    model: Annotated[str, Meta(min_length=1, max_length=128, extra_json_schema={"pattern": f"^{MODEL_NAME.pattern}$"})]


class Alias(msgspec.Struct, frozen=True):
    """An alias and the model that it stands for."""

    alias: str
    model: str


class AliasList(msgspec.Struct, frozen=True):
    """GET /v2/aliases: each alias and its model."""

    aliases: dict[str, str]


class Health(msgspec.Struct, frozen=True):
    """One worker's health: what it answered, or None where it did not."""

    hive_id: str
    worker_id: str
    state: WorkerState
    reachable: bool
    health: HealthAnswer | None = None


class HealthList(msgspec.Struct, frozen=True):
    """GET /v2/workers/health."""

    workers: list[Health]


class Acted(msgspec.Struct, frozen=True):
    """What a hive was asked to do and answered."""

    success: bool
    hive_id: str
    worker_id: str
    message: str
    answer: JsonObject


class Hello(msgspec.Struct, frozen=True):
    """The first event of /v2/events: from here on nothing is missed."""

    instance_id: str


def has_capability(worker: Worker, capability: str) -> bool:
    """Whether the worker has ``cuda:0``, ``cuda``, ``cpu``, or a word of its own report's list."""
    backend = worker.report.backend
    own = {backend.value, f"{backend.value}:{worker.report.device}"} if backend is not None else set()
    return capability in own or capability in worker.report.capabilities


class WorkerRoutes:
    """Handlers for workers as the queen sees them."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        router = app.router
        router.add_get("/v2/workers/list", self.listing)
        router.add_get("/v2/workers/health", self.health)
        router.add_post("/v2/workers/spawn", self.spawn)
        router.add_post("/v2/workers/shutdown", self.shutdown)
        router.add_post("/v2/workers/register", self.register)
        router.add_get("/v2/workers/{hive}/{worker}", self.get)
        router.add_patch("/v2/workers/{hive}/{worker}", self.patch)
        router.add_delete("/v2/workers/{hive}/{worker}", self.delete)
        router.add_get("/v2/events", self.events)
        router.add_get("/v2/aliases", self.aliases)
        router.add_put("/v2/aliases/{alias:.+}", self.put_alias)
        router.add_delete("/v2/aliases/{alias:.+}", self.delete_alias)

    @operation(WorkerList, query=FILTERS)
    async def listing(self, request: web.Request) -> web.StreamResponse:
        """Every worker, or those that fit ?capability=, ?state=, ?model= and ?hive=."""
        views = [worker.view() for worker in self._selected(request)]
        views.sort(key=lambda view: (view.hive_id, view.worker_id))
        return json_response(WorkerList(views))

    def _selected(self, request: web.Request) -> Iterator[Worker]:
        query = request.query
        for worker in self._core.registry.workers():
            if "hive" in query and worker.key.hive_id != query["hive"]:
                continue
            if "state" in query and worker.state.value != query["state"]:
                continue
            if "model" in query and self._core.aliases.resolve(query["model"]) not in worker.names():
                continue
            if "capability" in query and not has_capability(worker, query["capability"]):
                continue
            yield worker

    @operation(HealthList)
    async def health(self, request: web.Request) -> web.StreamResponse:
        """Ask every worker that has an address for its health: 32 at once, 2 s each."""
        return json_response(HealthList(await ask_all(self._core)))

    @operation(WorkerReport)
    async def get(self, request: web.Request) -> web.StreamResponse:
        """One worker."""
        key = _key(request)
        return json_response(self._core.registry.find(key.worker_id, key.hive_id).view())

    @operation(WorkerReport, body=Patch)
    async def patch(self, request: web.Request) -> web.StreamResponse:
        """Hold a worker back, or let it have work again."""
        wanted = await read_json(request, Patch)
        key = _key(request)
        view = self._core.registry.hold(key, wanted.state == WorkerState.BUSY.value).view()
        self._record(request, EventType.WORKER_HOLD, worker_id=key.worker_id, node=key.hive_id, state=wanted.state)
        return json_response(view)

    @operation(status=204)
    async def delete(self, request: web.Request) -> web.StreamResponse:
        """Take a worker out of the list; the next picture of a hive that has it brings it back."""
        key = _key(request)
        if not self._core.registry.remove(key):
            raise WorkerNotFound(f"no worker '{key}' is known here", details={"worker": str(key)})
        self._record(request, EventType.WORKER_REMOVE, worker_id=key.worker_id, node=key.hive_id)
        return web.Response(status=204)

    @operation(WorkerReport, body=RegisterRequest)
    async def register(self, request: web.Request) -> web.StreamResponse:
        """Upsert a worker that no hive reports; over TCP one of the queen's own machine only."""
        wanted = await read_json(request, RegisterRequest)
        backend = _known_backend(wanted.backend)
        if peer_of(request) is not None and not answers_here(wanted.url):
            raise Forbidden(
                "a worker on another machine is registered by an administrator: use the queen's Unix socket",
                details={"field": "url"},
            )
        report = WorkerReport(
            worker_id=wanted.worker_id,
            hive_id=wanted.hive_id,
            boot_id="",
            revision=0,
            state=WorkerState.IDLE,
            url=wanted.url,
            model=wanted.model or unquote(wanted.model_ref.rstrip("/")).rpartition("/")[2],
            model_ref=wanted.model_ref,
            task=wanted.task,
            backend=backend,
            device=wanted.device,
            slots_total=wanted.slots_total,
            since_unix=time.time(),
        )
        view = self._core.registry.register(report, time.monotonic()).view()
        self._record(
            request, EventType.WORKER_REGISTER, worker_id=wanted.worker_id, node=wanted.hive_id,
            model_ref=wanted.model_ref,
        )  # fmt: skip
        return json_response(view)

    @operation(Acted, status=202, body=SpawnRequest)
    async def spawn(self, request: web.Request) -> web.StreamResponse:
        """Ask a hive to start a worker, on the node where a new one fits best: 202 with the hive's answer."""
        wanted = await read_json(request, SpawnRequest)
        core = self._core
        if wanted.model_ref is None or self._is_known(wanted):
            hive = self._hive_for(wanted)
            answer = await core.hives.spawn(hive, wanted)
        else:
            backend = _known_backend(wanted.backend)
            need = Need(model_reference(wanted.model_ref), backend, wanted.device, slots=wanted.slots)
            hive, answer = await core.placements.spawn(need, wanted)
        acted = Acted(True, hive.hive_id, wanted.worker_id, "the hive starts the worker", answer)
        return json_response(acted, status=202)

    def _record(self, request: web.Request, event_type: EventType, **details: Value | None) -> None:
        self._core.audit.record(event_type, request[IDENTITY].name, **details)

    def _is_known(self, wanted: SpawnRequest) -> bool:
        """Whether the worker asked for exists already, and with it its place."""
        return any(
            worker.key.worker_id == wanted.worker_id and wanted.hive_id in (None, worker.key.hive_id)
            for worker in self._core.registry.workers()
        )

    def _hive_for(self, wanted: SpawnRequest) -> Hive:
        registry = self._core.registry
        if self._is_known(wanted):
            return registry.find(wanted.worker_id, wanted.hive_id).hive
        hives = [hive for hive in registry.hives() if not hive.manual and wanted.hive_id in (None, hive.hive_id)]
        if not hives:
            raise no_hive(wanted.hive_id)
        if len(hives) > 1:
            names = sorted(hive.hive_id for hive in hives)
            raise Conflict("several hives report here: name one as hive_id", details={"hives": names})
        return hives[0]

    @operation(Acted, status=202, body=ShutdownRequest)
    async def shutdown(self, request: web.Request) -> web.StreamResponse:
        """Ask a hive to drain and stop a worker: 202 with the hive's answer."""
        wanted = await read_json(request, ShutdownRequest)
        worker = self._core.registry.find(wanted.worker_id, wanted.hive_id)
        answer = await self._core.hives.stop(worker.hive, wanted.worker_id)
        acted = Acted(True, worker.key.hive_id, wanted.worker_id, "the hive drains and stops the worker", answer)
        return json_response(acted, status=202)

    @operation(media=(EVENTS,))
    async def events(self, request: web.Request) -> web.StreamResponse:
        """Every change as an event: hello, worker, hive; dropped ends a listener that does not keep up."""
        core = self._core
        if core.hub.full:
            raise TooManyRequests("too many listen to events: close one", retry_after_s=5)
        with core.hub.listen() as listener:
            stream = await SseStream.open(request)
            await stream.send("hello", Hello(core.instance_id))
            while not core.closing:
                try:
                    async with asyncio.timeout(COMMENT_S):
                        event = await listener.next()
                except TimeoutError:
                    await stream.comment("here")
                    continue
                if event is None:
                    break
                await stream.raw(event)
        if listener.dropped:
            core.metrics.events_dropped.inc()
        return stream.response

    @operation(AliasList)
    async def aliases(self, request: web.Request) -> web.StreamResponse:
        """Every alias and its model."""
        return json_response(AliasList(dict(self._core.aliases.all())))

    @operation(Alias, body=AliasRequest)
    async def put_alias(self, request: web.Request) -> web.StreamResponse:
        """Set an alias, for good."""
        alias = model_name(request.match_info["alias"])
        wanted = await read_json(request, AliasRequest)
        model = model_name(wanted.model)
        aliases = self._core.aliases.all()
        if alias not in aliases and len(aliases) >= MOST_ALIASES:
            raise TooManyRequests(f"there are {MOST_ALIASES} aliases: remove one that is not used", retry_after_s=60)
        await self._core.store.put_alias(alias, model)
        self._core.aliases.put(alias, model)
        self._record(request, EventType.ALIAS_CHANGE, alias=alias, model=model)
        return json_response(Alias(alias, model))

    @operation(status=204)
    async def delete_alias(self, request: web.Request) -> web.StreamResponse:
        """Unset an alias that the API set: 204, also for one that is not set."""
        alias = model_name(request.match_info["alias"])
        await self._core.store.remove_alias(alias)
        self._core.aliases.remove(alias)
        self._record(request, EventType.ALIAS_CHANGE, alias=alias)
        return web.Response(status=204)


def _known_backend(name: str) -> Backend:
    try:
        return Backend(name)
    except ValueError:
        raise BackendUnavailable(
            "this build has no such backend",
            details={"field": "backend", "accepted": [known.value for known in Backend]},
        ) from None


def _key(request: web.Request) -> Key:
    return Key(request.match_info["hive"], request.match_info["worker"])


async def ask_all(core: Core) -> list[Health]:
    """The health of every worker, asked of those that have an address."""
    gate = asyncio.Semaphore(HEALTH_AT_ONCE)

    async def ask(worker: Worker) -> Health:
        async with gate:
            health = await _ask(core.to_workers, worker)
        return Health(worker.key.hive_id, worker.key.worker_id, worker.state, health is not None, health)

    return list(await asyncio.gather(*(ask(worker) for worker in list(core.registry.workers()))))


async def _ask(session: aiohttp.ClientSession, worker: Worker) -> HealthAnswer | None:
    if worker.url is None:
        return None
    try:
        async with (
            asyncio.timeout(HEALTH_LIMIT_S),
            session.get(f"{worker.url}/health", allow_redirects=False) as response,
        ):
            return msgspec.json.decode(await response.content.read(1 << 16), type=HealthAnswer)
    except (TimeoutError, aiohttp.ClientError, msgspec.DecodeError):
        return None
