"""A control group of its own for each machine: no two share one systemd hierarchy, and each can be short of memory."""

import contextlib
import os
import re
import time
from pathlib import Path

from tests.machines.testbed.errors import TestbedError

_PREFIX = "rbee-testbed"


def _mounts() -> list[Path]:
    """The mount points of the unified hierarchy and, on a host of the older kind, of systemd's own and of memory's."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, options = right.split()[0], right.split()[2]
        older = kind == "cgroup" and bool({"name=systemd", "memory"} & set(options.split(",")))
        if kind == "cgroup2" or older:
            found.append(Path(left.split()[4]))
    return found


def make(name: str) -> list[Path]:
    """Make the machine's groups, one in each hierarchy: nspawn is to be started in all of them.

    Raises:
        TestbedError: the host has no unified hierarchy.
    """
    prune()
    mounts = _mounts()
    if not mounts:
        raise TestbedError("no cgroup2 file system is mounted here, and systemd cannot boot without: mount one")
    groups = [mount / f"{_PREFIX}-{os.getpid()}-{name}" for mount in mounts]
    for group in groups:
        group.mkdir()
    return groups


def memory_used(groups: list[Path]) -> int:
    """Bytes of a machine's memory that the kernel cannot take back by itself: of its processes and its tmpfs files."""
    for group in groups:
        stat = group / "memory.stat"
        if stat.exists():
            amounts = dict(line.split() for line in stat.read_text().splitlines())
            older = "total_rss" in amounts
            names = ("total_rss", "total_shmem") if older else ("anon", "shmem", "kernel")
            return sum(int(amounts.get(name, "0")) for name in names)
    raise TestbedError("the host's kernel counts no memory by group: mount a hierarchy with the memory controller")


def limit_memory(groups: list[Path], most: int | None) -> None:
    """Let a machine have ``most`` bytes of memory, past which the kernel kills in it; None: as much as the host has.

    Raises:
        TestbedError: the host's kernel does not limit memory by group.
    """
    for group in groups:
        for name, unlimited in (("memory.limit_in_bytes", "-1"), ("memory.max", "max")):
            if (group / name).exists():
                (group / name).write_text(unlimited if most is None else str(most))
                return
    raise TestbedError("the host's kernel limits no memory by group: mount a hierarchy with the memory controller")


def kills_for_memory(groups: list[Path]) -> int:
    """How many processes of a machine the kernel has killed because its memory ran out."""
    for group in groups:
        for name in ("memory.oom_control", "memory.events"):
            if (group / name).exists():
                return int(dict(line.split() for line in (group / name).read_text().splitlines())["oom_kill"])
    raise TestbedError("the host's kernel counts no kills by group: mount a hierarchy with the memory controller")


def discard(groups: list[Path]) -> None:
    """Remove what is left of a machine's groups; its processes are gone by now."""
    for group in groups:
        _remove_tree(group)


def prune() -> None:
    """Remove the groups of test runs that did not live to do so."""
    for mount in _mounts():
        for group in mount.glob(f"{_PREFIX}-*"):
            owner = re.match(rf"{_PREFIX}-(\d+)-", group.name)
            if owner and not Path(f"/proc/{owner[1]}").exists():
                _remove_tree(group)


def _remove_tree(group: Path) -> None:
    for folder, _, _ in os.walk(group, topdown=False):
        # A group is busy for a moment after its last process has gone.
        for _ in range(50):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
                break
            if not Path(folder).exists():
                break
            time.sleep(0.02)
