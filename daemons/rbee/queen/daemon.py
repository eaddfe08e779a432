"""The queen as a daemon: sockets, tokens, routes, reload, and an orderly end."""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path

from aiohttp import web

from rbee import __version__
from rbee.host.audit.entries import SYSTEM
from rbee.host.audit.reload import record_refused_reload, record_reload, record_tokens
from rbee.host.config import Loaded
from rbee.host.credentials import find_named, find_secret, load_secret
from rbee.host.journal import set_level
from rbee.host.notify import Notifier, counted
from rbee.host.paths import Paths
from rbee.host.sockets import bind_tcp, bind_unix, inherited, refuse_public_without_token, tcp_address
from rbee.host.tls import ServerTls
from rbee.queen.config import QueenConfig, check_public_url
from rbee.queen.core import Core, OutgoingTokens, states
from rbee.queen.express.connection import ExpressConnection
from rbee.queen.express.lane import Lane
from rbee.queen.nodes.routes import NodeRoutes
from rbee.queen.placement.record import record_declarations
from rbee.queen.placement.routes import DeclarationRoutes
from rbee.queen.requests.reply import CARRIED, name_times
from rbee.queen.routes.hives import HiveRoutes
from rbee.queen.routes.inference import OPENAI_ROUTES, InferenceRoutes
from rbee.queen.routes.machines import MachineRoutes
from rbee.queen.routes.models import ModelRoutes
from rbee.queen.routes.status import StatusRoutes, problems
from rbee.queen.routes.workers import WorkerRoutes
from rbee.wire.auth import Role, Secret, TokenVerifier
from rbee.wire.errors import ConfigError, RbeeError
from rbee.wire.http.openapi import DocumentRoute
from rbee.wire.http.server import Server, build_app, metrics_handler
from rbee.wire.log import log
from rbee.wire.peer import PeerAdmins

LOGGER = logging.getLogger(__name__)
GRACE_S = 20.0
CLIENT_CREDENTIAL = "client."
MOST_CLIENTS = 256


class QueenDaemon:
    """One queen. ``load`` reads the configuration anew for a reload."""

    def __init__(self, config: QueenConfig, load: Callable[[], Loaded[QueenConfig]], notifier: Notifier) -> None:
        set_level(config.log_level)
        self._load = load
        self._notifier = notifier
        accepted, self._outgoing = read_tokens(config)
        self._verifier = TokenVerifier(accepted, read_clients(config))
        public_url = check_public_url(config.public_url)
        self.core = Core(config, self._outgoing, public_url)
        self._sockets = [*listen(config), *self.core.fleet.listen(public_url)]
        refuse_public_without_token(self._sockets, self._verifier)
        self._verifier.of_digest = self.core.nodes.speaker
        admins = PeerAdmins(frozenset(config.admin_users))
        self._tls = read_tls(config)
        lane = Lane(self.core, self._verifier)
        self._server = Server(
            make_app(self.core, self._verifier, admins),
            self._sockets,
            GRACE_S,
            tls=self._context_of,
            tcp_connection=lambda manager: ExpressConnection(manager, asyncio.get_running_loop(), lane),
        )

    def _context_of(self, bound: socket.socket) -> ssl.SSLContext | None:
        """By what a TCP socket is served: the fleet's TLS for nodes, the configured certificate for others."""
        of_fleet = self.core.fleet.context_of(bound)
        return of_fleet if of_fleet is not None or self._tls is None else self._tls.context

    async def start(self) -> None:
        """Open the store, listen, and say READY=1."""
        await self.core.start()
        self.core.on_sweep = lambda: self._notifier.status(self.summary())
        await self._server.start()
        address = tcp_address(self._sockets)
        log(
            LOGGER,
            logging.INFO,
            "queen is ready",
            instance_id=self.core.instance_id,
            listen=None if address is None else f"{address[0]}:{address[1]}",
            public_url=self.core.public_url,
        )
        self._notifier.ready(self.summary())

    async def wait(self) -> None:
        """Ends only with the exception of a part that failed."""
        await self.core.wait()

    async def reload(self) -> None:
        """Put tokens, limits, aliases, the log level and a renewed certificate in force; a bad file changes nothing.

        Raises ConfigError. Addresses and folders stay as they were at the start.
        """
        try:
            await self._reload()
        except RbeeError as error:
            record_refused_reload(self.core.audit, error.code)
            raise

    async def _reload(self) -> None:
        loaded = await asyncio.to_thread(self._load)
        accepted, outgoing = await asyncio.to_thread(read_tokens, loaded.value)
        clients = await asyncio.to_thread(read_clients, loaded.value)
        fresh = TokenVerifier(accepted, clients)
        refuse_public_without_token(self._sockets, fresh)
        if self._tls is not None:
            await asyncio.to_thread(self._tls.load)
        before, tokens = self.core.config, self._tokens()
        self._verifier.replace(accepted, clients)
        self._outgoing.hive_api, self._outgoing.worker_api = outgoing.hive_api, outgoing.worker_api
        set_level(loaded.value.log_level)
        self.core.reconfigure(loaded.value)
        record_reload(self.core.audit, before, loaded.value)
        record_declarations(self.core.audit, SYSTEM, before.models, loaded.value.models)
        record_tokens(self.core.audit, tokens, self._tokens())
        log(LOGGER, logging.INFO, "configuration reloaded", **loaded.describe())

    def _tokens(self) -> frozenset[str]:
        """The fingerprints of all tokens in force, of those that are accepted and those that are presented."""
        presented = (self._outgoing.hive_api, self._outgoing.worker_api)
        return self._verifier.fingerprints | {secret.fingerprint for secret in presented if secret is not None}

    async def stop(self) -> None:
        """Take no new connections, let what runs end within 20 s, then close everything."""
        self.core.begin_close()
        await self._server.close()
        await self.core.close()

    def healthy(self) -> bool:
        """Always: a loop that can answer this serves."""
        return True

    def summary(self) -> str:
        """The line that `systemctl status` shows."""
        tally = states(self.core)
        ready = tally.get("idle", 0) + tally.get("busy", 0)
        hives, workers = len(self.core.registry.hives()), sum(tally.values())
        flight = self.core.admission.in_flight
        wrong = problems(self.core)
        degraded = f"; degraded: {wrong[0]}" if wrong else ""
        known = f"{counted(hives, 'hive')}, {counted(workers, 'worker')} ({ready} ready)"
        return f"{known}, {counted(flight, 'request')} in flight{degraded}"


