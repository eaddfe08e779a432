"""Where a bench runs: one machine with the project installed, and what the host is, in words."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.behaviour.support.house import House
from tests.behaviour.support.http import Http
from tests.machines.testbed import Installation, Network

WHOLE_RUN_S = 900.0


@contextmanager
def house() -> Iterator[House]:
    """A booted machine with this checkout installed and nothing started; switched off at the end."""
    with Installation() as installation, Network() as network:
        yield House(network.add("bench", layers=installation.layers()))


def patient_admin(of: House) -> Http:
    """root at the queen's Unix socket, with time for a cold start on a crowded machine."""
    return Http(lambda limit_s: of.machine.connect("/run/rbee/queen.sock", limit_s), timeout_s=WHOLE_RUN_S)


def host() -> str:
    """The host in words: cores, memory, release, what the machine runs in, and the load that it already had."""
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    release = re.search(r'^PRETTY_NAME="?([^"\n]+)', Path("/etc/os-release").read_text(), re.M)
    gib = round(int(memory[1]) / (1 << 20)) if memory else 0
    words = release[1].replace("GNU/Linux ", "") if release else "an unknown system"
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} cores, {gib} GiB, {words}, machine in nspawn, load average {load:.1f} before the run"
