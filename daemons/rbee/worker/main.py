"""rbee-worker: serves one model on one device."""

import argparse
import gc
import logging
import os
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from rbee import __version__
from rbee.host.daemon import EXIT_CONFIG, EXIT_OK, exit_process, run_daemon
from rbee.host.journal import set_level, setup_logging
from rbee.host.notify import Notifier
from rbee.host.paths import CONFIG_DIR, RUN_DIR, STATE_DIR, Paths
from rbee.host.sockets import bind_tcp_range, bind_unix
from rbee.wire.errors import ConfigError
from rbee.wire.log import log
from rbee.worker.definition import Definition, load_defaults, load_definition
from rbee.worker.engine.folder import read_folder
from rbee.worker.engine.recognise import recognise
from rbee.worker.statement import listening_facts, write_facts

if TYPE_CHECKING:
    from rbee.worker.daemon import WorkerDaemon

LOGGER = logging.getLogger(__name__)


def main() -> None:
    """Entry point; ends the process with 0, 1, 69 (device not there), 71 (memory short) or 78 (configuration wrong)."""
    options = _options(sys.argv[1:])
    paths = Paths(options.config_dir, options.state_dir, options.run_dir)
    if options.check_config:
        sys.exit(_check(options.id, paths))
    setup_logging("worker", "info")
    gc.disable()  # until READY=1: imports only make objects that stay
    code = run_daemon(lambda notifier: _make(options.id, paths, notifier))
    _end(code)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rbee-worker", description="Serve one model on one device.")
    parser.add_argument("--id", required=True, help="the worker's id: its definition is ID.yaml")
    parser.add_argument("--config-dir", type=Path, default=CONFIG_DIR)
    parser.add_argument("--state-dir", type=Path, default=STATE_DIR)
    parser.add_argument("--run-dir", type=Path, default=RUN_DIR)
    parser.add_argument("--check-config", action="store_true", help="check definition and model files, then end")
    parser.add_argument("--version", action="version", version=f"rbee-worker {__version__}")
    return parser.parse_args(arguments)


def _check(worker_id: str, paths: Paths) -> int:
    try:
        definition = load_definition(worker_id, paths, load_defaults(paths))
        facts = recognise(read_folder(definition.folder).facts, definition.spec.task)
    except ConfigError as error:
        sys.stderr.write(f"{error.message}\n")
        return EXIT_CONFIG
    sys.stdout.write(f"{definition.source.path}: good: {definition.model}, {facts.task}, {facts.precision}\n")
    return EXIT_OK


async def _make(worker_id: str, paths: Paths, notifier: Notifier) -> "WorkerDaemon":
    """Read the configuration, listen, begin to load, and only then import the HTTP server: the two overlap."""
    defaults = load_defaults(paths)
    set_level(defaults.log_level)
    definition = load_definition(worker_id, paths, defaults)
    log(LOGGER, logging.INFO, "configuration read", worker=worker_id, **definition.source.describe())
    sockets = _listen(definition)
    write_facts(definition, listening_facts(definition, sockets))
    # aiohttp reads every CA certificate of the machine when it is imported (40 ms); a worker calls nobody over TLS
    os.environ.setdefault("SSL_CERT_FILE", os.devnull)
    from rbee.worker.loading import Loader
    from rbee.worker.notice import LoadingNotice
    from rbee.worker.progress import ProgressBoard

    board = ProgressBoard()
    notice = LoadingNotice(notifier, definition.spec.load_stall_s)
    loader = Loader(definition, board, notice, notice.end)
    loader.start()
    from rbee.worker.daemon import WorkerDaemon

    return WorkerDaemon(definition, notifier, sockets, loader, board)


def _listen(definition: Definition) -> list[socket.socket]:
    """The Unix socket, then the first free TCP port; facts of an earlier life are removed."""
    spec, paths = definition.spec, definition.paths
    local = bind_unix(paths.worker_socket(definition.worker_id))
    paths.worker_facts(definition.worker_id).unlink(missing_ok=True)
    bound, taken = bind_tcp_range(definition.listen_host, spec.ports.first, spec.ports.last)
    port = bound.getsockname()[1]
    if taken:
        log(LOGGER, logging.INFO, "ports taken, the next free one is used", taken=len(taken), port=port)
    log(LOGGER, logging.INFO, "listening", host=definition.listen_host, port=port, worker=definition.worker_id)
    return [local, bound]


def _end(code: int) -> None:
    """End the process. A thread that is stuck in the runtime or in a read would hold a normal exit back for ever."""
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if not others:
        exit_process(code)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
