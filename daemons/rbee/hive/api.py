"""The hive's HTTP API: the same JSON over its Unix socket and over TCP."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable

import msgspec
from aiohttp import web

from rbee import __version__
from rbee.hive.capabilities import Capabilities, Probe, capabilities_of
from rbee.hive.config import HiveConfig
from rbee.hive.control import Control
from rbee.hive.gpus import Gpus
from rbee.hive.logs import LogLine, LogSource
from rbee.hive.machine_watch import MachineWatch
from rbee.hive.workers import WorkerTable
from rbee.wire import names
from rbee.wire.errors import InvalidRequest, TooManyRequests
from rbee.wire.http.middleware import IDENTITY, STREAM, open_route
from rbee.wire.http.operations import EVENTS, operation
from rbee.wire.http.server import SseStream, json_response, read_json, while_it_reads
from rbee.wire.messages import API_VERSION, ExternalReady, GpuFacts, SpawnRequest, WorkerList, WorkerReport

SETTLE_LIMIT_S = 2.0
"""The queen waits for the answer for 3 s when she places a worker."""
_DEFAULT_LINES = 100
_NDJSON = "application/x-ndjson"
_COMMENT_S = 15.0
_LOGS = {"lines": "how many of the last records", "follow": "1: new ones as they are written, too"}


class CallbackHealth(msgspec.Struct, frozen=True):
    """How the way to the queen is: ``standalone``, ``ok``, ``unreachable`` or ``degraded``, and why."""

    status: str
    queen_reachable: bool = False
    waiting: int = 0
    why: str = ""


class OpenHealth(msgspec.Struct, frozen=True):
    """GET /health: what anybody may know."""

    status: str
    version: str
    api_version: str


class HiveHealth(msgspec.Struct, frozen=True):
    """GET /v1/health: ``healthy``, or ``degraded`` while the queen cannot be told or systemd is out of reach.

    ``catalogue`` and ``audit`` say what is wrong with the catalogue of models and the audit log, None where nothing is;
    a catalogue that is kept in memory only degrades as well, and so does an audit log that loses entries.
    """

    status: str
    version: str
    api_version: str
    hive_id: str
    boot_id: str
    supervisor: str
    workers: dict[str, int]
    callback: CallbackHealth
    catalogue: str | None = None
    audit: str | None = None


class Resources(msgspec.Struct, frozen=True):
    """GET /v1/resources: this machine now, in bytes."""

    hostname: str
    cores: int
    ram_total_bytes: int
    ram_available_bytes: int
    disk_total_bytes: int
    disk_available_bytes: int
    gpus: list[GpuFacts]
    driver: str


class WorkerAnswer(msgspec.Struct, frozen=True):
    """The answer to an order: what was done, and the worker's row."""

    success: bool
    message: str
    worker_id: str
    state: str
    worker: WorkerReport


