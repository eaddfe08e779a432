"""Queen, hive and workers as real processes on this machine, without systemd: the hive supervises its children."""

import json
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.behaviour.support.http import Http
from tests.behaviour.support.processes import DaemonProcess
from tests.behaviour.support.queen_list import QueenList

TOKENS = ("api_token", "hive_callback_token", "hive_api_token", "worker_api_token")
HIVE_ID = "bee"


def free_port() -> int:
    """A TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``over`` laid over it, folder by folder."""
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return result


class Stack(QueenList):
    """Folders, tokens and processes of one rbee on this machine. ``models`` holds model folders (read only)."""

    def __init__(self, models: Path) -> None:
        # a short path: a Unix socket's name has 108 bytes
        self.folder = Path(tempfile.mkdtemp(prefix="rbee-"))
        self.folder.chmod(0o755)
        self.models = models
        self.run_dir, self.state_dir, self.config_dir = (self.folder / name for name in ("run", "state", "etc"))
        for place in (self.run_dir, self.state_dir, self.config_dir / "workers"):
            place.mkdir(parents=True)
        self.tokens = {name: secrets.token_urlsafe(24) for name in TOKENS}
        for name, value in self.tokens.items():
            self.write_token(name, value)
        self.queen_port, self.hive_port = free_port(), free_port()
        self.queen_config: dict[str, Any] = {}
        self.hive_config: dict[str, Any] = {}
        self.worker_config: dict[str, Any] = {}
        self.environment: dict[str, str] = {}
        self.hive_program = ("-m", "rbee.hive.main")
        self.queen: DaemonProcess | None = None
        self.hive: DaemonProcess | None = None

    # files

    def token_file(self, name: str) -> Path:
        return self.folder / "tokens" / name

    def write_token(self, name: str, value: str, mode: int = 0o600) -> Path:
        path = self.token_file(name)
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.touch(mode=0o600)
        path.write_text(value + "\n")
        path.chmod(mode)
        return path

    def _common(self, *tokens: str) -> dict[str, Any]:
        return {
            "run_dir": str(self.run_dir),
            "state_dir": str(self.state_dir),
            "tokens": {name: str(self.token_file(name)) for name in tokens},
        }

    def write_queen_config(self, over: Mapping[str, Any] | None = None) -> Path:
        """Write queen.yaml with ``over`` laid over what this stack needs, and return its path."""
        base = {**self._common(*TOKENS), "listen": {"port": self.queen_port}, "public_url": self.queen_url}
        path = self.config_dir / "queen.yaml"
        path.write_text(yaml.safe_dump(merged(merged(base, self.queen_config), over or {})))
        return path

    def write_hive_config(self, over: Mapping[str, Any] | None = None) -> Path:
        """Write hive.yaml with ``over`` laid over what this stack needs, and return its path."""
        base = {
            **self._common("hive_callback_token", "hive_api_token", "worker_api_token"),
            "config_dir": str(self.config_dir),
            "hive_id": HIVE_ID,
            "supervisor": "child",
            "listen": {"port": self.hive_port},
            "model_roots": [str(self.models), str(self.state_dir / "models")],
            "queen": {"callback_url": self.queen_url},
        }
        path = self.config_dir / "hive.yaml"
        path.write_text(yaml.safe_dump(merged(merged(base, self.hive_config), over or {})))
        return path

    def write_worker_defaults(self, over: Mapping[str, Any] | None = None) -> Path:
        """Write worker.yaml, what every worker of this stack shares."""
        base = {
            "model_roots": [str(self.models), str(self.state_dir / "models")],
            "tokens": {"worker_api_token": str(self.token_file("worker_api_token"))},
        }
        path = self.config_dir / "worker.yaml"
        path.write_text(yaml.safe_dump(merged(merged(base, self.worker_config), over or {})))
        return path

    def define_worker(self, worker: str, model: str, **fields: object) -> Path:
        """Write an operator's definition of a worker; ``model`` is a folder's name under the models."""
        path = self.config_dir / "workers" / f"{worker}.yaml"
        path.write_text(yaml.safe_dump({"model": str(self.models / model), **fields}))
        return path

    # addresses

    @property
    def queen_url(self) -> str:
        return f"http://127.0.0.1:{self.queen_port}"

    @property
    def hive_url(self) -> str:
        return f"http://127.0.0.1:{self.hive_port}"

    @property
    def client(self) -> Http:
        """A client of the queen with its token, over TCP."""
        return Http(self.queen_url, self.tokens["api_token"])

    @property
    def admin(self) -> Http:
        """An administrator at the queen's Unix socket."""
        return Http(str(self.run_dir / "queen.sock"))

    @property
    def hive_admin(self) -> Http:
        """An administrator at the hive's Unix socket."""
        return Http(str(self.run_dir / "hive.sock"))

    def worker(self, worker: str) -> Http:
        """An administrator at a worker's Unix socket."""
        return Http(str(self.run_dir / "workers" / worker / "worker.sock"))

    def worker_tcp(self, worker: str) -> Http:
        """A client of the worker with its token, at the address that the queen's list shows."""
        return Http(self.row(worker)["url"], self.tokens["worker_api_token"])

    # processes

    def start_queen(self, *flags: str, env: Mapping[str, str] | None = None, wait: bool = True) -> DaemonProcess:
        self.write_queen_config()
        argv = [sys.executable, "-m", "rbee.queen.main", "--config", str(self.config_dir / "queen.yaml"), *flags]
        self.queen = DaemonProcess(argv, {**self.environment, **(env or {})})
        if wait:
            self.queen.wait_ready()
        return self.queen

    def start_hive(self, *flags: str, env: Mapping[str, str] | None = None, wait: bool = True) -> DaemonProcess:
        self.write_hive_config()
        self.write_worker_defaults()
        argv = [sys.executable, *self.hive_program, "--config", str(self.config_dir / "hive.yaml"), *flags]
        self.hive = DaemonProcess(argv, {**self.environment, **(env or {})})
        if wait:
            self.hive.wait_ready()
        return self.hive

    def start_outside(self, worker: str, model: str) -> tuple[DaemonProcess, str]:
        """Start a worker by hand, outside the hive's supervisor; its process, which the caller ends, and its URL."""
        run_dir, config_dir = self.folder / "own", self.folder / "own-etc"
        (config_dir / "workers").mkdir(parents=True)
        (config_dir / "worker.yaml").write_text(self.write_worker_defaults().read_text())
        (config_dir / "workers" / f"{worker}.yaml").write_text(yaml.safe_dump({"model": str(self.models / model)}))
        argv = [sys.executable, "-m", "rbee.worker.main", "--id", worker, "--config-dir", str(config_dir)]
        process = DaemonProcess([*argv, "--run-dir", str(run_dir), "--state-dir", str(self.state_dir)])
        process.wait_ready()
        facts = json.loads((run_dir / "workers" / worker / "worker.json").read_text())
        return process, str(facts["url"])

    def start(self) -> None:
        """Queen, then hive."""
        self.start_queen()
        self.start_hive()

    @property
    def hive_pid(self) -> int:
        """The process of the hive, which is running."""
        assert self.hive is not None
        return self.hive.pid

    def spawn(self, worker: str, **fields: object) -> None:
        """Ask the hive to start a worker whose definition exists, or is given by ``fields``."""
        answer = self.hive_admin.post("/v1/workers/spawn", {"worker_id": worker, **fields})
        assert answer.status in (200, 202), answer.body

    def begin_worker(self, worker: str) -> None:
        self.spawn(worker)

    def close(self) -> None:
        """Stop what runs, hive first (it stops its workers), and remove the folder."""
        try:
            for daemon in (self.hive, self.queen):
                if daemon is not None and daemon.process.poll() is None:
                    daemon.stop()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
