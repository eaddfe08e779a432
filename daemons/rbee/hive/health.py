"""Asks each ready worker for its health over its own socket; stops the idle, restarts the dead."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

import aiohttp

from rbee.hive.metrics import HiveMetrics
from rbee.hive.report import Worker
from rbee.hive.workers import WorkerTable
from rbee.host.paths import Paths
from rbee.wire.errors import ProtocolError, RbeeError, WorkerUnreachable
from rbee.wire.http.client import client_session, fetch_json
from rbee.wire.log import log
from rbee.wire.messages import WorkerHealth

LOGGER = logging.getLogger(__name__)
CHECK_LIMIT_S = 2.0
FAILURES_TO_UNHEALTHY = 3
FAILURES_TO_FORGET = 60
"""After so many failures in a row a worker outside the supervisor is forgotten: nobody else can tell of its end."""


def idle_limit(worker: Worker, default_s: float) -> float:
    """The worker's own idle limit, else the hive's; 0 = never."""
    spec = None if worker.definition is None else worker.definition.spec
    if spec is None or spec.idle_limit_s is None:
        return default_s
    return spec.idle_limit_s


def idle_too_long(health: WorkerHealth, limit_s: float) -> bool:
    """Whether a worker with this health has been idle past its limit."""
    return limit_s > 0 and health.slots_busy == 0 and health.idle_s > limit_s


class HealthChecks:
    """Checks all serving workers at an interval, a bounded number at once; a check is no activity of the worker."""

    def __init__(
        self,
        table: WorkerTable,
        paths: Paths,
        metrics: HiveMetrics,
        *,
        at_once: int,
        on_unhealthy: Callable[[str], Awaitable[None]],
        on_idle: Callable[[str, float, float], Awaitable[None]],
        idle_default_s: Callable[[], float],
    ) -> None:
        self._table = table
        self._paths = paths
        self._metrics = metrics
        self._slots = asyncio.Semaphore(at_once)
        self._on_unhealthy = on_unhealthy
        self._on_idle = on_idle
        self._idle_default_s = idle_default_s
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def run(self, interval_s: float) -> None:
        """Check for ever."""
        try:
            while True:
                await asyncio.sleep(interval_s)
                await self.check_all()
        finally:
            for worker_id in list(self._sessions):
                await self._drop_session(worker_id)

    async def check_all(self) -> None:
        """One round over every serving worker."""
        serving = [worker for worker in self._table.all() if worker.serving]
        for worker_id in self._sessions.keys() - {worker.worker_id for worker in serving}:
            await self._drop_session(worker_id)
        await asyncio.gather(*(self._check(worker) for worker in serving), self._look_for_strangers())

    async def _look_for_strangers(self) -> None:
        """Say so where something answers on the address of a worker whose unit is gone; it is never routed."""
        for worker_id, url in self._table.take_left_addresses():
            if await stranger_answers(url):
                log(
                    LOGGER,
                    logging.WARNING,
                    "something answers on the address of a worker whose unit is gone: not ours, never routed",
                    worker=worker_id,
                    url=url,
                )

    async def _check(self, worker: Worker) -> None:
        async with self._slots:
            self._table.read_missing_facts(worker.worker_id)
            life = worker.unit.invocation_id
            health, why = await self._ask_or_why(worker)
            if worker.unit.invocation_id != life:
                return
            try:
                if health is None:
                    await self._on_failure(worker, why)
                else:
                    self._table.on_health(worker.worker_id, health)
                    await self._stop_if_idle(worker, health)
            except RbeeError as error:
                log(LOGGER, logging.WARNING, "the order failed", worker=worker.worker_id, why=error.message)

    async def _ask_or_why(self, worker: Worker) -> tuple[WorkerHealth | None, str]:
        try:
            health = await self.ask(worker)
        except RbeeError as error:
            self._metrics.health_checks.labels("unhealthy").inc()
            await self._drop_session(worker.worker_id)
            return None, error.message
        self._metrics.health_checks.labels("healthy").inc()
        return health, ""

    async def _on_failure(self, worker: Worker, why: str) -> None:
        if self._table.on_health_failure(worker.worker_id, why, FAILURES_TO_UNHEALTHY):
            await self._on_unhealthy(worker.worker_id)
        if worker.external is not None and worker.failures >= FAILURES_TO_FORGET:
            log(LOGGER, logging.WARNING, "a worker outside systemd is gone, forgetting it", worker=worker.worker_id)
            self._table.unregister_external(worker.worker_id)

    async def _stop_if_idle(self, worker: Worker, health: WorkerHealth) -> None:
        limit_s = idle_limit(worker, self._idle_default_s())
        if worker.external is None and idle_too_long(health, limit_s):
            await self._on_idle(worker.worker_id, health.idle_s, limit_s)

    async def ask(self, worker: Worker) -> WorkerHealth:
        """GET /health; raises RbeeError when nothing, something else, or another worker answers."""
        if worker.external is not None:
            session, url = self._session(worker.worker_id, None), worker.external.url
        else:
            socket = self._paths.worker_socket(worker.worker_id)
            session, url = self._session(worker.worker_id, str(socket)), "http://worker"
        health = await fetch_json(session, "GET", f"{url}/health", WorkerHealth, timeout_s=CHECK_LIMIT_S)
        if health.status != "healthy":
            raise WorkerUnreachable(f"the worker says of itself that it is {health.status[:64]}")
        if health.worker_id != worker.worker_id:
            raise ProtocolError("another worker answers on the address of this one")
        return health

    def _session(self, worker_id: str, socket: str | None) -> aiohttp.ClientSession:
        session = self._sessions.get(worker_id)
        if session is None:
            session = client_session(unix_socket=socket, connections=1)
            self._sessions[worker_id] = session
        return session

    async def _drop_session(self, worker_id: str) -> None:
        session = self._sessions.pop(worker_id, None)
        if session is not None:
            await session.close()

    async def close(self) -> None:
        """Close every connection."""
        for worker_id in list(self._sessions):
            await self._drop_session(worker_id)


async def stranger_answers(url: str) -> bool:
    """Whether something answers on the address of a worker whose unit is gone: it is not ours."""
    session = client_session(connections=1)
    try:
        async with asyncio.timeout(CHECK_LIMIT_S), session.get(f"{url}/health", allow_redirects=False):
            return True
    except (aiohttp.ClientError, TimeoutError):
        return False
    finally:
        await session.close()
