"""A control group of its own for each machine, so that two machines never share one systemd hierarchy."""

import contextlib
import os
import re
import time
from pathlib import Path

from tests.machines.testbed.errors import TestbedError

_PREFIX = "rbee-testbed"


def _mounts() -> list[Path]:
    """The mount points of the unified hierarchy and, on a host of the older kind, of systemd's own one."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, options = right.split()[0], right.split()[2]
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options):
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
