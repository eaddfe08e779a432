"""rbee-hive: watches and controls this machine's workers, and reports them to the queen."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rbee import __version__
from rbee.hive.config import CALLBACK_FIELD, CALLBACK_VARIABLE, HiveConfig, callback_url, hive_id_of
from rbee.hive.daemon import HiveDaemon
from rbee.host.config import Loaded, Override, load_config
from rbee.host.daemon import EXIT_CONFIG, exit_process, run_daemon
from rbee.host.journal import setup_logging
from rbee.host.notify import Notifier
from rbee.host.paths import CONFIG_DIR
from rbee.host.sockets import bind_tcp, bind_unix, inherited
from rbee.wire.errors import ConfigError
from rbee.wire.log import log

LOGGER = logging.getLogger(__name__)
DEFAULT_CONFIG = CONFIG_DIR / "hive.yaml"


def main() -> None:
    """Entry point; ends the process with 0, 1 or 78 (configuration wrong)."""
    options = _options(sys.argv[1:])
    setup_logging("hive", options.log_level or "info")
    variable = os.environ.pop(CALLBACK_VARIABLE, None)

    def load() -> Loaded[HiveConfig]:
        return load_hive_config(options, variable)

    if options.check_config:
        sys.exit(_check(load))

    async def make(notifier: Notifier) -> HiveDaemon:
        loaded = load()
        setup_logging("hive", loaded.value.log_level)
        log(LOGGER, logging.INFO, "configuration read", **loaded.describe())
        sockets = inherited()
        if not sockets:
            config = loaded.value
            sockets = [bind_unix(config.paths.hive_socket), bind_tcp(config.listen.host, config.listen.port)]
        return HiveDaemon(loaded, load, notifier, sockets)

    exit_process(run_daemon(make))


def load_hive_config(options: argparse.Namespace, variable: str | None) -> Loaded[HiveConfig]:
    """Read hive.yaml, lay the environment and the flags over it, and check what types do not; raises ConfigError."""
    overrides = []
    if variable:
        overrides.append(Override(CALLBACK_FIELD, variable, CALLBACK_VARIABLE))
    if options.callback_url is not None:
        overrides.append(Override(CALLBACK_FIELD, options.callback_url or None, "--callback-url"))
    if options.listen is not None:
        host, port = _host_and_port(options.listen)
        overrides.append(Override("listen.host", host, "--listen"))
        overrides.append(Override("listen.port", port, "--listen"))
    if options.log_level is not None:
        overrides.append(Override("log_level", options.log_level, "--log-level"))
    path: Path = options.config or DEFAULT_CONFIG
    loaded = load_config(HiveConfig, path, required=options.config is not None, overrides=overrides)
    hive_id_of(loaded.value)
    if loaded.value.queen.callback_url is not None:
        callback_url(loaded.value.queen.callback_url)
    if loaded.value.queen.required and loaded.value.queen.callback_url is None:
        raise ConfigError(f"{CALLBACK_FIELD}: queen.required is true and there is no URL: set it in hive.yaml")
    return loaded


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError("--listen: expected HOST:PORT, such as 127.0.0.1:9200")
    return host.strip("[]"), int(port)


def _check(load: Callable[[], Loaded[HiveConfig]]) -> int:
    try:
        loaded = load()
    except ConfigError as error:
        sys.stderr.write(f"{error.message}\n")
        return EXIT_CONFIG
    sys.stdout.write(f"{loaded.path or 'built-in defaults'}: good: hive {hive_id_of(loaded.value)}\n")
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="rbee-hive", description="Watch and control this machine's workers.")
    parser.add_argument("--config", type=Path, help=f"default: {DEFAULT_CONFIG}, which may be absent")
    parser.add_argument("--callback-url", help="the queen's address; empty: standalone")
    parser.add_argument("--listen", help="HOST:PORT for TCP when systemd passes no socket")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"))
    parser.add_argument("--check-config", action="store_true", help="check the configuration, then end")
    parser.add_argument("--version", action="version", version=f"rbee-hive {__version__}")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
