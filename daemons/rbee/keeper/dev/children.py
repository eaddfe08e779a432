"""Daemons as children of this terminal: started with a clean environment, ready by sd_notify, ended for certain."""

import asyncio
import collections
import contextlib
import ctypes
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from rbee.keeper.failure import CommandFailed

_NOT_PASSED_ON = frozenset(
    {
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_FDNAMES",
        "CREDENTIALS_DIRECTORY",
        "JOURNAL_STREAM",
        "INVOCATION_ID",
        "QUEEN_CALLBACK_URL",
        "QUEEN_PUBLIC_URL",
        "RBEE_CONFIG",
    }
)
_PR_SET_CHILD_SUBREAPER = 36
_TAIL_LINES = 20
_MOST_TAIL_BYTES = 64 << 10
_LONGEST_LINE = 1 << 20
_OUTPUT_END_S = 1.0


class ChildFailed(CommandFailed):
    """A child ended when it should run; the message carries its last log lines."""

    code = "CHILD_FAILED"


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What children inherit: nothing that a service manager meant for this process, no configuration of another."""
    kept = {name: value for name, value in environment.items() if name not in _NOT_PASSED_ON}
    return kept | {"ORT_DISABLE_TELEMETRY": "1", "PYTHONUNBUFFERED": "1"}


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_leftovers() -> list[int]:
    """Kill and reap every child process that is still there; returns their PIDs."""
    ended: list[int] = []
    while True:
        children = [pid for pid in _children() if pid not in ended]
        if not children:
            return ended
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
            ended.append(pid)


def _children() -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                # the command's name may hold anything, a closing parenthesis too: the parent comes after the last
                fields = (folder / "stat").read_text(encoding="latin-1").rpartition(")")[2].split()
                if int(fields[1]) == os.getpid():
                    found.append(int(folder.name))
    return found


class _Notifications(asyncio.DatagramProtocol):
    """Receives sd_notify datagrams of one child (sd_notify(3))."""

    def __init__(self, ready: asyncio.Event) -> None:
        self._ready = ready

    def datagram_received(self, data: bytes, addr: object) -> None:
        if b"READY=1" in data.split(b"\n"):
            self._ready.set()


class Child:
    """One daemon: ``argv`` run in a session of its own, its output in ``log``, also given to ``show`` by line."""

    def __init__(
        self, name: str, argv: Sequence[str], log: Path, notify: Path, show: Callable[[str], None] | None
    ) -> None:
        self.name = name
        self.log = log
        self._argv = list(argv)
        self._notify = notify
        self._show = show
        self._ready = asyncio.Event()
        self._transport: asyncio.DatagramTransport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._tasks: list[asyncio.Task[object]] = []
        self._ended: asyncio.Task[int] | None = None

    async def start(self, environment: Mapping[str, str]) -> None:
        """Start the process; returns at once. Raises CommandFailed when it cannot be started."""
        await self._listen()
        inherited = dict(environment) | {"NOTIFY_SOCKET": str(self._notify)}
        # should this terminal be killed outright, the kernel tells the child
        guard = shutil.which("setpriv")
        argv = [guard, "--pdeathsig", "TERM", "--", *self._argv] if guard else self._argv
        with self.log.open("wb") as output:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    *argv,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE if self._show else output,
                    stderr=asyncio.subprocess.STDOUT,
                    env=inherited,
                    start_new_session=True,
                    limit=_LONGEST_LINE,
                )
            except OSError as error:
                raise ChildFailed(f"{self.name} cannot be started: {error.strerror}") from error
        if self._show is not None and self._process.stdout is not None:
            copy = self._copy(self._process.stdout, self._show)
            self._tasks.append(asyncio.create_task(copy, name=f"output of {self.name}"))
        self._ended = asyncio.create_task(self._process.wait(), name=f"end of {self.name}")

    async def ready(self, limit_s: float) -> None:
        """Wait until the child says READY=1; raises ChildFailed when it ends first or takes longer than ``limit_s``."""
        if self._ended is None:
            raise ChildFailed(f"{self.name} was not started")
        waiting = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({waiting, self._ended}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if self._ended.done():
            raise self.death()
        if not self._ready.is_set():
            raise ChildFailed(f"{self.name} was not ready within {limit_s:g} s{self._last_lines()}")

    async def death_of_child(self) -> ChildFailed:
        """Wait until the child ends, and return the error that tells so."""
        if self._ended is not None:
            await asyncio.shield(self._ended)
        return self.death()

    def death(self) -> ChildFailed:
        """The error of a child that ended by itself, with its last log lines."""
        code = self._process.returncode if self._process else None
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        return ChildFailed(f"{self.name} {how}{self._last_lines()}")

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._process is not None and self._process.returncode is None

    async def stop(self, limit_s: float) -> bool:
        """SIGTERM, at most ``limit_s`` to end, then SIGKILL; True when it ended by itself."""
        in_time = True
        if self._process is not None and self._ended is not None:
            self._signal(signal.SIGTERM)
            await asyncio.wait({self._ended}, timeout=limit_s)
            if not self._ended.done():
                in_time = False
                self._signal(signal.SIGKILL)
                await self._ended
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_OUTPUT_END_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._transport is not None:
            self._transport.close()
        return in_time

    def kill(self) -> None:
        """SIGKILL at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.running and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    async def _listen(self) -> None:
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        bound.setblocking(False)
        bound.bind(str(self._notify))
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: _Notifications(self._ready), sock=bound)

    async def _copy(self, output: asyncio.StreamReader, show: Callable[[str], None]) -> None:
        with self.log.open("ab") as file:
            while line := await output.readline():
                _append(file, line)
                show(f"{self.name}: {line.decode(errors='replace').rstrip()}")

    def _last_lines(self) -> str:
        lines = tail(self.log)
        return f"; its log {self.log} ends with:\n" + "\n".join(f"  | {line}" for line in lines) if lines else ""


def _append(file: BinaryIO, line: bytes) -> None:
    file.write(line)
    file.flush()


def tail(log: Path, lines: int = _TAIL_LINES) -> list[str]:
    """The last ``lines`` of a log file; none where there is no file."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _MOST_TAIL_BYTES))
            data = file.read()
    except OSError:
        return []
    return list(collections.deque(data.decode(errors="replace").splitlines(), maxlen=lines))


def module_argv(module: str, *arguments: str) -> list[str]:
    """The command line that runs a module of ours with this very interpreter."""
    return [sys.executable, "-m", module, *arguments]
