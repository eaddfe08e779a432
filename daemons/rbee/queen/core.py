"""The parts of a queen, made and joined in one place, started and closed in order."""

import asyncio
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from rbee import __version__
from rbee.host.audit.callers import AuditedCallers
from rbee.host.audit.log import AuditLog
from rbee.queen.admission.admission import Admission
from rbee.queen.admission.clients import Clients
from rbee.queen.admission.policy import Policy
from rbee.queen.admission.rates import RetryBudget
from rbee.queen.aliases import Aliases
from rbee.queen.config import QueenConfig, RequestLimits
from rbee.queen.database import HiveRow
from rbee.queen.events import EventHub
from rbee.queen.express.upstreams import Upstreams
from rbee.queen.hives.client import HiveClient
from rbee.queen.hives.fallback import Fallback
from rbee.queen.hives.sessions import Sessions
from rbee.queen.hives.starter import Starter
from rbee.queen.metrics import QueenMetrics
from rbee.queen.nodes.book import Nodes
from rbee.queen.nodes.enrolment import Enrolments
from rbee.queen.nodes.fleet import Fleet
from rbee.queen.nodes.tokens import HIVE_API, WORKER_API, PresentedTokens
from rbee.queen.placement.declarations import Declarations
from rbee.queen.placement.declared import DeclaredModels
from rbee.queen.placement.drains import Drains
from rbee.queen.placement.measured import Measured
from rbee.queen.placement.placements import Placements
from rbee.queen.placement.room import Room
from rbee.queen.registry.registry import Registry
from rbee.queen.registry.rows import Change, Hive, SilenceLimits
from rbee.queen.requests.audited import AuditedTrail
from rbee.queen.requests.dispatch import Dispatcher, SendLimits
from rbee.queen.requests.explain import Recent, Trail
from rbee.queen.requests.tasks import TaskRegistry
from rbee.queen.routing.affinity import Affinity
from rbee.queen.routing.decision import Key
from rbee.queen.store import Store
from rbee.wire import context
from rbee.wire.auth import Secret
from rbee.wire.http.client import client_session
from rbee.wire.http.invalid import InvalidPace
from rbee.wire.log import log
from rbee.wire.messages import WorkerReport
from rbee.wire.tasks import TaskOwner

LOGGER = logging.getLogger(__name__)
SWEEP_S = 1.0
LATE_S = 5.0
SETTLE_S = 8.0
RECENT_S = 3600.0
NOTE_AGAIN_S = 600.0
FIRST_REPORT = "first report"
MOST_CONNECTIONS = 4096


@dataclass(slots=True)
class OutgoingTokens:
    """The tokens that the queen presents; a reload replaces them in place."""

    hive_api: Secret | None = None
    worker_api: Secret | None = None


class WorkerEvent(msgspec.Struct, frozen=True):
    """The event ``worker``: its report as the queen sees it, and when it changed (CLOCK_MONOTONIC)."""

    report: WorkerReport
    removed: bool
    monotonic_us: int


class HiveEvent(msgspec.Struct, frozen=True):
    """The event ``hive``: what happened to it (first report, session opened, session closed, gone)."""

    hive_id: str
    what: str
    monotonic_us: int


