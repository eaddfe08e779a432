"""What a process on the machine uses: memory, and CPU time while it has nothing to do."""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from tests.machines.testbed import Machine

MIB = 1024.0
PYTHON = "/usr/lib/rbee/venv/bin/python"
# The clock id of a process, by the kernel's include/linux/posix-timers.h: ~pid << 3 | CPUCLOCK_SCHED.
_CPU_CLOCKS = "import sys, time; print(*(time.clock_gettime_ns(~int(pid) << 3 | 2) for pid in sys.argv[1:]))"


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident and proportional memory in MB (of 1024 x 1024 bytes)."""

    rss_mb: float
    pss_mb: float


def main_pid(machine: Machine, unit: str) -> int:
    """The process of a unit, as the machine numbers it."""
    return int(machine.unit(unit)["MainPID"])


def memory(machine: Machine, pid: int) -> Memory:
    """VmRSS, and Pss of smaps_rollup."""
    rss = _kib(machine.read(f"/proc/{pid}/status"), "VmRSS")
    return Memory(rss / MIB, _kib(machine.read(f"/proc/{pid}/smaps_rollup"), "Pss") / MIB)


def _kib(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.M)
    assert found, f"the kernel does not tell {name}"
    return int(found[1])


def cpu_percent(machine: Machine, pids: Mapping[str, int], seconds: float) -> dict[str, float]:
    """Per cent of one core that each process used in a window of ``seconds`` from now."""
    before, began = _cpu_ns(machine, pids), time.monotonic()
    time.sleep(seconds)
    after, took_ns = _cpu_ns(machine, pids), (time.monotonic() - began) * 1e9
    return {name: 100 * (after[name] - before[name]) / took_ns for name in pids}


def _cpu_ns(machine: Machine, pids: Mapping[str, int]) -> dict[str, int]:
    """The kernel's CPU clock of each process, ended threads included; /proc/PID/stat would count in steps of 10 ms."""
    said = machine.run([PYTHON, "-I", "-c", _CPU_CLOCKS, *map(str, pids.values())]).stdout
    return dict(zip(pids, map(int, said.split()), strict=True))
