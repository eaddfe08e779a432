"""rbee on a test machine as its administrator sees it: units, definitions, sockets, journal."""

from typing import Any

import yaml

from tests.behaviour.support.http import Http
from tests.behaviour.support.queen_list import QueenList
from tests.machines.testbed import Machine

MODELS = "/var/lib/rbee/models"
TOKEN_FILES = {
    "api_token": "/etc/credstore/rbee-queen.api_token",
    "hive_callback_token": "/etc/credstore/rbee.hive_callback_token",
    "hive_api_token": "/etc/credstore/rbee.hive_api_token",
    "worker_api_token": "/etc/credstore/rbee.worker_api_token",
}


class House(QueenList):
    """One machine with the project installed; nothing is started until asked for."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    # configuration

    def configure(self, daemon: str, values: dict[str, Any]) -> None:
        """Write /etc/rbee/DAEMON.yaml (queen, hive, worker)."""
        self.machine.write(f"/etc/rbee/{daemon}.yaml", yaml.safe_dump(values))

    def define_worker(self, worker: str, model: str, **fields: object) -> None:
        """Write an operator's definition of a worker; ``model`` is a folder's name under /var/lib/rbee/models."""
        text = yaml.safe_dump({"model": f"{MODELS}/{model}", **fields})
        self.machine.write(f"/etc/rbee/workers/{worker}.yaml", text)

    def token(self, name: str) -> str:
        """The value of a token, as root reads it."""
        return self.machine.read(TOKEN_FILES[name]).strip()

    # units

    def start(self) -> None:
        """Start queen and hive as an administrator does, with the hive told where its queen is."""
        if not self.machine.path("/etc/rbee/hive.yaml").exists():
            self.configure("hive", {"queen": {"callback_url": "http://127.0.0.1:8080"}})
        self.machine.systemctl("start", "rbee-queen.socket", "rbee-hive.socket", "rbee-queen", "rbee-hive")

    def start_worker(self, worker: str, *, wait: bool = True) -> None:
        """systemctl start rbee-worker@WORKER; returns at READY=1 unless told not to wait."""
        self.machine.systemctl("start", *([] if wait else ["--no-block"]), f"rbee-worker@{worker}")

    def begin_worker(self, worker: str) -> None:
        self.start_worker(worker)

    def unit(self, worker: str) -> dict[str, str]:
        """Every property of a worker's unit."""
        return self.machine.unit(f"rbee-worker@{worker}.service")

    # addresses

    def _unix(self, path: str) -> Http:
        return Http(lambda timeout_s: self.machine.connect(path, timeout_s))

    def _tcp(self, port: int, token: str) -> Http:
        return Http(lambda timeout_s: self.machine.connect(port, timeout_s), self.token(token))

    @property
    def admin(self) -> Http:
        """root at the queen's Unix socket."""
        return self._unix("/run/rbee/queen.sock")

    @property
    def client(self) -> Http:
        """A client of the queen with its token, over TCP."""
        return self._tcp(8080, "api_token")

    @property
    def hive_admin(self) -> Http:
        """root at the hive's Unix socket."""
        return self._unix("/run/rbee/hive.sock")

    @property
    def hive_tcp(self) -> Http:
        """A caller of the hive with its token, over TCP."""
        return self._tcp(9200, "hive_api_token")

    def worker(self, worker: str) -> Http:
        """root at a worker's Unix socket."""
        return self._unix(f"/run/rbee/workers/{worker}/worker.sock")

    # what the queen and the hive see

    def hive_rows(self) -> dict[str, dict[str, Any]]:
        """The hive's worker list by worker id."""
        return {row["worker_id"]: row for row in self.hive_admin.get("/v1/workers/list").json["workers"]}