class HiveApi:
    """Handlers of the routes; ``health`` makes the body of /v1/health."""

    def __init__(
        self,
        config: HiveConfig,
        table: WorkerTable,
        control: Control,
        logs: LogSource,
        probe: Probe,
        health: Callable[[], HiveHealth],
        machine: MachineWatch,
        gpus: Gpus,
    ) -> None:
        self._config = config
        self._table = table
        self._control = control
        self._logs = logs
        self._probe = probe
        self._health = health
        self._machine = machine
        self._gpus = gpus
        self._log_streams = 0

    def use(self, config: HiveConfig) -> None:
        """Put another configuration in force (limits)."""
        self._config = config

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.add_routes(
            [
                web.get("/health", open_route(self.open_health)),
                web.get("/v1/health", self.health),
                web.get("/v1/resources", self.resources),
                web.get("/v1/capabilities", self.capabilities),
                web.post("/v1/workers/spawn", self.spawn),
                web.post("/v1/workers/ready", self.ready),
                web.get("/v1/workers/list", self.list_workers),
                web.delete("/v1/workers/{worker}", self.stop),
                web.post("/v1/workers/{worker}/restart", self.restart),
                web.get("/v1/workers/{worker}/logs", self.logs),
            ]
        )

    @operation(OpenHealth)
    async def open_health(self, request: web.Request) -> web.StreamResponse:
        """Status and version only: anybody may ask."""
        health = self._health()
        return json_response(OpenHealth(health.status, __version__, API_VERSION))

    @operation(HiveHealth)
    async def health(self, request: web.Request) -> web.StreamResponse:
        """The whole of it."""
        return json_response(self._health())

    @operation(Resources)
    async def resources(self, request: web.Request) -> web.StreamResponse:
        """Memory, disk, cores and GPUs, once the memory of workers that ended on a GPU is free, or soon after."""
        await self._gpus.held_by_ended(SETTLE_LIMIT_S)
        facts = await self._machine.facts()
        return json_response(msgspec.convert(msgspec.to_builtins(facts), Resources))

    @operation(Capabilities, query={"refresh": "1: probe again"})
    async def capabilities(self, request: web.Request) -> web.StreamResponse:
        """Backends whose provider really starts; ``?refresh=1`` probes again."""
        result, at = await self._probe.result(time.time(), again=_flag(request, "refresh"))
        gpus, driver = await self._gpus.listed()
        return json_response(capabilities_of(result, at, gpus, driver))

    @operation(WorkerAnswer, status=202, body=SpawnRequest, more=(200,))
    async def spawn(self, request: web.Request) -> web.StreamResponse:
        """202 when the worker begins to start, 200 when it was up already."""
        order = await read_json(request, SpawnRequest)
        row, started = await self._control.spawn(order, _actor(request))
        message = "starting" if started else "it was up already"
        return json_response(_answer(row, message), status=202 if started else 200)

    @operation(WorkerAnswer, body=ExternalReady)
    async def ready(self, request: web.Request) -> web.StreamResponse:
        """A worker outside systemd is ready."""
        row = await self._control.register(await read_json(request, ExternalReady), _actor(request))
        return json_response(_answer(row, "registered"))

    @operation(WorkerList)
    async def list_workers(self, request: web.Request) -> web.StreamResponse:
        """Every worker of this machine."""
        return json_response(WorkerList(self._table.reports()))

    @operation(WorkerAnswer, status=202, query={"forget": "1: remove the definition that this hive wrote"})
    async def stop(self, request: web.Request) -> web.StreamResponse:
        """202: the worker drains and stops; ``?forget=true`` removes the definition that this hive wrote."""
        worker_id = names.worker_id(request.match_info["worker"])
        row = await self._control.stop(worker_id, _actor(request), forget=_flag(request, "forget"))
        return json_response(_answer(row, "stopping"), status=202)

    @operation(WorkerAnswer, status=202)
    async def restart(self, request: web.Request) -> web.StreamResponse:
        """202: the worker stops and starts again."""
        row = await self._control.restart(names.worker_id(request.match_info["worker"]), _actor(request))
        return json_response(_answer(row, "restarting"), status=202)

    @operation(media=(EVENTS, _NDJSON), query=_LOGS)
    async def logs(self, request: web.Request) -> web.StreamResponse:
        """The last ``?lines=N`` records as events (or as JSON lines, by Accept), then new ones with ``?follow=1``."""
        worker_id = names.worker_id(request.match_info["worker"])
        self._table.get(worker_id)
        lines = _number(request, "lines", _DEFAULT_LINES, self._config.limits.log_lines)
        if self._log_streams >= self._config.limits.log_streams:
            raise TooManyRequests("as many logs are read here as the limit allows: try again later", retry_after_s=5.0)
        self._log_streams += 1
        records = self._logs.read(worker_id, lines, follow=_flag(request, "follow"))
        try:
            if _NDJSON in request.headers.get("Accept", ""):
                return await _as_json_lines(request, records)
            return await _as_events(request, records)
        finally:
            self._log_streams -= 1


async def _as_events(request: web.Request, records: AsyncIterator[LogLine]) -> web.StreamResponse:
    stream = await SseStream.open(request)
    async with stream.kept_open(_COMMENT_S), contextlib.aclosing(records):  # type: ignore[type-var]
        async for record in records:
            await stream.send("line", record)
    await stream.end()
    return stream.response


async def _as_json_lines(request: web.Request, records: AsyncIterator[LogLine]) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Cache-Control": "no-store"})
    response.content_type = _NDJSON
    await response.prepare(request)
    request[STREAM] = response
    async with contextlib.aclosing(records):  # type: ignore[type-var]
        async for record in records:
            await while_it_reads(request, response.write(msgspec.json.encode(record) + b"\n"))
    await while_it_reads(request, response.write_eof())
    return response


def _actor(request: web.Request) -> str:
    return str(request[IDENTITY].name)


def _answer(row: WorkerReport, message: str) -> WorkerAnswer:
    return WorkerAnswer(True, message, row.worker_id, row.state.value, row)


def _flag(request: web.Request, name: str) -> bool:
    value = request.query.get(name, "0").lower()
    if value not in ("0", "1", "true", "false", "yes", "no", ""):
        raise InvalidRequest(f"the parameter '{name}' is true or false", details={"field": name})
    return value in ("1", "true", "yes")


def _number(request: web.Request, name: str, default: int, most: int) -> int:
    text = request.query.get(name, str(default))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most):
        raise InvalidRequest(f"the parameter '{name}' is a number from 1 to {most}", details={"field": name})
    return int(text)
