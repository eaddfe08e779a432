"""A real hive process for a test, with workers as its child processes: its folders, its socket, a model."""

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import aiohttp

from rbee.keeper.demo.tensor import build
from rbee.wire.http.client import client_session

Answer = tuple[int, dict[str, Any]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Hive:
    """One hive process under a folder of its own."""

    def __init__(self, folder: Path, **config: object) -> None:
        self.folder = folder
        self.model = folder / "state/models/tiny"
        (folder / "etc").mkdir()
        self.model.mkdir(parents=True)
        build(self.model)
        roots = {"config_dir": f"{folder}/etc", "state_dir": f"{folder}/state", "run_dir": f"{folder}/run"}
        listen = {"host": "127.0.0.1", "port": free_port()}
        self.url = f"http://127.0.0.1:{listen['port']}"
        settings = {"hive_id": "test", "supervisor": "child", "listen": listen, "health_interval_s": 0.5} | roots
        (folder / "etc/hive.yaml").write_text(json.dumps(settings | config))
        (folder / "etc/worker.yaml").write_text(json.dumps({"model_roots": [str(self.model.parent)]}))
        self.process: asyncio.subprocess.Process | None = None
        self._session: aiohttp.ClientSession | None = None
        self.log = folder / "hive.log"

    async def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "rbee.hive.main", "--config", str(self.folder / "etc/hive.yaml"), stderr=log
            )
        self._session = client_session(unix_socket=str(self.folder / "run/hive.sock"))
        async with asyncio.timeout(15):
            while not await self._answers():
                assert self.process.returncode is None, self.log.read_text()
                await asyncio.sleep(0.05)

    async def _answers(self) -> bool:
        try:
            return (await self.call("GET", "/health"))[0] == 200
        except aiohttp.ClientError:
            return False

    @property
    def session(self) -> aiohttp.ClientSession:
        """A client over the Unix socket."""
        assert self._session is not None
        return self._session

    async def call(self, method: str, path: str, body: object = None) -> Answer:
        async with self.session.request(method, f"http://hive{path}", json=body) as response:
            return response.status, await response.json()

    async def row(self, worker: str) -> dict[str, Any]:
        _, answer = await self.call("GET", "/v1/workers/list")
        return next((row for row in answer["workers"] if row["worker_id"] == worker), {})

    async def until(self, worker: str, state: str, limit_s: float = 20) -> dict[str, Any]:
        deadline = asyncio.get_running_loop().time() + limit_s
        while (row := await self.row(worker)).get("state") != state:
            assert asyncio.get_running_loop().time() < deadline, f"{worker} is not {state}: {row}"
            await asyncio.sleep(0.02)
        return row

    async def spawn(self, worker: str, **rest: object) -> Answer:
        order: dict[str, object] = {"worker_id": worker, "model_ref": f"file://{self.model}"} | rest
        return await self.call("POST", "/v1/workers/spawn", order)

    async def stop(self) -> int:
        if self._session is not None:
            await self._session.close()
        if self.process is None:
            return -1
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(35):
            return await self.process.wait()
