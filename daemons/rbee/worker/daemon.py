"""The worker's life: listen, load, say READY=1, serve, drain."""

import asyncio
import contextlib
import dataclasses
import gc
import logging
import socket

import msgspec

from rbee import __version__
from rbee.host.credentials import find_secret
from rbee.host.journal import set_level
from rbee.host.notify import Notifier
from rbee.host.sockets import encrypted_for_others, refuse_public_without_token
from rbee.wire.auth import Role, TokenVerifier
from rbee.wire.errors import RbeeError
from rbee.wire.http.server import Server
from rbee.wire.log import log
from rbee.wire.peer import PeerAdmins
from rbee.wire.tls import server_context
from rbee.worker.api.app import build_worker_app
from rbee.worker.definition import Definition, load_defaults
from rbee.worker.loading import LoadedModel, Loader
from rbee.worker.metrics import WorkerMetrics
from rbee.worker.progress import Loaded, ProgressBoard
from rbee.worker.requests import RunningRequests
from rbee.worker.service import WorkerService
from rbee.worker.statement import device_name, ready_facts, write_facts

LOGGER = logging.getLogger(__name__)
TOKEN_NAME = "worker_api_token"  # noqa: S105 - a credential's name
CLOSE_GRACE_S = 0.5


class WorkerDaemon:
    """Owns the sockets, the loader, the server and what runs; implements host.daemon.Daemon."""

    def __init__(
        self,
        definition: Definition,
        notifier: Notifier,
        sockets: list[socket.socket],
        loader: Loader,
        board: ProgressBoard,
    ) -> None:
        self._definition = definition
        self._notifier = notifier
        self._sockets = sockets
        self._loader = loader
        self._verifier = TokenVerifier({})
        self._load_token(definition)
        metrics = WorkerMetrics()
        spec = definition.spec
        requests = RunningRequests(spec.slots, metrics.ended, queue=spec.queue)
        self.service = WorkerService(definition, board, metrics, requests)
        admins = PeerAdmins(frozenset(definition.defaults.admin_users))
        identity = definition.defaults.tls.identity
        tls = encrypted_for_others(sockets, None if identity is None else lambda: server_context(identity))
        self._server = Server(build_worker_app(self.service, self._verifier, admins), sockets, CLOSE_GRACE_S, tls=tls)
        self._serving = False

    async def start(self) -> None:
        """Serve, await the model, write the facts, and say READY=1; raises what ended the loading."""
        await self._server.start()
        self._serving = True
        board = self.service.board
        try:
            loaded = await self._loader.result()
        except RbeeError as error:
            board.post(error)
            raise
        self.service.loaded = loaded
        self.service.requests.open()
        self._count(loaded)
        facts = ready_facts(self._definition, self._sockets, loaded.facts)
        write_facts(self._definition, facts)
        gc.freeze()
        gc.enable()
        self._notifier.ready(self.summary())
        board.post(Loaded(loaded.seconds))
        log(
            LOGGER,
            logging.INFO,
            "worker ready",
            worker=facts.worker_id,
            model=facts.model,
            task=facts.task,
            backend=facts.backend,
            url=facts.url,
            slots=facts.slots_total,
            load_seconds=round(loaded.seconds, 3),
        )

    async def wait(self) -> None:
        """End when the model cannot serve any more; raises why."""
        if self.service.loaded is not None:
            await asyncio.wrap_future(self.service.loaded.model.runner.failure)

    async def reload(self) -> None:
        """Take another token and log level; raises ConfigError and keeps the old ones where the new are wrong."""
        defaults = load_defaults(self._definition.paths)
        changed = msgspec.structs.replace(self._definition.defaults, tokens=defaults.tokens)
        self._load_token(dataclasses.replace(self._definition, defaults=changed))
        set_level(defaults.log_level)

    async def stop(self) -> None:
        """Drain within ``drain_limit_s``, cut what is left, close, and remove what was written."""
        requests, limit = self.service.requests, self._definition.spec.drain_limit_s
        running = requests.busy
        self._notifier.stopping(f"draining: {running} running")
        if running:
            log(LOGGER, logging.INFO, "draining", running=running, limit_s=limit)
        cut = await requests.drain(limit)
        if cut:
            log(LOGGER, logging.WARNING, "drain limit reached, requests were cut", cut=cut, limit_s=limit)
        if self._serving:
            with contextlib.suppress(TimeoutError):  # a handler that does not end in its grace ends with the process
                await self._server.close()
        for bound in self._sockets:
            bound.close()
        paths, worker = self._definition.paths, self._definition.worker_id
        for path in (paths.worker_facts(worker), paths.worker_socket(worker)):
            path.unlink(missing_ok=True)
        if self.service.loaded is not None:
            self.service.loaded.model.close()

    def healthy(self) -> bool:
        """Whether WATCHDOG=1 may go out: no step of inference is stuck."""
        return self.service.healthy()

    def summary(self) -> str:
        """The STATUS= line of a ready worker."""
        spec, loaded = self._definition.spec, self.service.loaded
        task = loaded.facts.task if loaded is not None else spec.task
        return f"ready: {self._definition.model} ({task}) on {device_name(self._definition)}, {spec.slots} slots"

    def _load_token(self, definition: Definition) -> None:
        secret = find_secret(TOKEN_NAME, definition.token_file)
        tokens = {Role.API: [secret] if secret is not None else []}
        refuse_public_without_token(self._sockets, TokenVerifier(tokens))
        self._verifier.replace(tokens)

    def _count(self, loaded: LoadedModel) -> None:
        metrics, definition = self.service.metrics, self._definition
        metrics.load_seconds.set(loaded.seconds)
        if loaded.model.prefixes is not None:
            metrics.watch_prefixes(loaded.model.prefixes)
        if loaded.model.runs is not None:
            metrics.watch_runs(loaded.model.runs)
        metrics.info.info(
            {
                "worker": definition.worker_id,
                "model": definition.model,
                "task": str(loaded.facts.task),
                "backend": str(definition.spec.backend),
                "precision": loaded.facts.precision,
                "version": __version__,
            }
        )
