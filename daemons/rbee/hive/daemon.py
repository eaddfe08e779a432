"""The hive's life: read systemd, serve, report to the queen, reload, and leave the workers running."""

import asyncio
import logging
import socket
import uuid
from collections.abc import Callable, Sequence

import aiohttp
import msgspec
from prometheus_client import CollectorRegistry

from rbee import __version__
from rbee.hive.api import CallbackHealth, HiveApi, HiveHealth
from rbee.hive.callback import Callbacks
from rbee.hive.capabilities import Probe
from rbee.hive.config import CALLBACK_FIELD, HiveConfig, SupervisorKind, callback_url, hive_id_of
from rbee.hive.control import Control
from rbee.hive.definitions import Definitions
from rbee.hive.farewell import see_off
from rbee.hive.gpus import Gpus
from rbee.hive.health import HealthChecks
from rbee.hive.last_words import LastWords
from rbee.hive.machine_watch import MachineWatch
from rbee.hive.metrics import HiveMetrics
from rbee.hive.models.metrics import ModelMetrics
from rbee.hive.models.orders import ModelOrders
from rbee.hive.models.routes import ModelRoutes
from rbee.hive.models.store import ModelStore
from rbee.hive.provision import Provision, users_of_models
from rbee.hive.queen_link import QueenLink
from rbee.hive.reload import callback_token, needing_restart, put_bearer
from rbee.hive.revoked import RevokedList
from rbee.hive.supervisor import supervisor_of
from rbee.hive.workers import Change, WorkerTable
from rbee.host.audit.callers import AuditedCallers
from rbee.host.audit.log import AuditLog
from rbee.host.audit.reload import record_refused_reload, record_reload, record_tokens
from rbee.host.config import Loaded
from rbee.host.credentials import find_secret
from rbee.host.journal import set_level
from rbee.host.machine import machine_facts
from rbee.host.notify import Notifier, counted
from rbee.host.sockets import encrypted_for_others, is_loopback, refuse_public_without_token, tcp_address
from rbee.wire.auth import Role, TokenVerifier
from rbee.wire.errors import ConfigError
from rbee.wire.http.client import client_session
from rbee.wire.http.invalid import InvalidPace
from rbee.wire.http.metrics import HttpMetrics
from rbee.wire.http.openapi import CORRELATED, DocumentRoute
from rbee.wire.http.server import Server, build_app, metrics_handler
from rbee.wire.log import log
from rbee.wire.messages import API_VERSION, MachineFacts, WorkerReport, WorkerState
from rbee.wire.peer import PeerAdmins
from rbee.wire.tasks import TaskOwner
from rbee.wire.tls import client_context, load_identity, server_context

LOGGER = logging.getLogger(__name__)
CONNECTIVITY_LIMIT_S = 5.0
_CLOSE_GRACE_S = 2.0
_LAST_WORDS_S = 2.0
SEE_OFF_S = 31.0  # a worker has 30 s (TimeoutStopSec), then SIGKILL; the hive's own unit gives it 35 s
_REFRESH_MOST_S = 5.0
_READY_STATES = (WorkerState.IDLE, WorkerState.BUSY)


