"""rbee-queen: routes inference to workers, and knows what every hive reports."""

import argparse
import logging
import os
import sys
from pathlib import Path

from rbee import __version__
from rbee.host.config import Loaded, Override, load_config
from rbee.host.daemon import EXIT_CONFIG, EXIT_OK, exit_process, run_daemon
from rbee.host.journal import setup_logging
from rbee.host.notify import Notifier
from rbee.host.paths import CONFIG_DIR
from rbee.queen.config import DEFAULT_PUBLIC_URL, PUBLIC_URL_VARIABLE, QueenConfig, check_models, check_public_url
from rbee.queen.daemon import QueenDaemon, read_clients, read_tls, read_tokens
from rbee.wire.errors import ConfigError
from rbee.wire.log import log

LOGGER = logging.getLogger(__name__)


def main() -> None:
    """Entry point; ends the process with 0, 1, or 78 (configuration or secret wrong)."""
    options = _options(sys.argv[1:])
    source = Source(options, os.environ.get(PUBLIC_URL_VARIABLE))
    if options.check_config:
        sys.exit(_check(source))
    setup_logging("queen", options.log_level or "info")
    exit_process(run_daemon(lambda notifier: _make(source, notifier)))


class Source:
    """Where the configuration comes from: the file, over it the variable, over it the flags. Read anew at a reload."""

    def __init__(self, options: argparse.Namespace, public_url: str | None) -> None:
        self._path: Path = options.config or CONFIG_DIR / "queen.yaml"
        self._required = options.config is not None
        self._overrides: list[Override] = []
        if public_url:
            self._overrides.append(Override("public_url", public_url, PUBLIC_URL_VARIABLE))
        if options.public_url:
            self._overrides.append(Override("public_url", options.public_url, "--public-url"))
        if options.log_level:
            self._overrides.append(Override("log_level", options.log_level, "--log-level"))
        if options.listen is not None:
            host, port = options.listen
            self._overrides.append(Override("listen.host", host, "--listen"))
            self._overrides.append(Override("listen.port", port, "--listen"))

    def load(self) -> Loaded[QueenConfig]:
        """Read and check; raises ConfigError."""
        loaded = load_config(QueenConfig, self._path, required=self._required, overrides=self._overrides)
        check_public_url(loaded.value.public_url)
        check_models(loaded.value.models)
        return loaded


def _address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError("expected HOST:PORT")
    return host.strip("[]"), int(port)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rbee-queen", description="Route inference to the workers of all machines.")
    parser.add_argument("--config", type=Path, help=f"queen.yaml (default: {CONFIG_DIR}/queen.yaml, if it is there)")
    parser.add_argument(
        "--listen", metavar="HOST:PORT", type=_address, help="where to listen without systemd's sockets"
    )
    parser.add_argument("--public-url", metavar="URL", help=f"where others reach her (default: {DEFAULT_PUBLIC_URL})")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--check-config", action="store_true", help="check the configuration and secrets, then end")
    parser.add_argument("--version", action="version", version=f"rbee-queen {__version__}")
    return parser.parse_args(arguments)


def _check(source: Source) -> int:
    try:
        loaded = source.load()
        read_tokens(loaded.value)
        read_tls(loaded.value)
        read_clients(loaded.value)
    except ConfigError as error:
        sys.stderr.write(f"{error.message}\n")
        return EXIT_CONFIG
    sys.stdout.write(f"{loaded.describe()['file']}: good\n")
    return EXIT_OK


async def _make(source: Source, notifier: Notifier) -> QueenDaemon:
    loaded = source.load()
    log(LOGGER, logging.INFO, "configuration read", **loaded.describe())
    return QueenDaemon(loaded.value, source.load, notifier)


if __name__ == "__main__":
    main()
