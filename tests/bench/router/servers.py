"""The processes of the bench: a fake worker (nginx answers like one), the queen, and the routers beside her."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests.bench.report import CHECKOUT

START_LIMIT_S = 60.0
TOKEN = "sk-bench-0f7c1e9ab34d4c5e8f6a7b8c9d0e1f2a"
"""The client's, in the form that LiteLLM wants of a key."""
MODEL = "talk"
ANSWER = json.dumps(
    {
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": MODEL,
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "one two three"}, "finish_reason": "stop"},
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
    }
)  # fmt: skip
MODELS = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "created": 1, "owned_by": "bench"}]})
NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600; tcp_nodelay on;
  client_body_temp_path {folder}/1; proxy_temp_path {folder}/2; fastcgi_temp_path {folder}/3;
  uwsgi_temp_path {folder}/4; scgi_temp_path {folder}/5;
  {http}
}}
"""
FAKE_WORKER = """
  server {{
    listen 127.0.0.1:{port}; default_type application/json;
    location / {{ return 200 '{answer}'; }}
    location /v1/models {{ return 200 '{models}'; }}
  }}
"""
PROXY = """
  upstream worker {{ server 127.0.0.1:{to}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://worker; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
"""


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def venv(lock: str) -> Path | None:
    """The environment of a lock file, made at first use; None where it cannot be made here."""
    script = f". packaging/setup-venv && rbee_venv {lock}"
    base = getattr(sys, "_base_executable", sys.executable)  # an environment is known by the Python that it is made of
    env = {**os.environ, "PYTHON": base}
    made = subprocess.run(["bash", "-c", script], cwd=CHECKOUT, stdout=subprocess.PIPE, text=True, check=False, env=env)
    return Path(made.stdout.strip()) if made.returncode == 0 else None


@contextlib.contextmanager
def process(argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process for the length of the block; what it writes goes to ``log``."""
    with log.open("wb") as out:
        started = subprocess.Popen(argv, stdout=out, stderr=out, env={**os.environ, **(env or {})}, cwd=log.parent)
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(15)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()


def ask(url: str, body: bytes | None = None, token: str = TOKEN) -> bytes:
    """One request; raises OSError where it fails."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=10) as response:
        answer: bytes = response.read()
        return answer


def wait_answer(url: str, body: bytes, server: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers like the worker behind it; fails when it ends or takes too long."""
    end = time.monotonic() + START_LIMIT_S
    while True:
        try:
            ask(url + "/v1/chat/completions", body)
        except (OSError, urllib.error.HTTPError):
            _still_coming(server, end)
        else:
            return


def _still_coming(server: subprocess.Popen[bytes], end: float) -> None:
    assert server.poll() is None and time.monotonic() < end, f"{server.args!r} did not come up"
    time.sleep(0.1)


def wait_listening(url: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until a daemon answers /health; fails when it ends or takes too long."""
    end = time.monotonic() + START_LIMIT_S
    while True:
        try:
            ask(url + "/health")
        except OSError:
            _still_coming(server, end)
        else:
            return


def nginx(folder: Path, http: str) -> list[str]:
    """The command of an nginx with that configuration."""
    folder.mkdir()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, http=http))
    return ["nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]


def queen(folder: Path, port: int) -> list[str]:
    """The command of a queen, with tokens in force."""
    folder.mkdir()
    tokens = {}
    for name in ("api_token", "hive_callback_token", "hive_api_token", "worker_api_token"):
        path = folder / name
        path.write_text(TOKEN if name == "api_token" else f"bench-{name}")
        path.chmod(0o600)
        tokens[name] = str(path)
    config = {
        "listen": {"port": port}, "run_dir": str(folder / "run"), "state_dir": str(folder / "state"), "tokens": tokens,
    }  # fmt: skip
    (folder / "queen.yaml").write_text(json.dumps(config))
    return [sys.executable, "-m", "rbee.queen.main", "--config", str(folder / "queen.yaml")]


def register(url: str, name: str, worker: str) -> None:
    """Tell a queen of a worker that serves the model ``name``."""
    body = {
        "worker_id": name, "url": worker, "model_ref": name, "model": name, "backend": "cpu", "slots_total": 256,
    }  # fmt: skip
    ask(url + "/v2/workers/register", json.dumps(body).encode())


def litellm(folder: Path, port: int, to: int, program: Path) -> list[str]:
    """The command of a LiteLLM proxy with one worker process."""
    folder.mkdir()
    model = {
        "model_name": MODEL,
        "litellm_params": {"model": f"openai/{MODEL}", "api_base": f"http://127.0.0.1:{to}/v1", "api_key": "none"},
    }
    (folder / "config.yaml").write_text(json.dumps({"model_list": [model], "general_settings": {"master_key": TOKEN}}))
    return [
        str(program), "--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port),
        "--num_workers", "1", "--telemetry", "False",
    ]  # fmt: skip


def vllm_router(port: int, to: int, program: Path) -> list[str]:
    """The command of a vllm-router that knows one worker."""
    return [
        str(program), "--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{to}",
        "--policy", "round_robin", "--log-level", "error", "--prometheus-port", str(free_port()),
    ]  # fmt: skip
