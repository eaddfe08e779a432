"""One machine: a fresh disk over shared trees, a real systemd, and the ways to use it from a test."""

import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from tests.machines.testbed import cgroups, processes, trees
from tests.machines.testbed.errors import TestbedError
from tests.machines.testbed.network import BRIDGE, Network
from tests.machines.testbed.trees import Release

_COUNTER = itertools.count(1)
_CLEAN = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "TERM": "dumb"}
BOOT_LIMIT = 60.0
_WANTS_RESTART = 133
"""nspawn's exit code for a machine that reboots."""


class Machine:
    """A booted (or switched off) machine of a Network; made by Network.add().

    Attributes:
        name: its host name.
        address: its IPv4 address on the network.
        pid: the host's process id of its PID 1; 0 while it is off.
        disk: where its root file system is mounted, as its network's own processes see it.
        port: the bridge's port it hangs on.
    """

    def __init__(
        self,
        network: Network,
        name: str,
        address: str,
        *,
        release: Release,
        layers: Sequence[Path],
        binds: Sequence[str],
    ) -> None:
        self.network, self.name, self.address, self.release = network, name, address, release
        self.pid = 0
        self._binds = list(binds)
        self._id = f"{os.getpid() % 100000}x{next(_COUNTER)}"
        self.port = f"vb-{self._id}"
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._nspawn_pid = 0
        self._groups: list[Path] = []
        self.console = network.folder / f"{self._id}.console"
        self.disk = self._make_disk([*layers, trees.tree(release)])

    def _make_disk(self, lower: Sequence[Path]) -> Path:
        seen = self.network.new_disk(self._id)
        real = Path("/") / seen.relative_to(f"/proc/{self.network.pid}/root")
        for part in ("upper", "work", "root"):
            (seen / part).mkdir(parents=True)
        layers = ":".join(str(layer) for layer in lower)
        options = f"lowerdir={layers},upperdir={real}/upper,workdir={real}/work"
        self.network.run(["mount", "-t", "overlay", "-o", options, self._id, real / "root"])
        (seen / "root/etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")
        return real / "root"

    @property
    def root(self) -> Path:
        """The machine's files as the host sees them: what it sees itself while it runs, else its disk."""
        return Path(f"/proc/{self.pid}/root") if self.pid else Path(f"/proc/{self.network.pid}/root{self.disk}")

    # -- power ---------------------------------------------------------------------------------------------------

    def boot(self, limit: float = BOOT_LIMIT) -> None:
        """Switch on and wait until systemd has finished its start.

        Raises:
            TestbedError: not finished within limit seconds; the console's last lines are in the message.
        """
        deadline = time.monotonic() + limit
        # Debian 12's nspawn refuses a notify socket whose path it cannot reach: the folder is in both mount trees.
        path = self.network.folder / f"{self._id}.notify"
        path.unlink(missing_ok=True)
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as notices:
            notices.bind(str(path))
            self._start_nspawn(path)
            try:
                self._await_ready(notices, deadline)
            except TestbedError:
                self.kill_power()
                raise
        path.unlink()

    def _start_nspawn(self, notify: Path) -> None:
        self._groups = cgroups.make(self._id)
        options = ["--quiet", "--register=no", "--keep-unit", "--boot", f"--directory={self.disk}"]
        options += [f"--machine={self._id}", f"--hostname={self.name}", f"--network-bridge={BRIDGE}"]
        options += ["--notify-ready=yes", "--link-journal=no", "--resolv-conf=off", "--timezone=off"]
        options += ["--console=pipe", *(f"--bind-ro={bind}" for bind in self._binds)]
        joins = [str(group / "cgroup.procs") for group in self._groups]
        enter = ["sh", "-c", f'for f in {" ".join(joins)}; do echo $$ >"$f" || exit 1; done; exec "$@"', "sh"]
        with self.console.open("ab") as console:
            self._nspawn = subprocess.Popen(
                [*enter, *self.network.inside(["systemd-nspawn", *options])],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                env={**_CLEAN, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "NOTIFY_SOCKET": str(notify)},
                start_new_session=True,
            )

    def _await_ready(self, notices: socket.socket, deadline: float) -> None:
        while True:
            notices.settimeout(max(0.0, min(1.0, deadline - time.monotonic())))
            try:
                said = notices.recv(4096).decode(errors="replace").splitlines()
            except (TimeoutError, BlockingIOError):
                said = []
            if any(line.startswith("X_NSPAWN_LEADER_PID=") for line in said) and not self.pid:
                self._find_pids()
                self._connect_network()
            if "READY=1" in said and self.pid:
                return
            assert self._nspawn is not None
            if self._nspawn.poll() is not None or time.monotonic() > deadline:
                raise TestbedError(f"machine {self.name} did not boot; its console ends with:\n{self._console_end()}")

    def _find_pids(self) -> None:
        assert self._nspawn is not None
        self._nspawn_pid = processes.children(self._nspawn.pid)[0]
        self.pid = processes.children(self._nspawn_pid)[-1]

    def _connect_network(self) -> None:
        commands = (
            f"addr add {self.address}/24 dev host0\nlink set host0 up\nroute add default via {self.network.gateway}\n"
        )
        subprocess.run(
            ["nsenter", f"--net=/proc/{self.pid}/ns/net", "ip", "-batch", "-"],
            input=commands.encode(),
            check=True,
            capture_output=True,
            timeout=10,
        )
        self.network.run(["ip", "link", "set", self.port, "up"])

    def _console_end(self) -> str:
        return self.console.read_text(errors="replace")[-3000:] if self.console.exists() else ""

    def kill_power(self) -> None:
        """Cut the power: everything on the machine dies at once; boot() starts it again from the same disk."""
        if self._nspawn is None:
            return
        for pid in (self._nspawn_pid, self.pid, *processes.children(self._nspawn.pid), self._nspawn.pid):
            if pid:
                processes.wait_for_exit(pid, 10, kill=True)
        self._forget()

    def poweroff(self, limit: float = 60) -> None:
        """Switch off cleanly, by systemctl poweroff.

        Raises:
            TestbedError: still on after limit seconds.
        """
        self._go_down("poweroff", limit)

    def reboot(self, limit: float = 60) -> None:
        """Have the machine restart itself, by systemctl reboot, and wait until systemd has finished its start.

        Raises:
            TestbedError: still on after limit seconds, or not up again as boot() says it.
        """
        code = self._go_down("reboot", limit)
        # nspawn leaves the restart to whoever started it
        assert code == _WANTS_RESTART, f"machine {self.name} was to be restarted: {code}\n{self._console_end()}"
        self.boot()

    def _go_down(self, order: str, limit: float) -> int:
        """Give systemctl's order and wait for the machine's end; nspawn's exit code."""
        assert self._nspawn is not None
        self.run(["systemctl", order], check=False)
        try:
            code = self._nspawn.wait(limit)
        except subprocess.TimeoutExpired:
            raise TestbedError(f"machine {self.name} did not switch off:\n{self._console_end()}") from None
        self._forget()
        return code

    def _forget(self) -> None:
        assert self._nspawn is not None
        self._nspawn.wait(10)
        self._nspawn, self._nspawn_pid, self.pid = None, 0, 0
        # the kernel takes its time to end a machine's network: its port would be in the way of the next boot
        with contextlib.suppress(TestbedError):
            self.network.run(["ip", "link", "delete", self.port])
        cgroups.discard(self._groups)

    # -- memory --------------------------------------------------------------------------------------------------

    def limit_memory(self, spare: int | None) -> None:
        """Leave the machine ``spare`` bytes beside what it uses now; None: as much as the host has.

        Past that the kernel kills the process that it likes least on this machine.
        """
        most = None if spare is None else cgroups.memory_used(self._groups) + spare
        cgroups.limit_memory(self._groups, most)

    @property
    def kills_for_memory(self) -> int:
        """How many of its processes the kernel has killed because its memory ran out."""
        return cgroups.kills_for_memory(self._groups)

    # -- commands ------------------------------------------------------------------------------------------------

    def command(self, argv: Sequence[str | Path], user: str | None = None) -> list[str]:
        """The command line that the host uses to run argv on the machine, as root or as another user."""
        enter = ["nsenter", "-t", str(self.pid), "-a", "--wdns=/", "--"]
        # the clock is the host's: setting it here would set it for everybody
        drop = ["setpriv", "--pdeathsig=KILL", "--bounding-set=-sys_time"]
        if user is not None:
            drop += [f"--reuid={user}", f"--regid={self._group_of(user)}", "--init-groups", "--inh-caps=-all"]
        return [*enter, *drop, "--", *map(str, argv)]

    def _group_of(self, user: str) -> str:
        for line in self.read("/etc/passwd").splitlines():
            fields = line.split(":")
            if fields[0] == user:
                return fields[3]
        raise TestbedError(f"machine {self.name} has no user {user}: add one with `useradd`")

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        user: str | None = None,
        input: str | None = None,  # noqa: A002
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on the machine and wait for its end.

        Raises:
            AssertionError: it failed and check is set; its output is in the message.
            subprocess.TimeoutExpired: not ended within timeout seconds.
        """
        done = subprocess.run(
            self.command(argv, user),
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**_CLEAN, "HOME": "/root" if user is None else "/", **(env or {})},
            check=False,
        )
        shown = f"{self.name}: {' '.join(map(str, argv))}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        assert not check or done.returncode == 0, shown
        return done

    def popen(
        self, argv: Sequence[str | Path], *, user: str | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a command on the machine with its output in a pipe; the caller ends it (kill() reaches it)."""
        return subprocess.Popen(
            self.command(argv, user),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**_CLEAN, **(env or {})},
        )

    def systemctl(self, *arguments: str, check: bool = True, timeout: float = 120) -> str:
        """systemctl with these arguments; its output."""
        return self.run(["systemctl", "--no-pager", *arguments], check=check, timeout=timeout).stdout

    def unit(self, name: str) -> dict[str, str]:
        """Every property of a unit, as `systemctl show` says it."""
        lines = self.systemctl("show", name).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def journal(self, unit: str | None = None, *matches: str, boot: bool = True) -> list[dict[str, Any]]:
        """The journal's records, oldest first: of a unit, with these FIELD=VALUE matches, of this boot."""
        narrowed = [*(["--boot"] if boot else []), *([f"--unit={unit}"] if unit else []), *matches]
        self.run(["journalctl", "--sync"])
        out = self.run(["journalctl", "--no-pager", "--output=json", "--all", *narrowed], check=False).stdout
        return [json.loads(line) for line in out.splitlines() if line.startswith("{")]

    # -- files ---------------------------------------------------------------------------------------------------

    def path(self, inside: str | Path) -> Path:
        """Where the host sees a path of the machine (of its running system, /run and /tmp included)."""
        return self.root / str(inside).lstrip("/")

    def read(self, inside: str | Path) -> str:
        """A file's text."""
        return self.path(inside).read_text()

    def write(self, inside: str | Path, text: str | bytes, mode: int = 0o644) -> None:
        """Write a file, and the folders above it where they are missing."""
        path = self.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        path.chmod(mode)

    def put(self, source: Path, inside: str | Path) -> None:
        """Copy a file or a folder of the host to the machine, owned by root."""
        target = self.path(inside)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy = ["cp", "--recursive", "--preserve=mode,timestamps", "--no-target-directory"]
        subprocess.run([*copy, source, target], check=True)

    def add_unit(self, name: str, text: str) -> None:
        """Write a unit file of the test's own into /etc/systemd/system and have it loaded."""
        assert PurePosixPath(name).name == name, f"{name} is not a unit's name"
        self.write(f"/etc/systemd/system/{name}", text)
        self.systemctl("daemon-reload")

    # -- sockets -------------------------------------------------------------------------------------------------

    def tcp_socket(self) -> socket.socket:
        """A TCP socket of the machine's own network, usable from the host: 127.0.0.1 is the machine's."""
        with processes.network_of(self.pid):
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)

    def in_network(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs the host's argv with the machine's network interfaces."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", *map(str, argv)]

    def connect(self, where: str | int, timeout: float = 30) -> socket.socket:
        """A connected socket: to a Unix socket's path on the machine, or to a port of its 127.0.0.1."""
        if isinstance(where, int):
            connected = self.tcp_socket()
            target: str | tuple[str, int] = ("127.0.0.1", where)
        else:
            connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            target = str(self.path(where))
        connected.settimeout(timeout)
        try:
            connected.connect(target)
        except OSError:
            connected.close()
            raise
        return connected

    def http(
        self,
        method: str,
        where: str | int,
        path: str,
        *,
        json_body: Any = None,  # noqa: ANN401
        body: bytes | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30,
    ) -> processes.Answer:
        """One HTTP request as root: where is a Unix socket's path on the machine or a port of its 127.0.0.1."""
        sent = dict(headers or {})
        if json_body is not None:
            body = json.dumps(json_body).encode()
            sent.setdefault("Content-Type", "application/json")
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        host = f"127.0.0.1:{where}" if isinstance(where, int) else "localhost"
        connected = self.connect(where, timeout)
        return processes.exchange(connected, method, path, host=host, headers=sent, body=body)

    # -- waiting -------------------------------------------------------------------------------------------------

    def wait_for_unit(self, name: str, state: str = "active", limit: float = 30) -> dict[str, str]:
        """Wait until the unit's ActiveState is as asked; its properties then.

        Raises:
            AssertionError: it is another one after limit seconds; its status is in the message.
        """
        deadline = time.monotonic() + limit
        while (found := self.unit(name)).get("ActiveState") != state:
            status = self.systemctl("status", name, check=False)
            assert time.monotonic() < deadline, f"{name} is not {state} after {limit:g} s:\n{status}"
            time.sleep(0.05)
        return found


def wait_until(ask: Callable[[], object], what: str, limit: float = 30, pause: float = 0.05) -> None:
    """Wait until ask() answers something true.

    Raises:
        AssertionError: it did not within limit seconds; what names the thing that did not come.
    """
    deadline = time.monotonic() + limit
    while not ask():
        assert time.monotonic() < deadline, f"waited {limit:g} s in vain: {what}"
        time.sleep(pause)


def failed_units(machine: Machine) -> list[str]:
    """The names of the machine's failed units."""
    return re.findall(r"^(\S+)", machine.systemctl("list-units", "--failed", "--plain", "--no-legend"), re.M)
