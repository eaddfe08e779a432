"""Runs on the machine: times a worker's start and the bare runtime's, in turns, and writes them as JSON lines."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

PYTHON = "/usr/lib/rbee/venv/bin/python"
RUN = Path("/run/bench")
BARE = """
import sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
kinds = {"tensor(float)": numpy.float32, "tensor(int64)": numpy.int64}
feeds = {
    each.name: numpy.ones([size if isinstance(size, int) else 1 for size in each.shape], kinds[each.type])
    for each in session.get_inputs()
}
session.run(None, feeds)
sys.stdout.write("ready")
sys.stdout.flush()
"""
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "ORT_DISABLE_TELEMETRY": "1"}


def bare(model: str) -> float:
    """Milliseconds from the start of a Python process to the end of its session's first run."""
    file = next(Path(f"/var/lib/rbee/models/{model}").rglob("*.onnx"))
    threads = str(len(os.sched_getaffinity(0)))
    began = time.monotonic()
    with subprocess.Popen(
        [PYTHON, "-c", BARE, str(file), threads], stdout=subprocess.PIPE, env=ENVIRONMENT, cwd="/"
    ) as process:
        assert process.stdout is not None
        if process.stdout.read(5) != b"ready":
            raise SystemExit(f"the bare runtime did not run {file}")
        return (time.monotonic() - began) * 1000


def worker(model: str) -> float:
    """Milliseconds from the start of the worker's process to its READY=1."""
    name = f"start-{model}"
    (RUN / "run/workers" / name).mkdir(parents=True, exist_ok=True)
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    path = RUN / "notify"
    path.unlink(missing_ok=True)
    notices.bind(str(path))
    notices.settimeout(60)
    command = ["/usr/bin/rbee-worker", "--id", name, "--run-dir", str(RUN / "run")]
    began = time.monotonic()
    with subprocess.Popen(
        command, env=ENVIRONMENT | {"NOTIFY_SOCKET": str(path)}, cwd="/", stderr=subprocess.DEVNULL
    ) as process:
        while b"READY=1" not in notices.recv(4096).split(b"\n"):
            pass
        took = (time.monotonic() - began) * 1000
        process.terminate()
    notices.close()
    return took


def main(rounds: int, models: list[str]) -> None:
    """One round more than asked for: the first fills the page cache and is not told."""
    for number in range(rounds + 1):
        for model in models:
            found = {"model": model, "worker_ms": worker(model), "bare_ms": bare(model)}
            if number:
                sys.stdout.write(json.dumps(found) + "\n")
                sys.stdout.flush()


main(int(sys.argv[1]), sys.argv[2:])
