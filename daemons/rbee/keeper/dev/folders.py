"""The folders, files and ports of one `rbee dev`: a private one that goes away, and one that keeps models and logs."""

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from rbee.keeper.failure import CommandFailed
from rbee.keeper.settings import state_folder

HIVE_ID = "dev"
TOKENS = ("api_token", "hive_callback_token", "hive_api_token", "worker_api_token")
_HIVE_PORT = 9200
_MOST_PORTS = 400


@dataclass(frozen=True, slots=True)
class Folders:
    """``run`` is private to this call and removed at its end; ``state`` keeps models, databases and logs."""

    run: Path
    state: Path

    @property
    def models(self) -> Path:
        """Where the models of the demonstration are built."""
        return self.state / "models"

    @property
    def logs(self) -> Path:
        """One log file for each child."""
        return self.state / "logs"

    @property
    def queen_socket(self) -> Path:
        """The queen's admin socket."""
        return self.run / "queen.sock"

    @property
    def hive_socket(self) -> Path:
        """The hive's admin socket."""
        return self.run / "hive.sock"

    def token(self, name: str) -> Path:
        """The file of one token."""
        return self.run / "tokens" / name


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports on 127.0.0.1 that were free a moment ago."""

    queen: int
    hive: int


@contextlib.contextmanager
def folders(environment: Mapping[str, str]) -> Iterator[Folders]:
    """Make the folders and remove the private one at the end.

    Raises CommandFailed when another `rbee dev` of the same user holds the state folder.
    """
    state = state_folder(environment) / "dev"
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(state / "lock"):
        run = Path(tempfile.mkdtemp(prefix="rbee-", dir=_runtime_folder(environment)))
        made = Folders(run, state)
        try:
            for folder in (made.models, made.logs, run / "tokens", run / "config", run / "workers"):
                folder.mkdir(mode=0o700, exist_ok=True)
            yield made
        finally:
            shutil.rmtree(run, ignore_errors=True)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CommandFailed(
                "another 'rbee dev' of yours runs already: end it with Ctrl+C, or set XDG_STATE_HOME to another"
                " folder for this one"
            ) from None
        yield


def _runtime_folder(environment: Mapping[str, str]) -> str | None:
    chosen = environment.get("XDG_RUNTIME_DIR")
    return chosen if chosen and os.access(chosen, os.W_OK | os.X_OK) else None


def free_ports(queen: int) -> Ports:
    """The first free port from ``queen`` upwards for the queen, and one for the hive; raises CommandFailed."""
    first = _free_port(queen)
    return Ports(first, _free_port(_HIVE_PORT, besides=first))


def _free_port(first: int, besides: int = 0) -> int:
    for port in range(first, min(first + _MOST_PORTS, 65536)):
        with socket.socket() as probe:
            # as the daemons do: a port whose last connections are closing is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                if port != besides:
                    return port
    raise CommandFailed(f"no free port from {first} upwards: name another with --port")


def write_files(made: Folders, ports: Ports) -> None:
    """Write the tokens (0600) and the configuration of queen, hive and workers."""
    for name in TOKENS:
        _write_private(made.token(name), secrets.token_urlsafe(32) + "\n")
    queen_url = f"http://127.0.0.1:{ports.queen}"
    common = {"run_dir": str(made.run), "state_dir": str(made.state)}
    tokens = {name: str(made.token(name)) for name in TOKENS}
    queen = common | {
        "listen": {"host": "127.0.0.1", "port": ports.queen},
        "public_url": queen_url,
        "tokens": tokens,
    }
    hive = common | {
        "config_dir": str(made.run / "config"),
        "hive_id": HIVE_ID,
        "listen": {"host": "127.0.0.1", "port": ports.hive},
        "supervisor": "child",
        "model_roots": [str(made.models)],
        "queen": {"callback_url": queen_url, "required": True},
        "tokens": {name: path for name, path in tokens.items() if name != "api_token"},
    }
    worker = {
        "model_roots": [str(made.models)],
        "tokens": {"worker_api_token": tokens["worker_api_token"]},
    }
    for name, content in (("queen", queen), ("hive", hive), ("worker", worker)):
        _write_private(made.run / "config" / f"{name}.yaml", yaml.safe_dump(content, sort_keys=False))


def _write_private(path: Path, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