class Core:
    """Everything that the routes use. ``instance_id`` names this life of the queen."""

    def __init__(self, config: QueenConfig, tokens: OutgoingTokens, public_url: str) -> None:
        self.instance_id = uuid.uuid4().hex
        self.public_url = public_url
        self.config = config
        self.tokens = tokens
        self._closing = asyncio.Event()
        self.metrics = QueenMetrics()
        self.audit = AuditLog(Path(config.state_dir) / "queen", config.audit_level, self.metrics.audit)
        self.callers = AuditedCallers(self.audit)
        self.invalid = InvalidPace(config.requests.invalid_per_second)
        self.owner = TaskOwner(of_requests=True)
        self.hub = EventHub()
        self.recent = Recent()
        self.registry = Registry(_silence(config))
        self.admission = Admission(
            self.registry,
            Policy.of(config),
            Affinity(config.routing.affinity_entries),
            Clients(config.clients),
            self.metrics.placing,
        )
        self.sessions = Sessions(self.registry)
        self.aliases = Aliases(config.aliases, {})
        self.store = Store(Path(config.state_dir) / "queen" / "queen.db")
        self.nodes = Nodes(self.store, self.registry)
        self._presented = PresentedTokens(Path(config.state_dir) / "queen" / "nodes")
        self.fleet = Fleet(config, public_url)
        self.enrolments = Enrolments(self.nodes, self._presented, self.fleet, public_url)
        limits = config.requests
        self.tasks = TaskRegistry(
            self.owner, most=limits.max_tasks, most_events=limits.task_events, retention_s=limits.task_retention_s
        )
        self.to_workers = client_session(connections=MOST_CONNECTIONS, tls=self.fleet.client, watched=True)
        self.upstreams = Upstreams(self.fleet.client)
        self.to_hives = client_session(connections=MOST_CONNECTIONS, tls=self.fleet.client)
        self.hives = HiveClient(
            self.to_hives, self.audit, self._hive_token, lambda hive_id: self.enrolments.refused(hive_id, HIVE_API)
        )
        self.measured = Measured(self.store)
        self.placements = Placements(self.registry, self.hives, self.metrics.placing, self.measured)
        self.dispatcher = Dispatcher(
            self.registry,
            self.admission,
            self.to_workers,
            self.worker_token,
            self.owner,
            _send_limits(limits),
            RetryBudget(config.routing.retry_share, config.routing.retry_reserve),
            self.metrics.placing,
            lambda hive_id: self.enrolments.refused(hive_id, WORKER_API),
        )
        self.declared = DeclaredModels(
            self.placements,
            Drains(self.registry, self.hives, self.owner, self.metrics.placing),
            self.registry,
            self.owner,
            self.admission.place_settled,
            self.metrics.placing,
        )
        self.declarations = Declarations(self.store, config.models)
        self.declarations_changed()
        self._room = Room(self.registry, self.hives, self.metrics.placing, self.declared.evictable)
        self._room.idle_s = config.placement.evict_idle_s
        self.placements.use_room(self._room)
        self._starter = Starter(self.registry, self.placements, self.owner, self.admission.start_settled)
        self._fallback = Fallback(self.registry, self.to_workers, self.worker_token, self.owner, self.metrics)
        self._expected: set[str] = set()
        self._settles_at = 0.0
        self._noted: dict[str, tuple[str | None, str, float]] = {}
        self._sweeper: asyncio.Task[None] | None = None
        self.on_sweep: Callable[[], None] = lambda: None
        self.admission.use_starter(self._start_worker, lambda: self._starter.under_way | self.declared.starting)
        self.admission.use_declared(self.declared)
        self.admission.use_settling(lambda: self.settling)
        self.registry.listen(self._publish, loads=True)
        self.metrics.watch(self.registry, self.declarations, self.declared.kept)

    async def start(self) -> None:
        """Open the audit log and the store, and begin to watch for silence."""
        self.audit.start(daemon="queen", version=__version__, instance_id=self.instance_id)
        rows, aliases = await self.store.open()
        await self.nodes.load()
        await self._load_declarations()
        await self.measured.load()
        await asyncio.to_thread(self._presented.load)
        if self.fleet.url is not None:
            await asyncio.to_thread(self.fleet.open)
            self.owner.start(self.fleet.keep_certificate(), "the queen's certificate")
        for alias, model in aliases.items():
            self.aliases.put(alias, model)
        recent = time.time() - RECENT_S
        self._expected = {row.hive_id for row in rows if row.last_seen_unix >= recent}
        self._settles_at = time.monotonic() + SETTLE_S
        self._sweeper = asyncio.create_task(self._sweep(), name="sweeper")

    def begin_close(self) -> None:
        """End the streams that have no end of their own; requests that run go on."""
        self._closing.set()
        self.hub.close()

    @property
    def closing(self) -> bool:
        """Whether the queen closes."""
        return self._closing.is_set()

    async def wait(self) -> None:
        """Returns never; raises what ended the watch over silence, which is a defect."""
        if self._sweeper is not None:
            await asyncio.shield(self._sweeper)

    async def closing_within(self, seconds: float) -> bool:
        """Whether the queen begins to close within ``seconds``; waits for as long."""
        try:
            async with asyncio.timeout(seconds):
                await self._closing.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End what runs in the background, then the connections and the store."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        self.tasks.close()
        await self.owner.close()
        self.upstreams.close()
        await self.to_workers.close()
        await self.to_hives.close()
        await self.store.close()
        self.callers.sum_up()
        await self.audit.close()

    def trail(self, route: str, correlation_id: str | None = None, caller: str | None = None) -> Trail:
        """The trail of a request that begins; without names it is the request in hand."""
        caller = caller or context.caller.get()
        if self.audit.everything:
            return AuditedTrail(self.audit, route, correlation_id or context.correlation_id.get(), caller)
        return Trail(route, correlation_id, caller)

    def reconfigure(self, config: QueenConfig) -> None:
        """Put the limits and aliases of a reloaded configuration in force."""
        self.config = config
        self.audit.use(config.audit_level)
        self.invalid.most = config.requests.invalid_per_second
        self.registry.limits = _silence(config)
        self.admission.configure(Policy.of(config))
        self.admission.clients.configure(config.clients)
        self.admission.placer.affinity.most = config.routing.affinity_entries
        self.dispatcher.limits = _send_limits(config.requests)
        self.dispatcher.budget.configure(config.routing.retry_share, config.routing.retry_reserve)
        self.aliases.configure(config.aliases)
        self.declarations.configure(config.models)
        self.declarations_changed()
        self._room.idle_s = config.placement.evict_idle_s

    def declarations_changed(self) -> None:
        """Put the declarations of configuration and API in force."""
        self.declared.configure(self.declarations.in_force, self.declarations.ended)

    async def _load_declarations(self) -> None:
        await self.declarations.load()
        self.declarations_changed()

    @property
    def settling(self) -> bool:
        """Whether, just after a start, hives that reported to an earlier life have not reported to this one."""
        return bool(self._expected) and time.monotonic() < self._settles_at

    def heard_of(self, hive: Hive) -> None:
        """A hive's picture was taken: it is settled, and remembered when anything about it is new."""
        if self._expected:
            self._expected.discard(hive.hive_id)
            if not self._expected:
                self.admission.settled()
        noted = self._noted.get(hive.hive_id)
        if noted is None:
            self.tell_of_hive(hive.hive_id, FIRST_REPORT)  # from here on it can be asked to start workers
        if noted is None or noted[:2] != (hive.api_url, hive.version) or hive.heard - noted[2] > NOTE_AGAIN_S:
            self._noted[hive.hive_id] = (hive.api_url, hive.version, hive.heard)
            now = time.time()
            self.store.note_hive(HiveRow(hive.hive_id, hive.api_url, hive.version, now, now))

    def tell_of_hive(self, hive_id: str, what: str) -> None:
        """Publish an event about a hive."""
        log(LOGGER, logging.INFO, f"hive {what}", hive=hive_id)
        self.hub.publish("hive", HiveEvent(hive_id, what, _monotonic_us()))

    @property
    def starting(self) -> int:
        """How many starts of workers were begun here and have neither been reported nor come to nothing."""
        return len(self._starter.under_way) + self.declared.under_way

    def _start_worker(self, key: Key) -> None:
        """Start a worker that ended: where it is, unless a declaration lets it be placed anew."""
        if not self.declared.restart(key):
            self._starter.start(key)

    def _hive_token(self, hive_id: str) -> Secret | None:
        return self.enrolments.presented(hive_id, HIVE_API, self.tokens.hive_api)

    def worker_token(self, hive_id: str) -> Secret | None:
        """The token that the workers of a hive's machine want."""
        return self.enrolments.presented(hive_id, WORKER_API, self.tokens.worker_api)

    def _publish(self, change: Change) -> None:
        if change.removed:
            self._fallback.forget(change.worker.key)
        if self.hub.listened:
            self.hub.publish("worker", WorkerEvent(change.worker.view(), change.removed, _monotonic_us()))

    async def _sweep(self) -> None:
        """Silence makes no event of its own: this is the one clock of the queen."""
        swept = time.monotonic()
        while True:
            await asyncio.sleep(SWEEP_S)
            before, swept = swept, time.monotonic()
            if swept - before > LATE_S:
                continue  # what hives said meanwhile is still to be read: their silence is not theirs
            now = swept
            for hive in self.registry.sweep(now):
                self._noted.pop(hive.hive_id, None)
                self.store.forget_hive(hive.hive_id)
                self.nodes.forget_heard(hive.hive_id)
                self.tell_of_hive(hive.hive_id, "silent for long: its workers are dropped")
            if self._expected and not self.settling:
                self._expected.clear()
                self.admission.settled()
            if not self.nodes.loaded and self.store.problem is None:
                await self.nodes.load()
            if not self.declarations.loaded and self.store.problem is None:
                await self._load_declarations()
            if not self.measured.loaded and self.store.problem is None:
                await self.measured.load()
            for model in self.admission.waiting_models():
                self._fallback.consider(model, now)
            if now >= self._settles_at:
                self.declared.sweep(now, self.admission.waiting_for)
            self.upstreams.sweep(now)
            self.on_sweep()


def _silence(config: QueenConfig) -> SilenceLimits:
    return SilenceLimits(config.heartbeat.stale_after_intervals, config.heartbeat.drop_after_s)


def _send_limits(limits: RequestLimits) -> SendLimits:
    return SendLimits(limits.stall_s, limits.answer_s)


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000


def states(core: Core) -> Mapping[str, int]:
    """How many workers are in each state that any is in."""
    tally: dict[str, int] = {}
    for worker in core.registry.workers():
        tally[worker.state.value] = tally.get(worker.state.value, 0) + 1
    return tally
