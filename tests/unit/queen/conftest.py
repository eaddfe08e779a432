"""A real queen on real sockets, and who speaks to her."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from tests.unit.queen.partners import HIVE_TOKEN, MACHINE, WORKER_TOKEN, HivePartner, WorkerPartner, report, served

from rbee import __version__
from rbee.host.config import Loaded
from rbee.host.notify import Notifier
from rbee.queen.config import QueenConfig
from rbee.queen.core import Core
from rbee.queen.daemon import QueenDaemon
from rbee.queen.routing.decision import Key
from rbee.wire.auth import Secret
from rbee.wire.http.client import client_session
from rbee.wire.messages import Heartbeat, WorkerReport, WorkerState

Fields = Any
"""Fields of a message or a configuration, by name."""
Configured = Callable[..., contextlib.AbstractAsyncContextManager["RunningQueen"]]
"""What the fixture ``configured`` is."""
API_TOKEN = "api-token"
CALLBACK_TOKEN = "callback-token"


@dataclass
class RunningQueen:
    """A queen that serves, a client of hers, and a hive's voice."""

    daemon: QueenDaemon
    url: str
    client: aiohttp.ClientSession
    hive: aiohttp.ClientSession
    stopped: asyncio.Event
    revisions: Any = field(default_factory=lambda: itertools.count(1))

    @property
    def core(self) -> Core:
        return self.daemon.core

    async def stop(self) -> None:
        """Stop her before the block ends."""
        self.stopped.set()
        await self.daemon.stop()

    async def tell(self, worker: WorkerReport, *, ready: bool | None = None) -> dict[str, Any]:
        """Deliver a report as its hive does, with the next revision."""
        ready = worker.state.ready if ready is None else ready
        worker = msgspec.structs.replace(worker, revision=next(self.revisions), sent_unix=time.time())
        path = "/v2/workers/ready" if ready else "/v2/workers/state"
        async with self.hive.post(self.url + path, data=msgspec.json.encode(worker)) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, Any] = await response.json()
            return answer

    async def beat(
        self,
        *workers: WorkerReport,
        hive: str = "bee",
        boot: str = "boot-1",
        api_url: str | None = None,
        **more: Fields,
    ) -> dict[str, Any]:
        """Deliver a whole picture."""
        revision = next(self.revisions)
        picture = [msgspec.structs.replace(worker, revision=revision, boot_id=boot) for worker in workers]
        values: dict[str, Any] = {"version": __version__, "interval_s": 5.0, "machine": MACHINE} | more
        body = Heartbeat(
            hive_id=hive, boot_id=boot, revision=revision, sent_unix=time.time(), api_url=api_url, workers=picture,
            **values,
        )  # fmt: skip
        url = f"{self.url}/v2/hives/{hive}/heartbeat"
        async with self.hive.post(url, data=msgspec.json.encode(body)) as response:
            answer: dict[str, Any] = await response.json()
            return answer | {"status": response.status}

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.client.get(self.url + path) as response:
            return response.status, await response.json()

    async def rows(self) -> dict[str, dict[str, Any]]:
        """The worker list by ``hive/worker``."""
        _, listing = await self.get("/v2/workers/list")
        return {f"{row['hive_id']}/{row['worker_id']}": row for row in listing["workers"]}

    async def metric(self, name: str) -> float:
        """One sample of /metrics, labels written as in the text; 0 where there is none."""
        async with self.client.get(self.url + "/metrics") as response:
            lines = (await response.text()).splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.rpartition(" ")[0] == name), 0.0)

    def state(self, worker: str = "w", hive: str = "bee") -> WorkerState:
        row = self.core.registry.worker(Key(hive, worker))
        assert row is not None
        return row.state


def write_secret(path: Path, value: str) -> str:
    path.write_text(value + "\n")
    path.chmod(0o600)
    return str(path)


def configuration(folder: Path, **more: Fields) -> QueenConfig:
    """A configuration that keeps everything in ``folder``."""
    secrets = {
        "api_token": API_TOKEN,
        "hive_callback_token": CALLBACK_TOKEN,
        "hive_api_token": HIVE_TOKEN,
        "worker_api_token": WORKER_TOKEN,
    }
    values: dict[str, Any] = {
        "listen": {"port": 0},
        "fleet": {"port": 0},
        "run_dir": str(folder / "run"),
        "state_dir": str(folder / "state"),
        "tokens": {name: write_secret(folder / name, value) for name, value in secrets.items()},
    }
    return msgspec.convert(values | more, QueenConfig)


@contextlib.asynccontextmanager
async def running(config: QueenConfig) -> AsyncIterator[RunningQueen]:
    """A queen of that configuration for the length of the block."""
    daemon = QueenDaemon(config, lambda: Loaded(config, None, (), 0.0), Notifier(None, 0))
    port = daemon._sockets[1].getsockname()[1]
    await daemon.start()
    stopped = asyncio.Event()
    try:
        async with (
            client_session(token=Secret(API_TOKEN)) as client,
            client_session(token=Secret(CALLBACK_TOKEN)) as hive,
        ):
            yield RunningQueen(daemon, f"http://127.0.0.1:{port}", client, hive, stopped)
    finally:
        if not stopped.is_set():
            await daemon.stop()


@pytest.fixture
async def queen(tmp_path: Path) -> AsyncIterator[RunningQueen]:
    async with running(configuration(tmp_path)) as found:
        yield found


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    """Makes a queen with fields of her configuration changed."""
    return lambda **more: running(configuration(tmp_path, **more))


@pytest.fixture
async def worker() -> AsyncIterator[WorkerPartner]:
    partner = WorkerPartner()
    async with served(partner.app()) as partner.url:
        yield partner


@pytest.fixture
async def second() -> AsyncIterator[WorkerPartner]:
    partner = WorkerPartner(tokens=["other"])
    async with served(partner.app()) as partner.url:
        yield partner


@pytest.fixture
async def hive() -> AsyncIterator[HivePartner]:
    partner = HivePartner()
    async with served(partner.app()) as partner.url:
        yield partner


@pytest.fixture
async def serving(queen: RunningQueen, worker: WorkerPartner) -> RunningQueen:
    """A queen with one ready worker."""
    await queen.tell(report(url=worker.url))
    return queen
