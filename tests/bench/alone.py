"""A queen of a bench's own as a child process, no machine around her, and programs that stand for her partners."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rbee import __version__
from tests.behaviour.support.http import Http
from tests.behaviour.support.other_hive import MACHINE
from tests.behaviour.support.stack import Stack
from tests.machines.testbed import native

MODEL = "fake"


@contextmanager
def queen(**config: object) -> Iterator[Stack]:
    """A queen with fields of her configuration changed; her code and her event loop are those of the packages."""
    stack = Stack(Path("/nonexistent"))
    stack.queen_config = config
    try:
        stack.start_queen("--log-level", "warning", env={"PYTHONASYNCIODEBUG": "", "PYTHONPATH": str(native.folder())})
        yield stack
    finally:
        stack.close()


@contextmanager
def program(module: str, *arguments: str, stdin: str | None = None) -> Iterator[str]:
    """A program of the bench's own: yields its first line; it is told to end by the end of its stdin."""
    command = [sys.executable, "-m", f"tests.bench.{module}", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        if stdin is not None:
            running.stdin.write(stdin + "\n")
            running.stdin.flush()
        try:
            line = running.stdout.readline().strip()
            assert line, f"{module} ended before it was ready"
            yield line
        finally:
            running.stdin.close()
            running.wait(30)


def cpu_ns(pid: int) -> int:
    """CPU time of a process, ended threads included (the kernel's posix-timers.h: ~pid << 3 | CPUCLOCK_SCHED)."""
    return time.clock_gettime_ns(~pid << 3 | 2)


def rss_mb(pid: int) -> float:
    """Resident memory in MB (of 1024 x 1024 bytes)."""
    status = Path(f"/proc/{pid}/status").read_text()
    kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(kib) / 1024


def report(
    hive: str, worker: str, url: str, *, model: str = MODEL, slots: int = 4, revision: int = 1
) -> dict[str, Any]:
    """A ready worker as its hive reports it, every field that a real hive fills."""
    now = time.time()
    return {
        "worker_id": worker, "hive_id": hive, "boot_id": "boot-1", "revision": revision, "state": "idle", "url": url,
        "model": model, "model_ref": f"file:///var/lib/rbee/models/{model}", "task": "generate", "backend": "cpu",
        "device": 0, "slots_total": slots, "slots_available": slots, "invocation_id": f"{hive}-{worker}".ljust(32, "0"),
        "pid": 4711, "status_text": f"ready: {slots} of {slots} slots free", "version": __version__,
        "since_unix": now, "spawned_unix": now - 2.0, "ready_unix": now,
    }  # fmt: skip


def picture(hive: str, workers: list[dict[str, Any]], *, revision: int = 1, interval_s: float = 5.0) -> dict[str, Any]:
    """A heartbeat."""
    return {
        "hive_id": hive, "boot_id": "boot-1", "revision": revision, "version": __version__, "interval_s": interval_s,
        "sent_unix": time.time(), "api_url": "http://127.0.0.1:9", "machine": MACHINE, "workers": workers,
    }  # fmt: skip


def tell(stack: Stack, hive: str, workers: list[dict[str, Any]], *, interval_s: float = 60.0) -> None:
    """Deliver one picture of a hive that then may be silent for three intervals."""
    voice = Http(stack.queen_url, stack.tokens["hive_callback_token"])
    answer = voice.post(f"/v2/hives/{hive}/heartbeat", picture(hive, workers, interval_s=interval_s))
    assert answer.status == 200, answer.body


def bucket_quantile(before: str, after: str, name: str, share: float) -> float | None:
    """The upper edge of the histogram's bucket in which the quantile of what came between two scrapes lies."""
    counts: dict[float, float] = {}
    for text, sign in ((before, -1.0), (after, 1.0)):
        for line in text.splitlines():
            if line.startswith(f'{name}_bucket{{le="'):
                edge = float(line.split('"')[1])
                counts[edge] = counts.get(edge, 0.0) + sign * float(line.rpartition(" ")[2])
    total = max(counts.values(), default=0.0)
    return next((edge for edge in sorted(counts) if total and counts[edge] >= share * total), None)


def as_json(value: object) -> str:
    """One line of JSON."""
    return json.dumps(value, separators=(",", ":"))
