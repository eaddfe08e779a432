"""A real rbee-worker process for a test: its folders, its notifications, its sockets."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import yaml

from rbee.wire.sse import SseDecoder, SseEvent

TOKEN = "worker-token-for-tests"
START_LIMIT_S = 30.0


@dataclass
class WorkerProcess:
    """A worker's process; ``notices`` is what it told the service manager so far."""

    folder: Path
    process: asyncio.subprocess.Process
    notices: list[str] = field(default_factory=list)
    url: str = ""

    @property
    def unix_socket(self) -> Path:
        return self.folder / "run/workers/w/worker.sock"

    @property
    def facts(self) -> Path:
        return self.folder / "run/workers/w/worker.json"

    @property
    def log(self) -> str:
        return (self.folder / "stderr").read_text()

    def session(self, *, token: str | None = TOKEN) -> aiohttp.ClientSession:
        """A client over TCP."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return aiohttp.ClientSession(self.url, headers=headers)

    def local(self) -> aiohttp.ClientSession:
        """A client over the Unix socket, without a token."""
        return aiohttp.ClientSession("http://worker", connector=aiohttp.UnixConnector(str(self.unix_socket)))

    async def until(self, text: str, limit_s: float = START_LIMIT_S) -> str:
        """Await a notice that contains ``text``."""
        async with asyncio.timeout(limit_s):
            while True:
                for notice in self.notices:
                    if text in notice:
                        return notice
                await asyncio.sleep(0.01)

    async def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(START_LIMIT_S):
            return await self.process.wait()


def define(folder: Path, **definition: object) -> None:
    """Write the worker's definition, its machine-wide file (unless there is one) and its token."""
    (folder / "etc/workers").mkdir(parents=True, exist_ok=True)
    model = Path(str(definition["model"]).removeprefix("file://"))
    (folder / "etc/workers/w.yaml").write_text(yaml.safe_dump(definition))
    token = folder / "token"
    if not token.exists():
        token.write_text(TOKEN)
        token.chmod(0o600)
    machine = folder / "etc/worker.yaml"
    if not machine.exists():
        settings = {"model_roots": [str(model.parent)], "tokens": {"worker_api_token": str(token)}}
        machine.write_text(yaml.safe_dump(settings))


@contextlib.asynccontextmanager
async def spawned(folder: Path, *interpreter: str) -> AsyncIterator[WorkerProcess]:
    """Start the worker of ``folder`` and listen to what it tells the service manager; ended at the block's end."""
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(str(folder / "notify"))
    told.setblocking(False)
    roots = [f"--{name}-dir={folder / short}" for name, short in (("config", "etc"), ("state", "var"), ("run", "run"))]
    with (folder / "stderr").open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *interpreter, "-m", "rbee.worker.main", "--id", "w", *roots,
            stderr=stderr, env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify"), "WATCHDOG_USEC": "400000"},
        )  # fmt: skip
    worker = WorkerProcess(folder, process)
    loop = asyncio.get_running_loop()
    loop.add_reader(told, lambda: worker.notices.append(told.recv(65536).decode()))
    try:
        yield worker
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        loop.remove_reader(told)
        told.close()
        (folder / "notify").unlink()


@contextlib.asynccontextmanager
async def serving(folder: Path, *interpreter: str, **definition: object) -> AsyncIterator[WorkerProcess]:
    """A worker that has said READY=1."""
    define(folder, **definition)
    async with spawned(folder, *interpreter) as worker:
        await worker.until("READY=1")
        worker.url = json.loads(worker.facts.read_text())["url"]
        yield worker


async def read_events(response: aiohttp.ClientResponse) -> list[SseEvent]:
    """Every event of a stream, [DONE] included."""
    decoder = SseDecoder()
    events: list[SseEvent] = []
    async for chunk in response.content.iter_any():
        events.extend(decoder.feed(chunk))
    return events
