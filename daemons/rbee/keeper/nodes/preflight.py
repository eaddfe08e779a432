"""The preflight of a node over SSH: reach, authentication, a command's round trip, latency, package, disk, as facts."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rbee.keeper.nodes.ssh import Ssh
from rbee.wire.nodes import Check

HIVE_PACKAGE = "rbee-hive"
SLOW_MS = 100.0
LEAST_FREE_BYTES = 2 << 30
"""Disk that the packages and their unpacking take, ONNX Runtime's half a gigabyte included."""
_WORD = "test"


@dataclass(frozen=True, slots=True)
class Found:
    """What the preflight found: every check, and the version of rbee-hive, empty where it is not installed."""

    checks: list[Check]
    hive_version: str

    @property
    def good(self) -> bool:
        """Whether SSH itself is as it should be; a package that is missing can be installed."""
        return all(check.good for check in self.checks if check.name in ("echo", "latency"))


def look(ssh: Ssh, name: str, clock: Callable[[], float] = time.perf_counter) -> Found:
    """Look at a node over an open connection; raises StepFailed where a command does not end."""
    checks = [
        Check("reach", True, f"{ssh.address} port {ssh.target.port}"),
        Check("auth", True, f"user {ssh.target.user}"),
    ]
    checks += _round_trips(ssh, clock)
    version = package_version(ssh, HIVE_PACKAGE)
    hint = "" if version else f"install it: rbee node install {name}"
    checks.append(Check("package", bool(version), f"{HIVE_PACKAGE} {version or 'is not installed'}", hint))
    checks.append(_disk(ssh))
    return Found(checks, version)


def package_version(ssh: Ssh, package: str) -> str:
    """The version of a Debian package that is installed on the node, or ''."""
    asked = ["dpkg-query", "--show", "--showformat=${db:Status-Status} ${Version}", package]
    state, _, version = ssh.run(asked, check=False).out.strip().partition(" ")
    return version if state == "installed" else ""


def release(ssh: Ssh) -> str:
    """The code name of the node's Debian release; raises StepFailed."""
    return ssh.run(["sh", "-c", ". /etc/os-release && echo $VERSION_CODENAME"]).out.strip()


def _round_trips(ssh: Ssh, clock: Callable[[], float]) -> Iterator[Check]:
    began = clock()
    said = ssh.run(["echo", _WORD]).out
    took_ms = (clock() - began) * 1000
    wrong = "" if said == f"{_WORD}\n" else "a login script writes to standard output: let it be silent"
    yield Check("echo", not wrong, f"{said.strip()[:40]!r}", wrong)
    slow = "" if took_ms < SLOW_MS else "commands will be slow: look at the network between"
    # a link that is slow is told, and hinders nothing
    yield Check("latency", True, f"{took_ms:.1f} ms for a command, expected under {SLOW_MS:g} ms", slow)


def _disk(ssh: Ssh) -> Check:
    out = ssh.run(["df", "--output=avail", "--block-size=1", "/var/lib"]).out.split()
    free = int(out[-1]) if out and out[-1].isdigit() else 0
    enough = free >= LEAST_FREE_BYTES
    hint = "" if enough else f"free some space under /var/lib: packages need {LEAST_FREE_BYTES / 2**30:g} GiB"
    return Check("disk", enough, f"{free / 2**30:.1f} GiB free in /var/lib", hint)