def read_tls(config: QueenConfig) -> ServerTls | None:
    """The certificate of the TCP listeners, if one is configured; raises ConfigError."""
    return None if config.tls is None else ServerTls(Path(config.tls.certificate), Path(config.tls.key))


def read_tokens(config: QueenConfig) -> tuple[Mapping[Role, list[Secret]], OutgoingTokens]:
    """The tokens that are accepted, by role, and those that are presented; raises ConfigError."""

    def find(name: str) -> Secret | None:
        configured: str | None = getattr(config.tokens, name)
        return find_secret(name, None if configured is None else Path(configured))

    roles = {Role.API: find("api_token"), Role.HIVE: find("hive_callback_token")}
    accepted = {role: [secret] for role, secret in roles.items() if secret is not None}
    return accepted, OutgoingTokens(find("hive_api_token"), find("worker_api_token"))


def read_clients(config: QueenConfig) -> Mapping[str, Secret]:
    """The tokens of clients that have a name: credentials ``client.NAME``, over them those of the configuration.

    Raises ConfigError, also for two names of one token.
    """
    files = {name: Path(path) for name, path in config.tokens.clients.items()}
    found = find_named(CLIENT_CREDENTIAL) | {name: load_secret(path) for name, path in files.items()}
    if len(found) > MOST_CLIENTS:
        raise ConfigError(f"tokens.clients: {len(found)} clients have tokens, at most {MOST_CLIENTS} are possible")
    names: dict[str, str] = {}
    for name, secret in found.items():
        other = names.setdefault(secret.reveal(), name)
        if other != name:
            raise ConfigError(f"tokens.clients: {other} and {name} have the same token: give each one of its own")
    return found


def listen(config: QueenConfig) -> list[socket.socket]:
    """The sockets that systemd passed, else those of the configuration; raises ConfigError."""
    sockets = inherited()
    if sockets:
        return sockets
    bound = bind_tcp(config.listen.host, config.listen.port)
    return [bind_unix(Paths(run_dir=Path(config.run_dir)).queen_socket), bound]


def make_app(core: Core, verifier: TokenVerifier, admins: PeerAdmins) -> web.Application:
    """The application with every route of the queen."""
    app = build_app(
        verifier=verifier,
        admins=admins,
        metrics=core.metrics.http,
        openai_prefixes=(*OPENAI_ROUTES, "/v1/models"),
        watch=core.callers,
        invalid=core.invalid,
    )
    app.on_response_prepare.append(name_times)
    DocumentRoute(app, "rbee queen", __version__, CARRIED)
    app.router.add_get("/metrics", metrics_handler(core.metrics.registry))
    HiveRoutes(core).add_to(app)
    MachineRoutes(core).add_to(app)
    WorkerRoutes(core).add_to(app)
    ModelRoutes(core).add_to(app)
    NodeRoutes(core).add_to(app)
    DeclarationRoutes(core).add_to(app)
    InferenceRoutes(core).add_to(app)
    StatusRoutes(core).add_to(app)
    return app
