"""Real machines for tests: Debian trees booted by systemd-nspawn, wired by networks of their own."""

from tests.machines.testbed.errors import TestbedError
from tests.machines.testbed.machine import Machine
from tests.machines.testbed.network import Network
from tests.machines.testbed.processes import Answer

__all__ = ["Answer", "Machine", "Network", "TestbedError"]