class HiveDaemon:
    """Owns the supervisor, the table, the way to the queen and the server; implements host.daemon.Daemon."""

    def __init__(
        self,
        loaded: Loaded[HiveConfig],
        reload: Callable[[], Loaded[HiveConfig]],
        notifier: Notifier,
        sockets: Sequence[socket.socket],
    ) -> None:
        self._config = loaded.value
        self._reload = reload
        self._notifier = notifier
        self._sockets = list(sockets)
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks = TaskOwner(self._on_failure)
        self._news = asyncio.Event()
        self._verifier = TokenVerifier({})
        self._put_tokens(self._config)
        registry = CollectorRegistry()
        self._metrics = HiveMetrics(registry)
        config = self._config
        self._audit = AuditLog(config.paths.state_dir / "hive", config.audit_level, self._metrics.audit)
        self._callers = AuditedCallers(self._audit)
        self._invalid = InvalidPace(config.limits.invalid_per_second)
        self._table = WorkerTable(
            hive_id_of(config), uuid.uuid4().hex, config.paths, self._metrics, self._on_report, self._on_resync,
            self._on_crash,
        )  # fmt: skip
        self._units, self._logs = supervisor_of(config, self._on_failure, self._metrics.bus_reconnects.inc)
        self._last_words = LastWords(self._logs, self._tasks, self._table.set_last_log)
        self._definitions = Definitions(config.paths)
        self._machine_watch = MachineWatch(
            lambda: msgspec.structs.replace(machine_facts(config.paths.state_dir), labels=config.labels)
        )
        self._health = HealthChecks(
            self._table,
            config.paths,
            self._metrics,
            at_once=config.limits.health_checks_at_once,
            on_unhealthy=self._restart_unhealthy,
            on_idle=self._stop_idle,
            idle_default_s=lambda: self._config.idle_limit_s,
        )
        identity = config.tls.identity
        self._client_tls = None if identity is None else client_context()
        self._store = ModelStore(config, ModelMetrics(registry), self._users_of_models, self._client_tls)
        self._provision = Provision(self._store, self._table)
        gpus = self._gpus = Gpus(self._table)
        self._control = Control(
            config, self._table, self._units, self._definitions, self._health, self._provision, self._audit, gpus
        )
        probe = Probe(config.paths.config_dir)
        self._api = HiveApi(
            config, self._table, self._control, self._logs, probe, self.health, self._machine_watch, gpus
        )
        app = build_app(
            verifier=self._verifier,
            admins=PeerAdmins(frozenset(config.admin_users)),
            metrics=HttpMetrics(registry, "rbee_hive"),
            watch=self._callers,
            invalid=self._invalid,
        )
        self._api.add_to(app)
        ModelRoutes(self._store, ModelOrders(self._store, config.paths.state_dir, self._audit)).add_to(app)
        DocumentRoute(app, "rbee hive", __version__, CORRELATED)
        app.router.add_get("/metrics", metrics_handler(registry))
        tls = encrypted_for_others(self._sockets, None if identity is None else lambda: server_context(identity))
        self._server = Server(app, self._sockets, _CLOSE_GRACE_S, tls=tls)
        self._revoked: RevokedList | None = None
        self._session: aiohttp.ClientSession | None = None
        self._callbacks: Callbacks | None = None
        self._link: QueenLink | None = None
        self._serving = False

    # host.daemon.Daemon

    async def start(self) -> None:
        """List the units, serve, say READY=1, and report. Raises ConfigError when a required queen is absent."""
        url = self._config.queen.callback_url
        self._audit.start(daemon="hive", version=__version__, boot_id=self._table.boot_id)
        if url is not None:
            self._open_way_to_queen(callback_url(url))
        await self._units.start(self._table)
        await self._read_definitions()
        await self._store.open()
        self._table.go_live()
        await self._server.start()
        self._serving = True
        if self._link is not None and self._session is not None:
            await self._test_queen(self._session, callback_url(url or ""))
            self._tasks.start(self._link.keep_session(), "session with the queen")
            self._tasks.start(self._link.keep_beating(), "heartbeat")
            self._keep_certificate(self._session, callback_url(url or ""))
        self._tasks.start(self._health.run(self._config.health_interval_s), "health checks")
        self._tasks.start(self._refresh(), "definitions and machine facts")
        self._show()
        self._notifier.ready(self.summary())
        log(
            LOGGER,
            logging.INFO,
            "hive ready",
            hive=self._table.hive_id,
            boot_id=self._table.boot_id,
            version=__version__,
            supervisor=self._config.supervisor.value,
            queen=url or "none: standalone",
            workers=len(self._table.all()),
        )

    async def wait(self) -> None:
        """Ends only with the exception of a part that failed."""
        await self._failed

    async def reload(self) -> None:
        """Put limits, tokens and log level in force; raises ConfigError and changes nothing where they are wrong."""
        try:
            self._read_again()
        except ConfigError as error:
            record_refused_reload(self._audit, error.code)
            raise

    def _read_again(self) -> None:
        loaded, tokens = self._reload(), self._verifier.fingerprints
        config = loaded.value
        self._put_tokens(config)
        if self._session is not None:
            put_bearer(self._session, callback_token(config))
        identity = self._config.tls.identity
        if identity is not None and self._client_tls is not None:
            load_identity(self._client_tls, identity)
        if self._link is not None:
            self._link.token_changed()
        waiting = needing_restart(self._config, config)
        if waiting:
            log(LOGGER, logging.WARNING, "these fields change with a restart only", fields=", ".join(waiting))
        record_reload(self._audit, self._config, config)
        record_tokens(self._audit, tokens, self._verifier.fingerprints)
        self._audit.use(config.audit_level)
        self._config = config
        self._invalid.most = config.limits.invalid_per_second
        self._control.use(config)
        self._store.use(config)
        self._api.use(config)
        set_level(config.log_level)
        log(LOGGER, logging.INFO, "configuration read again", **loaded.describe())

    async def stop(self) -> None:
        """Stop reporting and serving. Workers of systemd go on, unless it stops them too; child processes end."""
        if self._config.supervisor is SupervisorKind.CHILD:
            # still reporting: the queen hears that each of them drains and ends
            await self._units.close()
            if self._callbacks is not None:
                await self._callbacks.flush(_LAST_WORDS_S)
        elif self._serving:
            await see_off(self._table, self._units, self._news, SEE_OFF_S)
        await self._provision.close()
        await self._tasks.close()
        if self._callbacks is not None:
            self._callbacks.close()
        if self._serving:
            await self._server.close()
        await self._store.close()
        await self._health.close()
        if self._config.supervisor is SupervisorKind.SYSTEMD:
            await self._units.close()
        if self._session is not None:
            await self._session.close()
        for bound in self._sockets:
            bound.close()
        self._callers.sum_up()
        await self._audit.close()

    def healthy(self) -> bool:
        """Whether WATCHDOG=1 may go out: every part runs."""
        return not self._failed.done()

    def summary(self) -> str:
        """The STATUS= line: ``3 workers ready, 1 loading; queen reachable``."""
        parts = [f"{counted(self._table.count(*_READY_STATES), 'worker')} ready"]
        for state in (WorkerState.LOADING, WorkerState.DRAINING, WorkerState.UNHEALTHY, WorkerState.FAILED):
            count = self._table.count(state)
            if count:
                parts.append(f"{count} {state.value}")
        return f"{', '.join(parts)}; {self._queen_in_words()}"

    def health(self) -> HiveHealth:
        """The body of /v1/health."""
        callback, catalogue = self._callback_health(), self._store.catalogue
        bad = callback.status in ("degraded", "unreachable") or catalogue.in_memory or bool(self._audit.problem)
        return HiveHealth(
            status="degraded" if bad else "healthy",
            version=__version__,
            api_version=API_VERSION,
            hive_id=self._table.hive_id,
            boot_id=self._table.boot_id,
            supervisor=self._config.supervisor.value,
            workers={state.value: count for state in WorkerState if (count := self._table.count(state))},
            callback=callback,
            catalogue=catalogue.problem,
            audit=self._audit.problem or None,
        )

    # The parts.

    def _open_way_to_queen(self, url: str) -> None:
        identity = self._config.tls.identity
        if identity is not None and self._client_tls is not None:
            load_identity(self._client_tls, identity)
            self._revoked = RevokedList(identity, self._client_tls)
            self._revoked.read()
        self._session = client_session(token=callback_token(self._config), tls=self._client_tls)
        self._callbacks = Callbacks(url, self._session, self._tasks, self._metrics, self._on_way_changed)
        self._link = QueenLink(
            url,
            self._session,
            self._table,
            self._metrics,
            interval_s=self._config.heartbeat_interval_s,
            api_url=self._api_url(),
            machine=self._machine,
            on_change=self._on_way_changed,
            after_beat=self._callbacks.retry,
            on_refused=self._callbacks.refuse,
            revoked=self._revoked,
        )

    def _keep_certificate(self, session: aiohttp.ClientSession, url: str) -> None:
        identity, client = self._config.tls.identity, self._client_tls
        if identity is not None and client is not None:
            # imported where it is used: a hive without a certificate does not pay its memory
            from rbee.hive.renewal import keep_certificate

            show_end = self._metrics.certificate_end.set
            work = keep_certificate(identity, self._table.hive_id, url, session, client, show_end)
            self._tasks.start(work, "this node's certificate")

    def _api_url(self) -> str | None:
        if self._config.api_url is not None:
            return callback_url(self._config.api_url)
        address = tcp_address(self._sockets)
        if address is None:
            return None
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        plain = self._config.tls.identity is None or all(is_loopback(bound) for bound in self._sockets)
        return f"{'http' if plain else 'https'}://{host}:{address[1]}"

    async def _test_queen(self, session: aiohttp.ClientSession, url: str) -> None:
        """GET /health of the queen: a failure ends the start where she is required, and is recorded where not."""
        try:
            async with asyncio.timeout(CONNECTIVITY_LIMIT_S), session.get(f"{url}/health") as response:
                # any answer of the queen shows that the way is good; her own health is hers
                why = "" if response.status < 500 else f"HTTP status {response.status}"
        except TimeoutError:
            why = f"no answer within {CONNECTIVITY_LIMIT_S:g} s"
        except aiohttp.ClientError as error:
            why = type(error).__name__
        if not why:
            log(LOGGER, logging.INFO, "the queen answers")
            return
        if self._config.queen.required:
            raise ConfigError(
                f"{CALLBACK_FIELD}: the queen does not answer there ({why}) and queen.required is true: "
                "start the queen, or mend the URL",
                details={"field": CALLBACK_FIELD},
            )
        log(LOGGER, logging.WARNING, "the queen does not answer: going on, and trying again", why=why)

    async def _machine(self) -> MachineFacts:
        facts = await self._machine_watch.facts()
        self._metrics.show_gpus(facts.gpus)
        return facts

    async def _read_definitions(self) -> None:
        self._table.set_definitions(await asyncio.to_thread(self._definitions.read_all))

    async def _refresh(self) -> None:
        """Read definitions anew; without a queen, whose heartbeat does it, the machine's facts as well."""
        while True:
            await asyncio.sleep(min(self._config.heartbeat_interval_s, _REFRESH_MOST_S))
            await self._read_definitions()
            if self._link is None:
                await self._machine()
            self._show()

    def _put_tokens(self, config: HiveConfig) -> None:
        file = config.paths.config_dir / config.tokens.hive_api_token if config.tokens.hive_api_token else None
        secret = find_secret("hive_api_token", file)
        callback_token(config)  # a wrong file is an error before anything changes
        tokens = {Role.API: [secret] if secret is not None else []}
        refuse_public_without_token(self._sockets, TokenVerifier(tokens))
        self._verifier.replace(tokens)

    # What happens.

    def _users_of_models(self) -> dict[str, list[str]]:
        return users_of_models(self._table.all())

    def _on_report(self, report: WorkerReport, change: Change) -> None:
        self._news.set()
        if change in (Change.READY, Change.STATE) and report.model_ref is not None:
            self._tasks.start(self._store.used(report.model_ref), "use of a model")
        if change is Change.READY:
            self._tasks.start(self._gpus.measure(report), "memory of a worker")
        if self._callbacks is not None and change is not Change.QUIET:
            self._callbacks.owe(report, change)
        self._show()

    def _on_resync(self) -> None:
        if self._link is not None:
            self._link.beat_now()

    def _on_crash(self, worker_id: str, invocation_id: str) -> None:
        self._last_words.ended(worker_id, invocation_id)

    def _on_way_changed(self) -> None:
        self._show()

    def _on_failure(self, error: BaseException) -> None:
        LOGGER.critical("a part of the hive failed, the hive ends", exc_info=error)
        if not self._failed.done():
            self._failed.set_exception(error)

    async def _restart_unhealthy(self, worker_id: str) -> None:
        await self._control.restart_unhealthy(worker_id)

    async def _stop_idle(self, worker_id: str, idle_s: float, limit_s: float) -> None:
        await self._control.stop_idle(worker_id, idle_s, limit_s)

    def _show(self) -> None:
        self._metrics.count_workers(self._table.reports())
        if self._serving:
            self._notifier.status(self.summary())

    def _callback_health(self) -> CallbackHealth:
        if self._callbacks is None or self._link is None:
            return CallbackHealth("standalone")
        if self._callbacks.degraded:
            status, why = "degraded", self._callbacks.degraded_why
        elif not self._link.reachable:
            status, why = "unreachable", self._link.why
        else:
            status, why = "ok", ""
        return CallbackHealth(status, self._link.reachable, self._callbacks.waiting, why)

    def _queen_in_words(self) -> str:
        callback = self._callback_health()
        match callback.status:
            case "standalone":
                return "standalone"
            case "ok":
                return "queen reachable"
            case "degraded":
                return f"degraded: callbacks to the queen fail ({callback.why})"
            case _:
                return f"queen not reachable ({callback.why})"
