"""ONNX Runtime, imported in one place, after the environment says that it must not call home."""

import contextlib
import os
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

TELEMETRY = "ORT_DISABLE_TELEMETRY"
GROUP = Path("/sys/fs/cgroup")
CPU_QUOTA = GROUP / "cpu.max"
MEMINFO = Path("/proc/meminfo")


@cache
def runtime() -> ModuleType:
    """Import onnxruntime. The first call sets ORT_DISABLE_TELEMETRY: the library reads it when it initialises."""
    os.environ[TELEMETRY] = "1"
    import onnxruntime  # the process listens before it pays for this

    onnxruntime.set_default_logger_severity(3)
    return onnxruntime  # type: ignore[no-any-return]


def thread_count(configured: int, quota_file: Path = CPU_QUOTA) -> int:
    """Threads for one session: ``configured``, or the cores this process may use, its cgroup's quota counted."""
    if configured:
        return configured
    cores = len(os.sched_getaffinity(0))
    quota = _quota(quota_file)
    return max(1, min(cores, round(quota) if quota else cores))


def _quota(path: Path) -> float | None:
    """Cores that the cgroup grants (cpu.max: ``quota period`` in microseconds), None where it sets no limit."""
    try:
        quota, _, period = path.read_text().strip().partition(" ")
        return None if quota == "max" else max(1.0, int(quota) / int(period))
    except (OSError, ValueError, ZeroDivisionError):
        return None


def available_memory(meminfo: Path = MEMINFO, group: Path = GROUP) -> int | None:
    """Bytes that may still be taken: what the machine has left, or less where the cgroup sets a limit."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo.read_text(), re.M) if meminfo.exists() else None
    amounts = [int(found[1]) * 1024] if found else []
    with contextlib.suppress(OSError, ValueError):  # no cgroup v2 here, or no limit ("max")
        amounts.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return max(0, min(amounts)) if amounts else None


def version() -> str:
    """The runtime's version, empty before it is imported."""
    module = sys.modules.get("onnxruntime")
    return str(getattr(module, "__version__", "")) if module is not None else ""
