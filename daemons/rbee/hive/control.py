"""Does what it is told: spawn, stop and restart workers, take in workers from outside; each is recorded."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterator

import msgspec

from rbee.hive.config import HiveConfig
from rbee.hive.definitions import Definition, Definitions, model_folder
from rbee.hive.gpus import Gpus
from rbee.hive.health import HealthChecks
from rbee.hive.provision import Provision
from rbee.hive.report import Worker
from rbee.hive.workers import WorkerTable
from rbee.host.addresses import answers_here
from rbee.host.audit.entries import SYSTEM, EventType
from rbee.host.audit.log import AuditLog
from rbee.host.units.facts import UnitFacts, UnitSupervisor
from rbee.wire.errors import (
    BackendUnavailable,
    Conflict,
    InvalidDevice,
    InvalidRequest,
    RbeeError,
    TooManyRequests,
    WorkerNotFound,
)
from rbee.wire.log import log
from rbee.wire.messages import ExternalReady, SpawnRequest, WorkerReport, WorkerState
from rbee.wire.model_reference import parse
from rbee.wire.worker_spec import Backend, WorkerSpec

LOGGER = logging.getLogger(__name__)
REQUESTED = "requested"
IDLE = "idle"
UNHEALTHY = "unhealthy"
_UP = (WorkerState.LOADING, WorkerState.IDLE, WorkerState.BUSY, WorkerState.UNHEALTHY)


class Control:
    """The orders that this hive takes; one at a time for each worker."""

    def __init__(
        self,
        config: HiveConfig,
        table: WorkerTable,
        units: UnitSupervisor,
        definitions: Definitions,
        health: HealthChecks,
        provision: Provision,
        audit: AuditLog,
        gpus: Gpus,
    ) -> None:
        self._config = config
        self._table = table
        self._units = units
        self._definitions = definitions
        self._health = health
        self._provision = provision
        self._audit = audit
        self._gpus = gpus
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting: dict[str, int] = {}

    def use(self, config: HiveConfig) -> None:
        """Put another configuration in force (limits, model roots)."""
        self._config = config

    async def spawn(self, request: SpawnRequest, actor: str) -> tuple[WorkerReport, bool]:
        """Start a worker; returns its row and whether it was started by this call.

        One that runs already with the same definition is left alone. Raises InvalidModelReference,
        BackendUnavailable, InvalidDevice, Conflict, WorkerNotFound, TooManyRequests, VramExhausted, SystemdUnavailable,
        StorageUnavailable. One whose model is not here yet waits for it as loading, and starts then.
        """
        if request.hive_id is not None and request.hive_id != self._table.hive_id:
            raise InvalidRequest("this spawn is for another hive", details={"field": "hive_id"})
        async with self._order(request.worker_id):
            _backend(request.backend)
            known = self._table.find(request.worker_id)
            if known is not None and known.external is not None:
                raise Conflict(f"{request.worker_id} is a worker outside systemd: stop it, or choose another id")
            definition = await self._definition(request)
            worker = self._table.find(request.worker_id)
            if self._provision.waits(request.worker_id) or (worker is not None and _is_up(worker)):
                return self._row_in(request.worker_id), False
            model = definition.spec.model if definition.spec else ""
            self._tell_of_spawn(request.worker_id, request.model_ref or model or None, actor)
            if not await self._provision.begin(request.worker_id, model, self._start_provided):
                await self._start(request.worker_id)
            return self._row_in(request.worker_id), True

    def _tell_of_spawn(self, worker_id: str, model_ref: str | None, actor: str) -> None:
        node = self._table.hive_id
        log(
            LOGGER, logging.INFO, "worker.spawn", event="worker.spawn", actor=actor, worker=worker_id,
            model_ref=model_ref, node=node,
        )  # fmt: skip
        self._audit.record(EventType.WORKER_SPAWN, actor, worker_id=worker_id, model_ref=model_ref, node=node)

    async def _start_provided(self, worker_id: str) -> None:
        """Start a worker whose model came."""
        async with self._order(worker_id):
            await self._start(worker_id)

    async def _start(self, worker_id: str) -> None:
        self._table.set_stop_reason(worker_id, "")
        self._table.set_fetch_failure(worker_id, "")
        await self._prove_free(worker_id)
        await self._forget_starts(worker_id)
        await self._units.start_unit(worker_id)

    async def _prove_free(self, worker_id: str) -> None:
        """Wait for memory of a GPU that workers which ended have not given back yet; raises VramExhausted."""
        worker = self._table.find(worker_id)
        spec = None if worker is None or worker.definition is None else worker.definition.spec
        if spec is not None and spec.backend is Backend.CUDA:
            await self._gpus.prove_free(spec.device)

    async def _forget_starts(self, worker_id: str) -> None:
        """Clear the count of starts: the unit's limit is for those that systemd makes by itself after failures.

        A unit that stays loaded without failing (an enabled one) keeps its count too.
        """
        worker = self._table.find(worker_id)
        if worker is not None and (worker.unit.load_state == "loaded" or worker.unit.active_state == "failed"):
            with contextlib.suppress(WorkerNotFound):  # systemd has let go of the unit, and of its count
                await self._units.reset_failed(worker_id)

    @contextlib.contextmanager
    def _because(self, worker_id: str, reason: str) -> Iterator[None]:
        """Note why the order within the block ends the worker's life; an order that fails ends none."""
        before = self._table.get(worker_id).stop_reason
        self._table.set_stop_reason(worker_id, reason)
        try:
            yield
        except RbeeError:
            self._table.set_stop_reason(worker_id, before)
            raise

    async def _definition(self, request: SpawnRequest) -> Definition:
        """The definition to start: the one that exists, or the one asked for, written first."""
        existing = await asyncio.to_thread(self._definitions.read, request.worker_id)
        if request.model_ref is None:
            if existing is None:
                raise WorkerNotFound(
                    f"worker {request.worker_id} is not defined on this machine: name a model_ref, "
                    f"or write {request.worker_id}.yaml into the operator's folder of workers"
                )
            if existing.spec is None:
                raise Conflict(f"the definition of {request.worker_id} is wrong: {existing.problem}")
            self._table.set_definition(request.worker_id, existing)
            return existing
        await self._gpus.check(_backend(request.backend), request.device or 0)
        spec = await asyncio.to_thread(self._spec_of, request, request.model_ref)
        if existing is not None and existing.spec == spec:
            self._table.set_definition(request.worker_id, existing)
            return existing
        self._refuse_other_definition(request.worker_id, existing)
        await asyncio.to_thread(self._definitions.write, request.worker_id, spec, ephemeral=request.ephemeral)
        written = await asyncio.to_thread(self._definitions.read, request.worker_id)
        if written is None:
            raise Conflict(f"the definition of {request.worker_id} vanished while it was written: try again")
        self._table.set_definition(request.worker_id, written)
        return written

    def _refuse_other_definition(self, worker_id: str, existing: Definition | None) -> None:
        if existing is not None and self._definitions.operators(existing):
            raise Conflict(
                f"{worker_id} is defined by the operator and differs from what is asked for: "
                "spawn it without a model_ref, or choose another id"
            )
        worker = self._table.find(worker_id)
        ending = worker is not None and worker.unit.active_state == "deactivating"
        if worker is not None and (_is_up(worker) or ending or self._provision.waits(worker_id)):
            raise Conflict(f"{worker_id} runs with another definition: stop it first, or choose another id")

    def _spec_of(self, request: SpawnRequest, reference: str) -> WorkerSpec:
        """The definition that a request asks for; blocks."""
        model = reference if parse(reference).fetched else str(model_folder(reference, self._config.roots))
        try:
            return msgspec.convert(
                {
                    "model": model,
                    "name": request.name,
                    "task": request.task.value,
                    "backend": request.backend,
                    "device": request.device or 0,
                    "slots": request.slots,
                    "idle_limit_s": request.idle_limit_s,
                },
                WorkerSpec,
            )
        except msgspec.ValidationError as error:
            raise InvalidRequest(f"the worker asked for is not acceptable: {error}") from None

    async def stop(self, worker_id: str, actor: str, *, reason: str = REQUESTED, forget: bool = False) -> WorkerReport:
        """Drain and stop a worker; ``forget`` also removes the definition that the hive wrote.

        Raises WorkerNotFound, SystemdUnavailable, StorageUnavailable (the worker has ended, its definition stays).
        """
        async with self._order(worker_id):
            worker = self._table.get(worker_id)
            log(LOGGER, logging.INFO, "worker.stop", event="worker.stop", actor=actor, worker=worker_id, reason=reason)
            self._audit.record(
                EventType.WORKER_STOP, actor, worker_id=worker_id, node=self._table.hive_id, reason=reason
            )
            if worker.external is not None:
                return self._table.unregister_external(worker_id)
            await self._provision.cancel(worker_id)
            with self._because(worker_id, reason):
                await self._units.stop_unit(worker_id)
            if forget and await asyncio.to_thread(self._definitions.forget, worker_id):
                remaining = await asyncio.to_thread(self._definitions.read, worker_id)
                self._table.set_definition(worker_id, remaining)
            return self._table.row(worker_id)

    async def stop_idle(self, worker_id: str, idle_s: float, limit_s: float) -> None:
        """Stop a worker that had no request for longer than its limit: one log line."""
        async with self._order(worker_id):
            worker = self._table.find(worker_id)
            if worker is None or not worker.unit.running or worker.stop_reason:
                return
            log(
                LOGGER,
                logging.INFO,
                "worker is idle past its limit, stopping it",
                event="worker.stop",
                worker=worker_id,
                reason=IDLE,
                idle_s=round(idle_s, 1),
                limit_s=limit_s,
            )
            self._audit.record(
                EventType.WORKER_STOP, SYSTEM, worker_id=worker_id, node=self._table.hive_id, reason=IDLE
            )
            with self._because(worker_id, IDLE):
                await self._units.stop_unit(worker_id)

    async def restart(self, worker_id: str, actor: str) -> WorkerReport:
        """Stop, then start a worker. Raises WorkerNotFound, Conflict (outside systemd), SystemdUnavailable."""
        async with self._order(worker_id):
            worker = self._table.get(worker_id)
            if worker.external is not None:
                raise Conflict(f"{worker_id} is a worker outside systemd: whoever started it restarts it")
            await self._forget_starts(worker_id)
            await self._restart(worker_id, actor, REQUESTED)
            return self._table.row(worker_id)

    async def restart_unhealthy(self, worker_id: str) -> None:
        """Restart a worker whose unit runs and whose HTTP is dead; its starts count for the unit's limit.

        Raises SystemdUnavailable.
        """
        async with self._order(worker_id):
            worker = self._table.find(worker_id)
            if worker is not None and worker.external is None and worker.unit.running and worker.unhealthy:
                await self._restart(worker_id, f"hive {self._table.hive_id}", UNHEALTHY)

    async def _restart(self, worker_id: str, actor: str, reason: str) -> None:
        log(
            LOGGER, logging.INFO, "worker.restart", event="worker.restart", actor=actor, worker=worker_id, reason=reason
        )
        who = SYSTEM if reason == UNHEALTHY else actor
        self._audit.record(EventType.WORKER_RESTART, who, worker_id=worker_id, node=self._table.hive_id, reason=reason)
        with self._because(worker_id, reason):
            await self._units.restart_unit(worker_id)

    async def register(self, ready: ExternalReady, actor: str) -> WorkerReport:
        """Take in a worker that runs outside systemd, once it answers on this machine as the one it says it is.

        Raises InvalidRequest, BackendUnavailable, Conflict, TooManyRequests, or what its address answers.
        """
        async with self._order(ready.worker_id):
            _backend(ready.backend)
            if ready.device < 0:
                raise InvalidDevice("the device is a number from 0", details={"field": "device"})
            if not await asyncio.to_thread(answers_here, ready.url):
                raise InvalidRequest(
                    "the url is not an address of this machine: a worker registers with the hive of its own machine",
                    details={"field": "url"},
                )
            self._refuse_managed(ready.worker_id)
            worker = Worker(ready.worker_id, UnitFacts(worker_id=ready.worker_id), external=ready)
            await self._health.ask(worker)
            log(
                LOGGER,
                logging.INFO,
                "worker.register",
                event="worker.register",
                actor=actor,
                worker=ready.worker_id,
                model_ref=ready.model_ref,
            )
            self._audit.record(
                EventType.WORKER_REGISTER, actor, worker_id=ready.worker_id, model_ref=ready.model_ref,
                node=self._table.hive_id,
            )  # fmt: skip
            return self._table.register_external(ready)

    def _refuse_managed(self, worker_id: str) -> None:
        known = self._table.find(worker_id)
        if known is not None and known.external is None:
            raise Conflict(f"{worker_id} is a worker of systemd on this machine: choose another id")
        external = sum(1 for worker in self._table.all() if worker.external is not None)
        if known is None and external >= self._config.limits.external_workers:
            raise TooManyRequests("this hive holds as many workers outside systemd as its limit allows")

    def _row_in(self, worker_id: str) -> WorkerReport:
        """The row as the answer to a start: loading, where the unit's first signal is still on its way."""
        row = self._table.row(worker_id)
        if row.state in _UP:
            return row
        return msgspec.structs.replace(row, state=WorkerState.LOADING, reason="", url=None, pid=0)

    @contextlib.asynccontextmanager
    async def _order(self, worker_id: str) -> AsyncIterator[None]:
        """One order at a time for a worker; the lock is forgotten with its last user."""
        lock = self._locks.setdefault(worker_id, asyncio.Lock())
        self._waiting[worker_id] = self._waiting.get(worker_id, 0) + 1
        try:
            async with lock:
                yield
        finally:
            self._waiting[worker_id] -= 1
            if not self._waiting[worker_id]:
                del self._waiting[worker_id], self._locks[worker_id]


def _is_up(worker: Worker) -> bool:
    return worker.unit.active_state in ("activating", "active", "reloading")


def _backend(name: str) -> Backend:
    try:
        return Backend(name)
    except ValueError:
        available = [backend.value for backend in Backend]
        raise BackendUnavailable(
            f"there is no such backend here: use one of {', '.join(available)}",
            details={"field": "backend", "available": available},
        ) from None
