"""A network of machines: one process that owns every namespace, mount and machine, and takes them with it."""

import ipaddress
import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from tests.machines.testbed import processes
from tests.machines.testbed.errors import TestbedError
from tests.machines.testbed.trees import Release

if TYPE_CHECKING:
    from tests.machines.testbed.machine import Machine

BRIDGE = "br0"
_SUBNET = ipaddress.ip_network("10.77.0.0/24")
_OWNER = """
mount --make-rshared / && mount -t tmpfs -o mode=755,size=8g rbee "$1/disks" &&
ip link set lo up && ip link add br0 type bridge && ip addr add "$2" dev br0 && ip link set br0 up &&
echo ready && read -r _
"""


class Network:
    """A bridge in a network namespace of its own, and the machines on it; a context manager.

    Everything belongs to one owner process in process, mount and network namespaces of its own. It ends when this
    Python process closes its pipe, which the kernel does even after SIGKILL, and then the kernel ends everything
    below it. Nothing of the host's network, mounts or names is touched, so any number of test runs fit on a host.
    """

    def __init__(self) -> None:
        self.machines: list[Machine] = []
        self._numbers = itertools.count(10)
        self.folder = Path(tempfile.mkdtemp(prefix="rbee-testbed-"))
        (self.folder / "disks").mkdir()
        self._owner = self._start_owner()
        self.pid = processes.children(self._owner.pid)[0]

    @property
    def gateway(self) -> str:
        """The bridge's own address: what the machines see as their router, which routes nowhere."""
        return str(_SUBNET[1])

    def _start_owner(self) -> subprocess.Popen[str]:
        spaces = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        script = ["sh", "-c", _OWNER, "sh", str(self.folder), f"{_SUBNET[1]}/{_SUBNET.prefixlen}"]
        owner = subprocess.Popen(
            [*spaces, "--propagation", "private", "--", *script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert owner.stdout is not None
        said = owner.stdout.readline()
        if said != "ready\n":
            owner.kill()
            owner.communicate()
            shutil.rmtree(self.folder, ignore_errors=True)
            raise TestbedError(f"the network's namespaces could not be made (root is needed): {said.strip()}")
        return owner

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cut the power of every machine and leave nothing behind."""
        for machine in self.machines:
            machine.kill_power()
        self._owner.communicate()
        processes.wait_for_exit(self.pid, 10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def inside(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs argv with this network's mounts, processes and network."""
        return ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", *map(str, argv)]

    def in_network(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs argv with the host's files and this network's interfaces."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *map(str, argv)]

    def run(self, argv: Sequence[str | Path], timeout: float = 30) -> str:
        """Run a command in the network's namespaces; its output.

        Raises:
            TestbedError: it failed.
        """
        return self._tell(self.inside(argv), timeout)

    def _tell(self, argv: Sequence[str], timeout: float = 30) -> str:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise TestbedError(f"{' '.join(argv)} failed: {done.stderr.strip()}")
        return done.stdout

    def add(
        self,
        name: str = "node",
        *,
        release: Release = Release.BOOKWORM,
        layers: Sequence[Path] = (),
        binds: Sequence[str] = (),
        boot: bool = True,
    ) -> "Machine":
        """A machine on this network, booted unless told otherwise.

        layers are folders laid over the release's tree, the topmost first. binds are host folders shown read-only
        inside, as "HOST:INSIDE". The name is its host name; the others know it by /etc/hosts.
        """
        from tests.machines.testbed.machine import Machine

        address = str(_SUBNET[next(self._numbers)])
        machine = Machine(self, name, address, release=release, layers=layers, binds=binds)
        self.machines.append(machine)
        self._write_hosts()
        if boot:
            machine.boot()
        return machine

    def _write_hosts(self) -> None:
        lines = ["127.0.0.1 localhost", "::1 localhost ip6-localhost"]
        lines += [f"{machine.address} {machine.name}" for machine in self.machines]
        for machine in self.machines:
            machine.write("/etc/hosts", "\n".join(lines) + "\n")

    def partition(self, machine: "Machine") -> None:
        """Take the machine's cable out: nothing goes in or out until heal()."""
        self.run(["ip", "link", "set", machine.port, "down"])

    def heal(self, machine: "Machine") -> None:
        """Put the machine's cable back."""
        self.run(["ip", "link", "set", machine.port, "up"])

    def drop(self, source: "Machine", target: "Machine") -> None:
        """Lose every packet from source to target in silence; the other direction stays.

        The source believes in a hardware address that nobody has, which needs no packet filter in the kernel.
        """
        nobody = ["lladdr", "02:00:00:00:00:01", "dev", "host0", "nud", "permanent"]
        self._tell(source.in_network(["ip", "neigh", "replace", target.address, *nobody]))

    def undrop(self, source: "Machine", target: "Machine") -> None:
        """Let packets from source to target pass again."""
        self._tell(source.in_network(["ip", "neigh", "del", target.address, "dev", "host0"]))

    def listener(self) -> socket.socket:
        """A TCP socket at the bridge's own address, for a server of the host's that the machines reach."""
        with processes.network_of(self.pid):
            return socket.create_server((self.gateway, 0))

    def new_disk(self, machine_name: str) -> Path:
        """The folder on this network's tmpfs for one machine's disk, seen from the host."""
        return Path(f"/proc/{self.pid}/root{self.folder}/disks/{machine_name}-{os.urandom(3).hex()}")
