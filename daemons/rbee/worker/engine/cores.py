"""Picks the idlest cores at a worker's start and keeps the worker on them, so that workers do not share caches."""

import os
import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path

from rbee.wire.errors import ConfigError

STAT = Path("/proc/stat")
THREADS = Path("/proc/self/task")
LOOK_S = 0.25
"""How long the cores are watched: the kernel counts their time in hundredths of a second."""


def busy_times(stat: str) -> dict[int, int]:
    """Time that each core has been busy, in the kernel's ticks, from /proc/stat (proc(5)): all but idle and iowait."""
    found = {}
    for line in re.findall(r"^cpu(\d+ .*)$", stat, re.M):
        number, *times = (int(word) for word in line.split())
        found[number] = sum(times[:3]) + sum(times[5:8])
    return found


def idlest(before: Mapping[int, int], after: Mapping[int, int], allowed: Collection[int], count: int) -> set[int]:
    """The ``count`` of the ``allowed`` cores that were least busy between two looks; of equals, the last ones.

    The first cores serve most interrupts.
    """
    ranked = sorted(allowed, key=lambda core: (after.get(core, 0) - before.get(core, 0), -core))
    return set(ranked[:count])


def pin(count: int) -> set[int]:
    """Keep this process, every thread that it has and will have, on the ``count`` idlest of its cores. Blocking.

    Returns them. Raises ConfigError where it may not use so many, or the unit's sandbox forbids it.
    """
    allowed = os.sched_getaffinity(0)
    if count > len(allowed):
        raise ConfigError(f"pin_cores: the worker may use {len(allowed)} cores, not {count}; lower it")
    before = busy_times(STAT.read_text())
    time.sleep(LOOK_S)
    cores = idlest(before, busy_times(STAT.read_text()), allowed, count)
    try:
        for thread in THREADS.iterdir():
            os.sched_setaffinity(int(thread.name), cores)
    except PermissionError:
        raise ConfigError("pin_cores: the unit's SystemCallFilter= forbids sched_setaffinity; allow it") from None
    return cores
