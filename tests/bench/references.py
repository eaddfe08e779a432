"""Servers to hold a worker against, each in an environment of its own; one that cannot be had is told and left out."""

import contextlib
import http.client
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.behaviour.support.stack import free_port
from tests.bench.lone_worker import Cores, process
from tests.bench.report import CHECKOUT

_INSIDE = Path(__file__).with_name("inside")
_SETUP_S, _START_S = 900.0, 60.0
_DEBIANS_PYTHON = "/usr/bin/python3"


def environment(lock: str) -> Path | None:
    """The virtual environment of a lock file under Debian's own Python, made once; None where it cannot be made."""
    script = f". packaging/setup-venv && PYTHON={_DEBIANS_PYTHON} rbee_venv {lock}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=CHECKOUT, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        timeout=_SETUP_S, check=False,
    )  # fmt: skip
    if done.returncode:
        _left_out(lock, done.stderr)
        return None
    return Path(done.stdout.strip().splitlines()[-1])


def _left_out(name: str, why: str) -> None:
    print(f"{name} is left out: {why.strip()[-500:]}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def mlserver(model: Path, cores: Cores) -> Iterator[int | None]:
    """MLServer with one model on the server's cores, in its server's own process: its HTTP port, None without it."""
    found = environment("bench-mlserver")
    if found is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="rbee-bench-") as name:
        folder, port = Path(name), free_port()
        ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
        settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, **ports}
        (folder / "settings.json").write_text(json.dumps(settings))
        parameters = {"uri": str(model / "model.onnx"), "extra": {"threads": len(cores.server)}}
        described = {"name": model.name, "implementation": "mlserver_onnx.OnnxModel", "parameters": parameters}
        (folder / "model-settings.json").write_text(json.dumps(described))
        argv = cores.serving([str(found / "bin/mlserver"), "start", name])
        with _answering("mlserver", model.name, argv, folder / "log", port) as answered:
            yield answered


@contextlib.contextmanager
def pytriton(model: Path, cores: Cores) -> Iterator[int | None]:
    """PyTriton with one model on the server's cores: its HTTP port, None without it."""
    found = environment("bench-pytriton")
    if found is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="rbee-bench-") as name:
        port = free_port()
        ports = [str(each) for each in (port, free_port(), free_port())]
        program = [str(found / "bin/python"), str(_INSIDE / "pytriton_onnx.py"), str(model / "model.onnx"), model.name]
        argv = cores.serving([*program, str(len(cores.server)), *ports])
        with _answering("pytriton", model.name, argv, Path(name) / "log", port) as answered:
            yield answered


@contextlib.contextmanager
def _answering(name: str, model: str, argv: list[str], log: Path, port: int) -> Iterator[int | None]:
    with process(argv, log, PYTHONPATH=str(_INSIDE), ORT_DISABLE_TELEMETRY="1"):
        if _serves(port, model):
            yield port
        else:
            _left_out(name, f"it does not serve: {log.read_text(errors='replace')}")
            yield None


def _serves(port: int, model: str) -> bool:
    """Whether the server at ``port`` says within its time that the model is ready."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", f"/v2/models/{model}/ready")
            if connection.getresponse().status == http.client.OK:
                return True
        time.sleep(0.1)
    return False
