"""A source of models on loopback: a web folder with SHA256SUMS, and the part of a hub's HTTP API that a fetch uses.

Faults are injected by path: each is taken once, in the order they were given.
"""

import asyncio
import hashlib
import json
import re
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

RANGE = re.compile(r"bytes=(\d+)-")
SIGNED = "Signature=a%2Fb%2Bc~d%3D&Expires=1"
"""The query of a redirect, in a quoting that another quoting would change."""
COMMIT = "c0ffee" + "0" * 34


@dataclass
class Fault:
    """What happens to one request of a file: ``status`` instead of it, or, after ``after`` bytes, ``then``."""

    status: int | None = None
    after: int = 0
    then: str = "reset"
    """reset: the connection is cut; stall: nothing more comes; corrupt: other bytes of the same length come."""


@dataclass
class Seen:
    """One request that came: its path, Range and Authorization, and when it came (monotonic seconds)."""

    method: str
    path: str
    range: str | None
    authorization: str | None
    query: str = ""
    """As it came, still quoted."""
    at: float = field(default_factory=time.monotonic)


@dataclass
class ModelSource:
    """Serves ``files`` of named folders; runs in a thread of its own, for tests with and without a loop."""

    folders: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: dict[str, str] = field(default_factory=dict)
    """Repositories that want a token, and the token."""
    pace_s: float = 0.0
    """Seconds between two chunks of 64 KiB."""
    ranges: bool = True
    elsewhere: str = ""
    """Another source's URL that files of repositories are redirected to, as a hub does with large files."""
    listener: socket.socket | None = None
    """Where to serve; a port of loopback unless given."""
    sizes_hidden: bool = False
    """Answers carry no length, as of a server that makes them on the fly."""
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._stop = asyncio.Event()
        self._runner: web.AppRunner | None = None

    # for tests

    def start(self) -> "ModelSource":
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def fault(self, name: str, *faults: Fault) -> None:
        """Let the next requests of the file of that name meet these faults, one each."""
        self.faults[name].extend(faults)

    def folder(self, name: str, files: Mapping[str, bytes]) -> str:
        """Serve files and their SHA256SUMS; returns the reference."""
        self.folders[name] = {**files, "SHA256SUMS": sums(files)}
        return f"{self.url}/{name}/"

    def repository(self, repo: str, files: Mapping[str, bytes]) -> str:
        """Serve files as a hub's repository; returns the reference."""
        self.folders[repo] = dict(files)
        return f"hf:{repo}"

    def requests(self, name: str, method: str = "GET") -> list[Seen]:
        return [seen for seen in self.seen if seen.method == method and seen.path.endswith(name)]

    # the server

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_get("/api/models/{repo:[^/]+/[^/]+}", self._model_info)
        app.router.add_get("/api/models/{repo:[^/]+/[^/]+}/revision/{revision}", self._model_info)
        app.router.add_get("/{repo:[^/]+/[^/]+}/resolve/{revision}/{path:.+}", self._resolve)
        app.router.add_get("/{folder}/{path:.+}", self._file)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, self.listener or socket.create_server(("127.0.0.1", 0))).start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"

    async def _close(self) -> None:
        self._stop.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def _note(self, request: web.Request) -> None:
        headers, query = request.headers, request.raw_path.partition("?")[2]
        self.seen.append(Seen(request.method, request.path, headers.get("Range"), headers.get("Authorization"), query))

    def _refused(self, request: web.Request, repo: str) -> web.Response | None:
        if repo not in self.folders:
            return web.json_response({"error": "not found"}, status=404, headers={"X-Error-Code": "RepoNotFound"})
        token = self.gated.get(repo)
        if token is not None and request.headers.get("Authorization") != f"Bearer {token}":
            return web.json_response({"error": "gated"}, status=403, headers={"X-Error-Code": "GatedRepo"})
        return None

    async def _model_info(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        repo = request.match_info["repo"]
        refused = self._refused(request, repo)
        if refused is not None:
            return refused
        if request.match_info.get("revision", "main") not in ("main", COMMIT):
            return web.json_response({"error": "no"}, status=404, headers={"X-Error-Code": "RevisionNotFound"})
        siblings = [_sibling(path, data) for path, data in self.folders[repo].items()]
        return web.json_response({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "tags": []})

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        repo = request.match_info["repo"]
        refused = self._refused(request, repo)
        if refused is not None:
            return refused
        if self.elsewhere:
            return web.Response(status=302, headers={"Location": f"{self.elsewhere}{request.path}?{SIGNED}"})
        return await self._serve(request, self.folders[repo])

    async def _file(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        folder = self.folders.get(request.match_info["folder"])
        return web.Response(status=404) if folder is None else await self._serve(request, folder)

    async def _serve(self, request: web.Request, files: Mapping[str, bytes]) -> web.StreamResponse:
        path = request.match_info["path"]
        data = files.get(path)
        if data is None:
            return web.Response(status=404)
        waiting = self.faults[path] if request.method == "GET" else []
        fault = waiting.pop(0) if waiting else Fault(after=len(data) + 1)
        if fault.status is not None:
            return web.Response(status=fault.status)
        start = self._start_of(request)
        if start > len(data):
            return web.Response(status=416)
        headers = {} if self.sizes_hidden else {"Content-Length": str(len(data) - start)}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        response = web.StreamResponse(status=206 if start else 200, headers=headers)
        await response.prepare(request)
        if request.method != "HEAD":
            await self._send(request, response, data[start:], fault)
        return response

    def _start_of(self, request: web.Request) -> int:
        match = RANGE.fullmatch(request.headers.get("Range", ""))
        return int(match[1]) if match and self.ranges else 0

    async def _send(self, request: web.Request, response: web.StreamResponse, data: bytes, fault: Fault) -> None:
        if fault.then == "corrupt":
            data = data[: fault.after] + bytes(byte ^ 0xFF for byte in data[fault.after :])
        whole = data if fault.then == "corrupt" else data[: fault.after]
        for at in range(0, len(whole), 1 << 16):
            await response.write(whole[at : at + (1 << 16)])
            if self.pace_s:
                await asyncio.sleep(self.pace_s)
        if len(whole) == len(data):
            return
        if fault.then == "stall":
            await self._stop.wait()
        await asyncio.sleep(0.05)  # what was written goes out before the connection is cut
        if request.transport is not None:
            request.transport.abort()


def sums(files: Mapping[str, bytes]) -> bytes:
    """SHA256SUMS of files, as sha256sum writes it."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in files.items()).encode()


def _sibling(path: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()  # noqa: S324 - as git names a blob
    facts: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": blob}
    if path.endswith((".onnx", ".bin", "_data")):
        facts["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return facts


def until(wanted: Callable[[], bool], limit_s: float = 20.0) -> None:
    """Wait for something that another thread or process brings about."""
    done = threading.Event()
    for _ in range(int(limit_s / 0.02)):
        if wanted():
            return
        done.wait(0.02)
    raise AssertionError(f"it did not come about within {limit_s:g} s: {json.dumps(str(wanted))}")
