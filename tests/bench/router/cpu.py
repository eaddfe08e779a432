"""CPU time of a process and of what it started: what a request costs, whatever else the host does meanwhile."""

import os
from pathlib import Path

_TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")
_PARENT, _USER, _SYSTEM = 1, 11, 12
"""Places in /proc/PID/stat behind the command's name (proc(5))."""


def _stat(pid: int) -> list[str]:
    """The fields behind the name; none of a process that is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _family(pid: int) -> list[int]:
    parents = {int(path.name): _stat(int(path.name)) for path in Path("/proc").iterdir() if path.name.isdigit()}
    family = [pid]
    for member in family:
        family += [child for child, fields in parents.items() if fields and int(fields[_PARENT]) == member]
    return family


def spent_us(pid: int) -> float:
    """Microseconds of CPU that a process and its children have spent, user and system together; steps of 10 ms."""
    fields = [found for member in _family(pid) if (found := _stat(member))]
    return sum(int(found[_USER]) + int(found[_SYSTEM]) for found in fields) * _TICK_US
