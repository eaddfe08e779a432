"""Real machines for tests: Debian trees booted by systemd-nspawn, wired by networks of their own."""

from tests.machines.testbed.errors import TestbedError
from tests.machines.testbed.fixtures import on_every_release
from tests.machines.testbed.machine import Machine, failed_units, wait_until
from tests.machines.testbed.network import Network
from tests.machines.testbed.processes import Answer
from tests.machines.testbed.project import Installation, install_project
from tests.machines.testbed.trees import Release

__all__ = [
    "Answer",
    "Installation",
    "Machine",
    "Network",
    "Release",
    "TestbedError",
    "failed_units",
    "install_project",
    "on_every_release",
    "wait_until",
]
