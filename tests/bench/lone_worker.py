"""One worker by itself, on cores of its own: a bench of its inference needs no queen, no hive and no machine."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

TOKEN = "bench-token"
_START_S, _LOOK_S = 60.0, 1.0


@dataclass(frozen=True, slots=True)
class Cores:
    """Which cores serve and which ask: they never share one, so that neither takes the other's time."""

    server: tuple[int, ...]
    client: int

    @classmethod
    def split(cls) -> "Cores":
        """The last core for the clients, the others for the server; raises OSError where there is only one."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise OSError("this bench wants two cores: one for the server, one for its clients")
        return cls(tuple(cores[:-1]), cores[-1])

    @contextlib.contextmanager
    def as_client(self) -> Iterator[None]:
        """This process on the clients' core."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {self.client})
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    def serving(self, argv: Sequence[str]) -> list[str]:
        """``argv`` on the server's cores."""
        return ["taskset", "--cpu-list", ",".join(map(str, self.server)), *argv]


@contextlib.contextmanager
def process(argv: Sequence[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server's process, in a group of its own; ended with all of its group at the block's end."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **environment},
            start_new_session=True,
        )  # fmt: skip
    try:
        yield started
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(started.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(10)


@dataclass(frozen=True, slots=True)
class Serving:
    """A worker that is ready: its TCP port, and its process."""

    port: int
    pid: int


@contextlib.contextmanager
def worker(model: Path, cores: Cores, **definition: object) -> Iterator[int]:
    """A worker of ``model`` that is ready on the server's cores; its TCP port."""
    with serving(model, cores, **definition) as found:
        yield found.port


@contextlib.contextmanager
def serving(model: Path, cores: Cores, **definition: object) -> Iterator[Serving]:
    """The same with its process."""
    with tempfile.TemporaryDirectory(prefix="rbee-bench-") as name, _notices(Path(name)) as told:
        folder = Path(name)
        _define(folder, model, definition)
        roots = [f"--{kind}-dir={folder / kind}" for kind in ("config", "state", "run")]
        argv = cores.serving([sys.executable, "-m", "rbee.worker.main", "--id", "bench", *roots])
        with process(argv, folder / "log", NOTIFY_SOCKET=str(folder / "notify")) as started:
            _until_ready(told, started, folder / "log")
            facts = json.loads((folder / "run/workers/bench/worker.json").read_text())
            yield Serving(int(facts["url"].rpartition(":")[2]), started.pid)


def _define(folder: Path, model: Path, definition: dict[str, object]) -> None:
    (folder / "config/workers").mkdir(parents=True)
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    machine = {"model_roots": [str(model.parent)], "tokens": {"worker_api_token": str(folder / "token")}}
    (folder / "config/worker.yaml").write_text(yaml.safe_dump(machine))
    own = {"model": str(model), "idle_limit_s": 0, **definition}
    (folder / "config/workers/bench.yaml").write_text(yaml.safe_dump(own))


@contextlib.contextmanager
def _notices(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(folder / "notify"))
        told.settimeout(_LOOK_S)
        yield told


def _until_ready(told: socket.socket, started: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and started.poll() is None:
        with contextlib.suppress(TimeoutError):
            if "READY=1" in told.recv(65536).decode():
                return
    raise OSError(f"the worker ended, or was not ready within {_START_S:g} s: {log.read_text()[-2000:]}")
