"""A daemon of the project as a child process: READY=1 awaited on its own notify socket, its log kept line by line."""

import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

PASSED_ON = ("PATH", "HOME", "LANG", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR")
START_LIMIT_S = 60.0
STOP_LIMIT_S = 40.0


def children_of(pid: int) -> set[int]:
    """The processes that a process has started and that have not ended."""
    return {
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    }


class DaemonProcess:
    """One running daemon. Its environment holds nothing of the test's own but what it needs."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rbee-notify-")
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        address = str(Path(self._folder.name) / "notify")
        self._notify.bind(address)
        clean = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
        self.process = subprocess.Popen(
            list(argv),
            env={**clean, "NOTIFY_SOCKET": address, "PYTHONASYNCIODEBUG": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log: list[str] = []
        self._notices: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        self._listener = threading.Thread(target=self._read_notices, daemon=True)
        self._listener.start()

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.log.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def _read_notices(self) -> None:
        # read all the time, as systemd does: a full socket would block the daemon
        while notice := self._notify.recv(4096):
            with self._news:
                self._notices.append(notice.decode())
                self._news.notify_all()

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self, limit_s: float = START_LIMIT_S) -> str:
        """Wait for READY=1 and return the status text that came with it; fails with the log if it never comes."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            with self._news:
                while self._notices:
                    notice = self._notices.pop(0)
                    if "READY=1" in notice.splitlines():
                        return notice
                self._news.wait(0.2)
            assert self._notices or self.process.poll() is None, f"ended with {self.process.returncode}:\n{self.text}"
        raise AssertionError(f"not ready within {limit_s} s:\n{self.text}")

    @property
    def text(self) -> str:
        """The whole log so far."""
        return "\n".join(self.log)

    def wait_log(self, wanted: Callable[[str], bool] | str, limit_s: float = 10.0, start: int = 0) -> str:
        """Wait for a log line and return it; ``start`` is the index of the first line to look at."""
        fits = (lambda line: wanted in line) if isinstance(wanted, str) else wanted
        end = time.monotonic() + limit_s
        at = start
        with self._news:
            while True:
                for line in self.log[at:]:
                    at += 1
                    if fits(line):
                        return line
                left = end - time.monotonic()
                assert left > 0, f"no such line within {limit_s} s: {wanted}\n{self.text}"
                self._news.wait(min(left, 1.0))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait_end(self, limit_s: float = STOP_LIMIT_S) -> int:
        """Wait for the process to end by itself and return its exit code."""
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {limit_s} s:\n{self.text}") from None
        self._reader.join(5)
        return code

    def stop(self) -> int:
        """Ask it to end, and return its exit code; kill it where it does not."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            code = self.wait_end()
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._close()
        return code

    def kill(self) -> None:
        """End it as a power loss would: SIGKILL."""
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        if self._notify.fileno() < 0:
            return
        self._reader.join(5)
        if self.process.stderr is not None:
            self.process.stderr.close()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._notify.getsockname())
        self._listener.join(5)
        self._notify.close()
        self._folder.cleanup()
