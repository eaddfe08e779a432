"""Routes that tell how the queen is and what she serves: health, models, Open Inference metadata."""

import asyncio
import time

import msgspec
from aiohttp import web

from rbee import __version__
from rbee.queen.core import Core, states
from rbee.queen.hives.client import versions_fit
from rbee.queen.registry.registry import Hive, Worker
from rbee.queen.requests.asks import read_ask
from rbee.queen.requests.dispatch import Call, Refused
from rbee.queen.requests.explain import nothing_known
from rbee.queen.requests.explanations import Explanation, WorkerExplanation
from rbee.queen.requests.passage import Account, accounted
from rbee.queen.requests.reply import TRAIL, refused
from rbee.queen.routes.inference import model_path, only_version
from rbee.queen.routes.workers import Health, ask_all
from rbee.queen.routing.decision import routable
from rbee.wire.errors import ModelNotFound, RbeeError
from rbee.wire.http.middleware import open_route
from rbee.wire.http.operations import JSON, operation
from rbee.wire.http.server import MAX_BODY, json_response
from rbee.wire.messages import WorkerState
from rbee.wire.open_inference import EXTENSIONS, Live, ModelReady, Ready, ServerMetadata

DEEP_AGAIN_S = 1.0


class HiveHealth(msgspec.Struct, frozen=True):
    """One hive as the queen sees it; ``problem`` is empty while all is well."""

    hive_id: str
    version: str
    silent_s: float
    session: bool
    problem: str


class QueenHealth(msgspec.Struct, frozen=True, omit_defaults=True):
    """GET /health: ``status`` ok or degraded, and each thing that is wrong as a sentence.

    ``starting`` are starts of workers that were begun here and that no hive has told of yet.
    """

    status: str
    version: str
    instance_id: str
    hives: int
    workers: dict[str, int]
    in_flight: int
    waiting: int
    starting: int
    degraded: list[str]
    deep_hives: list[HiveHealth] | None = None
    deep_workers: list[Health] | None = None


class Model(msgspec.Struct, frozen=True):
    """One model in OpenAI's list, with what rbee adds: its state, task, and how many workers serve it.

    ``note`` says what keeps a declared model's workers from being what is declared, or what is done about it; ``warm``
    what its warm times say now.
    """

    id: str
    created: int
    state: str
    task: str
    workers: int
    ready: int
    root: str
    object: str = "model"
    owned_by: str = "rbee"
    note: str = ""
    warm: str = ""


class ModelList(msgspec.Struct, frozen=True):
    """GET /v1/models."""

    data: list[Model]
    object: str = "list"


