"""One life of a worker as a child process, with the semantics of its systemd unit (systemd.service(5))."""

import asyncio
import collections
import ctypes
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from rbee.host.units.facts import CLD_EXITED, CLD_KILLED, UnitFacts
from rbee.host.units.notify_socket import NotifySocket, microseconds

MOST_LINES = 2000
EXIT_EXEC = 203  # systemd.exec(5): the program could not be executed
_MOST_LINE_BYTES = 16384
_PR_SET_PDEATHSIG = 1
_CLEAN_SIGNALS = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE})
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class ChildSettings:
    """The unit's settings as rbee-worker@.service has them; durations in seconds."""

    start_limit_s: float = 90.0
    stop_limit_s: float = 30.0
    watchdog_s: float = 30.0
    restart_delay_s: float = 1.0
    start_burst: int = 5
    start_interval_s: float = 60.0
    no_restart_codes: frozenset[int] = field(default=frozenset({78, 69, 71}))


class ChildLife:
    """Runs the process once, from spawn to exit; ``tell`` hears each change of the facts at once."""

    def __init__(
        self,
        facts: UnitFacts,
        settings: ChildSettings,
        tell: Callable[[UnitFacts], None],
        lines: "collections.deque[tuple[float, str]]",
    ) -> None:
        self.facts = facts
        self._settings = settings
        self._tell = tell
        self._lines = lines
        self._process: asyncio.subprocess.Process | None = None
        self._deadline: float | None = None
        self._result = ""
        self._stopping = False
        self._changed = asyncio.Event()

    async def run(self, command: Sequence[str], environment: Mapping[str, str]) -> UnitFacts:
        """Start ``command``, supervise it to its end, and return the facts of the end (inactive or failed)."""
        invocation = uuid.uuid4().hex
        began_us = _now_us()
        notify = NotifySocket(self._on_notify)
        try:
            process, why = await self._spawn(command, environment, invocation, notify)
            self._set(
                active_state="activating", sub_state="start", invocation_id=invocation, result="success",
                main_pid=0 if process is None else process.pid, status_text=why, exec_code=0, exec_status=0,
                load_state="loaded", inactive_exit_monotonic_us=began_us, active_enter_monotonic_us=0, job_result="",
            )  # fmt: skip
            return self._ended(EXIT_EXEC) if process is None else await self._run(process, notify)
        finally:
            notify.close()

    async def _spawn(
        self, command: Sequence[str], environment: Mapping[str, str], invocation: str, notify: NotifySocket
    ) -> tuple[asyncio.subprocess.Process | None, str]:
        """The process, or None and why the program cannot be executed."""
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env={
                    **environment,
                    "NOTIFY_SOCKET": notify.address,
                    "WATCHDOG_USEC": str(int(self._settings.watchdog_s * 1e6)),
                    "INVOCATION_ID": invocation,
                },
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,  # Ctrl+C in a terminal is for the hive, which stops its workers in order
                preexec_fn=_end_with_parent(os.getpid()),
            )
        except OSError as error:
            return None, f"cannot be executed: {error.strerror}"
        return process, ""

    async def _run(self, process: asyncio.subprocess.Process, notify: NotifySocket) -> UnitFacts:
        self._process = process
        notify.listen_to(process.pid)
        self._deadline = time.monotonic() + self._settings.start_limit_s
        if self._stopping:
            self._begin_stop()
        reading = asyncio.create_task(self._read_lines(process), name=f"output of {self.facts.worker_id}")
        try:
            code = await self._supervise(process)
            async with asyncio.timeout(1.0):
                await reading
        except TimeoutError:
            reading.cancel()  # a grandchild holds the pipe open
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        return self._ended(code)

    async def _supervise(self, process: asyncio.subprocess.Process) -> int:
        exited = asyncio.create_task(process.wait(), name=f"exit of {self.facts.worker_id}")
        try:
            while not exited.done():
                self._changed.clear()
                changed = asyncio.create_task(self._changed.wait())
                left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
                await asyncio.wait({exited, changed}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if not exited.done() and self._deadline is not None and time.monotonic() >= self._deadline:
                    self._on_deadline()
            return exited.result()
        finally:
            exited.cancel()

    def stop(self) -> None:
        """SIGTERM now, SIGKILL when the stop limit has passed."""
        if not self._stopping:
            self._stopping = True
            if self._process is not None:
                self._begin_stop()

    @property
    def stop_requested(self) -> bool:
        """Whether somebody asked for the end."""
        return self._stopping

    def send_signal(self, number: int) -> None:
        """Send a signal to the process, if it lives."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def _begin_stop(self) -> None:
        self._enter_stop("stop-sigterm")
        self.send_signal(signal.SIGTERM)

    def _enter_stop(self, sub_state: str) -> None:
        self._deadline = time.monotonic() + self._settings.stop_limit_s
        self._set(active_state="deactivating", sub_state=sub_state)
        self._changed.set()

    def _on_deadline(self) -> None:
        """A limit passed: of the start, of the watchdog, or of the stop, after which there is only SIGKILL."""
        if self.facts.sub_state == "start":
            self._result = "timeout"
            self._begin_stop()
        elif self.facts.running:
            self._result = "watchdog"
            self._enter_stop("stop-watchdog")
            self.send_signal(signal.SIGABRT)
        else:
            self._result = self._result or "timeout"
            self._deadline = None
            self._set(sub_state="stop-sigkill")
            self.send_signal(signal.SIGKILL)

    def _on_notify(self, message: Mapping[str, str]) -> None:
        extend = microseconds(message.get("EXTEND_TIMEOUT_USEC", ""))
        if extend is not None and self._deadline is not None:
            self._deadline = max(self._deadline, time.monotonic() + extend / 1e6)
        status = message.get("STATUS")
        if message.get("READY") == "1" and self.facts.sub_state == "start" and not self._stopping:
            self._feed_watchdog()
            self._set(
                active_state="active", sub_state="running", active_enter_monotonic_us=_now_us(),
                status_text=self.facts.status_text if status is None else status,
            )  # fmt: skip
        elif status is not None:
            self._set(status_text=status)
        if message.get("WATCHDOG") == "1" and self.facts.running:
            self._feed_watchdog()
        if message.get("STOPPING") == "1" and self.facts.running:
            self._enter_stop("stop-sigterm")
        self._changed.set()

    def _feed_watchdog(self) -> None:
        self._deadline = time.monotonic() + self._settings.watchdog_s if self._settings.watchdog_s else None

    def _ended(self, code: int) -> UnitFacts:
        unready = self.facts.sub_state == "start"
        self._result = self._result or _result_of(code, unready=unready)
        failed = self._result != "success"
        return msgspec.structs.replace(
            self.facts,
            active_state="failed" if failed else "inactive",
            sub_state="failed" if failed else "dead",
            main_pid=0,
            result=self._result,
            exec_code=CLD_EXITED if code >= 0 else CLD_KILLED,
            exec_status=abs(code),
        )

    async def _read_lines(self, process: asyncio.subprocess.Process) -> None:
        """Keep the last lines and pass all on to our own stderr."""
        if process.stdout is None:
            return
        rest = b""
        while chunk := await process.stdout.read(65536):
            sys.stderr.write(chunk.decode("utf-8", "replace"))
            *whole, rest = (rest + chunk).split(b"\n")
            for line in whole:
                self._lines.append((time.time(), line[:_MOST_LINE_BYTES].decode("utf-8", "replace")))
            rest = rest[:_MOST_LINE_BYTES]
        if rest:
            self._lines.append((time.time(), rest.decode("utf-8", "replace")))

    def _set(self, **changes: object) -> None:
        facts = msgspec.structs.replace(self.facts, **changes)
        if facts != self.facts:
            self.facts = facts
            self._tell(facts)


def _result_of(code: int, *, unready: bool) -> str:
    """systemd's Result= of an exit that no limit caused; a clean exit before READY breaks the protocol."""
    if code < 0:
        return "success" if -code in _CLEAN_SIGNALS else "signal"
    if code > 0:
        return "exit-code"
    return "protocol" if unready else "success"


def _end_with_parent(parent: int) -> Callable[[], None]:
    """What the child does before exec: ask for SIGTERM at the end of its parent (prctl(2), PR_SET_PDEATHSIG)."""

    def prepare() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def _now_us() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
