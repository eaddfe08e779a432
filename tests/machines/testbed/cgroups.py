"""A control group of its own for each machine, so that two machines never share one systemd hierarchy."""

import contextlib
import os
import re
import time
from pathlib import Path

from tests.machines.testbed.errors import TestbedError

_PREFIX = "rbee-testbed"


def _mounts() -> list[tuple[Path, str]]:
    """The mount points of systemd's hierarchy and of the unified one, with the file system's type."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, options = right.split()[0], right.split()[2]
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options):
            found.append((Path(left.split()[4]), kind))
    return found


def make(name: str) -> Path:
    """Make the machine's group where nspawn starts it; nspawn copies its path into the unified hierarchy.

    Raises:
        TestbedError: the host has neither the unified hierarchy nor systemd's own one.
    """
    prune()
    mounts = sorted(_mounts(), key=lambda mount: mount[1])
    if not mounts:
        raise TestbedError("no cgroup2 and no name=systemd hierarchy is mounted here: systemd cannot boot without")
    group = mounts[0][0] / f"{_PREFIX}-{os.getpid()}-{name}"
    group.mkdir()
    return group


def discard(group: Path) -> None:
    """Remove what is left of a machine's group in every hierarchy; its processes are gone by now."""
    for mount, _ in _mounts():
        _remove_tree(mount / group.name)


def prune() -> None:
    """Remove the groups of test runs that did not live to do so."""
    for mount, _ in _mounts():
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