class StatusRoutes:
    """Handlers that change nothing."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._deep = asyncio.Lock()
        self._deep_at = 0.0
        self._deep_found: tuple[list[HiveHealth], list[Health]] = ([], [])

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_get("/health", open_route(self.health))
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/v1/models/{model:.+}", self.one_model)
        app.router.add_get("/v2", self.server)
        app.router.add_get("/v2/health/live", self.live)
        app.router.add_get("/v2/health/ready", self.ready)
        app.router.add_get("/v2/models/{model:.+}/versions/{version}/ready", self.model_ready)
        app.router.add_get("/v2/models/{model:.+}/versions/{version}", self.model)
        app.router.add_get("/v2/models/{model:.+}/ready", self.model_ready)
        app.router.add_get("/v2/models/{model:(?!.+/infer$).+}", self.model)
        app.router.add_get("/v2/explain/{name}", self.explain)
        app.router.add_get("/v2/explain/{hive}/{worker}", self.explain_worker)

    @operation(QueenHealth, query={"deep": "1: ask hives and workers too"})
    async def health(self, request: web.Request) -> web.StreamResponse:
        """Open and cheap; ?deep=1 asks hives and workers too, at most once a second for all callers."""
        core = self._core
        degraded = problems(core)
        hives: list[HiveHealth] | None = None
        workers: list[Health] | None = None
        if request.query.get("deep") == "1":
            hives, workers = await self._ask_deep()
            degraded += [f"hive {hive.hive_id}: {hive.problem}" for hive in hives if hive.problem]
            degraded += [
                f"worker {one.hive_id}/{one.worker_id} does not answer"
                for one in workers
                if one.state.ready and not one.reachable
            ]
        return json_response(
            QueenHealth(
                "degraded" if degraded else "ok",
                __version__,
                core.instance_id,
                len(core.registry.hives()),
                dict(states(core)),
                core.admission.in_flight,
                core.admission.waiting,
                core.starting,
                degraded,
                hives,
                workers,
            )
        )

    async def _ask_deep(self) -> tuple[list[HiveHealth], list[Health]]:
        async with self._deep:
            if time.monotonic() - self._deep_at > DEEP_AGAIN_S:
                hives = [hive for hive in self._core.registry.hives() if not hive.manual]
                found = await asyncio.gather(*(self._ask_hive(hive) for hive in hives))
                self._deep_found = (list(found), await ask_all(self._core))
                self._deep_at = time.monotonic()
            return self._deep_found

    async def _ask_hive(self, hive: Hive) -> HiveHealth:
        problem = ""
        try:
            await self._core.hives.health(hive)
        except RbeeError as error:
            problem = error.message
        silent_s = round(time.monotonic() - hive.heard, 1)
        return HiveHealth(hive.hive_id, hive.version, silent_s, self._core.sessions.is_open(hive.hive_id), problem)

    @operation(ModelList)
    async def models(self, request: web.Request) -> web.StreamResponse:
        """Every model that requests can name, aliases included."""
        known = self._models()
        return json_response(ModelList([known[name] for name in sorted(known)]))

    @operation(Model)
    async def one_model(self, request: web.Request) -> web.StreamResponse:
        """One of them, by its name or alias, as OpenAI's clients retrieve it."""
        found = self._models().get(request.match_info["model"])
        if found is None:
            raise ModelNotFound("no worker serves that model: GET /v1/models lists those that can be asked for")
        return json_response(found)

    def _models(self) -> dict[str, Model]:
        core = self._core
        known = {name: _model(name, list(core.registry.serving(name))) for name in core.registry.model_names()}
        for name in core.declared.names() - known.keys():
            known[name] = Model(name, 0, WorkerState.STOPPED.value, core.declared.task(name), 0, 0, name)
        for name in core.declared.names():
            known[name] = msgspec.structs.replace(
                known[name], note=core.declared.note(name), warm=core.declared.warm_note(name)
            )
        for alias, name in core.aliases.all().items():
            if name in known and alias not in known:
                known[alias] = msgspec.structs.replace(known[name], id=alias)
        return known

    @operation(ServerMetadata)
    async def server(self, request: web.Request) -> web.StreamResponse:
        """GET /v2: metadata of the Open Inference Protocol."""
        return json_response(ServerMetadata("rbee", __version__, EXTENSIONS))

    @operation(Live)
    async def live(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/health/live: the queen answers."""
        return json_response(Live(True))

    @operation(Ready, more=(503,))
    async def ready(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/health/ready: 200 once hives known from before have reported, 503 until then."""
        ready = not self._core.settling
        return json_response(Ready(ready), status=200 if ready else 503)

    @operation(ModelReady, more=(503,))
    async def model_ready(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/models/M/ready: 200 while a worker of it takes requests, 503 otherwise; 404 for an unknown one."""
        only_version(request)
        name = request.match_info["model"]
        model = self._core.aliases.resolve(name)
        workers = self._core.registry.serving(model)
        if not self._core.admission.known(model):
            raise ModelNotFound("no worker serves that model: GET /v1/models lists those that can be asked for")
        ready = any(routable(worker) for worker in workers)
        return json_response(ModelReady(name, ready), status=200 if ready else 503)

    @operation(media=(JSON,))
    async def model(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/models/M: the metadata that its worker gives; a model that is not loaded is not started for it."""
        only_version(request)
        model = request.match_info["model"]
        with accounted(self._core.metrics, self._core.recent, self._core.trail("/v2/models/{model}")) as account:
            request[TRAIL] = account.trail
            return await self._metadata(request, model, account)

    async def _metadata(self, request: web.Request, name: str, account: Account) -> web.Response:
        ask = await read_ask(request, self._core.aliases, MAX_BODY, name)
        account.trail.came(ask.model, ask.asked)
        workers = self._core.registry.serving(ask.model)
        if self._core.admission.known(ask.model) and not any(routable(worker) for worker in workers):
            raise self._core.admission.loading_error(ask.model)
        call = Call(
            ask.model, ask.asked, lambda worker: model_path(worker, ask.asked), b"", {}, False, account.trail,
            deadline=ask.deadline, patient=False, method="GET", names_model=False,
        )  # fmt: skip
        answer = await self._core.dispatcher.open(call)
        if isinstance(answer, Refused):
            account.failed(answer.info(None).code)
            return refused(answer)
        try:
            body = b"".join([chunk async for chunk in answer.body()])
        finally:
            answer.close()
        account.ok()
        return web.Response(body=body, content_type="application/json")

    @operation(Explanation | WorkerExplanation)
    async def explain(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/explain/ID: what became of the request of that correlation id or request id, or of a worker."""
        name = request.match_info["name"]
        core = self._core
        found = core.recent.find(name)
        if found is not None:
            return json_response(found)
        if any(worker.key.worker_id == name for worker in core.registry.workers()):
            return json_response(self._explained(core.registry.find(name, None)))
        raise nothing_known(name)

    @operation(WorkerExplanation)
    async def explain_worker(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/explain/HIVE/WORKER: why the worker gets requests or none, and the latest that met it."""
        worker = self._core.registry.find(request.match_info["worker"], request.match_info["hive"])
        return json_response(self._explained(worker))

    def _explained(self, worker: Worker) -> WorkerExplanation:
        core = self._core
        explained = core.recent.explain_worker(worker, core.placements.told(worker.key))
        return msgspec.structs.replace(explained, warm=core.declared.warm_note(worker.report.model or ""))


def _model(name: str, workers: list[Worker]) -> Model:
    ready = [worker for worker in workers if routable(worker)]
    shown = (ready or workers)[0]
    since = min(int(worker.report.since_unix) for worker in workers)
    task = shown.report.task.value if shown.report.task is not None else "unknown"
    return Model(name, since, shown.state.value, task, len(workers), len(ready), name)


def problems(core: Core) -> list[str]:
    """What is wrong, as sentences without addresses or paths."""
    found = []
    if core.store.problem is not None:
        found.append(f"storage: {core.store.problem}")
    if core.audit.problem:
        found.append(f"audit: {core.audit.problem}")
    for hive in core.registry.hives():
        if hive.stale:
            found.append(f"hive {hive.hive_id}: silent")
        elif hive.version and not versions_fit(__version__, hive.version):
            found.append(f"hive {hive.hive_id}: version {hive.version} does not fit {__version__}")
    found += [f"worker {worker.key}: {worker.suspect}" for worker in core.registry.workers() if worker.suspect]
    return found + core.declared.problems()
