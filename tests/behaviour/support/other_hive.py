"""A hive of a test's own: a real HTTP server that the queen is told of, and that answers as the test wants."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from rbee import __version__
from tests.behaviour.support.http import Answer, Http

GIB = 1 << 30
MACHINE = {
    "hostname": "elsewhere",
    "cores": 2,
    "ram_total_bytes": GIB,
    "ram_available_bytes": GIB,
    "disk_total_bytes": GIB,
    "disk_available_bytes": GIB,
}
GARBAGE = b'{"status": "healthy", oops'


class OtherHive:
    """``manner`` is how it answers: ``well``, ``garbage``, or ``never``; a context manager.

    ``queen`` is the queen's address with the token of hives; ``heard`` are the requests that came, with their times,
    ``bodies`` what came with them. ``machine`` are the facts that its heartbeats tell, ``answers`` further bodies that
    it answers, by path.
    """

    def __init__(self, queen: Http, hive_id: str = "other") -> None:
        self.queen, self.hive_id = queen, hive_id
        self.manner, self.version = "well", __version__
        self.boot_id, self.revision = f"boot-{time.monotonic_ns()}", 0
        self.heard: list[tuple[float, str]] = []
        self.machine: dict[str, Any] = dict(MACHINE)
        self.answers: dict[str, dict[str, Any]] = {}
        self.bodies: list[dict[str, Any]] = []
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hive = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                hive.bodies += [json.loads(sent)] if sent else []
                hive.heard.append((time.monotonic(), f"{self.command} {self.path}"))
                if hive.manner == "never":
                    hive._closing.wait(60)
                    return
                body = GARBAGE if hive.manner == "garbage" else json.dumps(hive.answer(self.path)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler

    def answer(self, path: str) -> dict[str, Any]:
        """What it answers at a path: its health where nothing else is set."""
        return self.answers.get(path) or self.health()

    def health(self) -> dict[str, Any]:
        return {"status": "healthy", "version": self.version, "api_version": "v1", "hive_id": self.hive_id}

    def report(self, worker: str, **fields: object) -> dict[str, Any]:
        """A ready worker's report, newer than the ones before."""
        self.revision += 1
        base = {
            "worker_id": worker,
            "hive_id": self.hive_id,
            "boot_id": self.boot_id,
            "revision": self.revision,
            "state": "idle",
            "url": "http://127.0.0.1:9",
            "model": "elsewhere",
            "model_ref": "file:///models/elsewhere",
            "task": "tensor",
            "backend": "cpu",
            "slots_total": 1,
            "slots_available": 1,
        }
        return {**base, **fields}

    def tell_ready(self, report: dict[str, Any]) -> Answer:
        """POST the ready callback."""
        return self.queen.post("/v2/workers/ready", report)

    def beat(self, *workers: dict[str, Any], interval_s: float = 5.0) -> None:
        """Send a heartbeat with these workers."""
        self.revision += 1
        body = {
            "hive_id": self.hive_id,
            "boot_id": self.boot_id,
            "revision": self.revision,
            "version": self.version,
            "interval_s": interval_s,
            "sent_unix": time.time(),
            "api_url": self.url,
            "machine": self.machine,
            "workers": list(workers),
        }
        answer = self.queen.post(f"/v2/hives/{self.hive_id}/heartbeat", body)
        assert answer.status == 200, answer.body

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
