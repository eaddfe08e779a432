"""Someone who types `rbee`: a process of its own with a home of its own, beside a stack of processes."""

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

RBEE = (sys.executable, "-m", "rbee.keeper.main")
_PASSED_ON = ("PATH", "LANG", "PYTHONPATH", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Done:
    """A command that ended; ``pieces`` are the chunks of stdout with the monotonic time at which each came."""

    code: int
    out: str
    err: str
    pieces: Sequence[tuple[float, str]] = field(default=(), repr=False)
    ended: float = 0.0


class Command:
    """A command that runs; its stdout is read as it comes."""

    def __init__(self, argv: Sequence[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            list(argv), env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._pieces: list[tuple[float, str]] = []
        self._err = b""
        self._selector = selectors.DefaultSelector()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ)

    @property
    def out(self) -> str:
        return "".join(piece for _, piece in self._pieces)

    @property
    def err(self) -> str:
        return self._err.decode(errors="replace")

    def _read(self, limit_s: float) -> None:
        for key, _ in self._selector.select(limit_s):
            chunk = os.read(key.fd, 65536)
            if not chunk:
                self._selector.unregister(key.fileobj)
            elif key.fileobj is self.process.stdout:
                self._pieces.append((time.monotonic(), chunk.decode(errors="replace")))
            else:
                self._err += chunk

    def wait_text(self, letters: int = 1, limit_s: float = 30.0) -> str:
        """Wait until stdout has so many letters, and return what it has."""
        end = time.monotonic() + limit_s
        while len(self.out) < letters:
            assert self._selector.get_map() and time.monotonic() < end, f"{self.out!r}, on stderr: {self.err}"
            self._read(0.2)
        return self.out

    def wait_said(self, text: str, limit_s: float = 30.0) -> str:
        """Wait until stdout or stderr has ``text``; returns both."""
        end = time.monotonic() + limit_s
        while text not in self.out + self.err:
            assert self._selector.get_map() and time.monotonic() < end, f"no {text!r} in: {self.out}{self.err}"
            self._read(0.2)
        return self.out + self.err

    def interrupt(self) -> None:
        """Ctrl+C."""
        self.process.send_signal(signal.SIGINT)

    def wait(self, limit_s: float = 60.0) -> Done:
        """Wait for its end and return all that it said."""
        end = time.monotonic() + limit_s
        try:
            while self._selector.get_map():
                assert time.monotonic() < end, f"still running after {limit_s} s: {self.out}{self.err}"
                self._read(0.5)
            code = self.process.wait(max(0.1, end - time.monotonic()))
        finally:
            self.close()
        return Done(code, self.out, self.err, self._pieces, time.monotonic())

    def close(self) -> None:
        """End it where it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._selector.close()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()


class Person:
    """Someone with the home folder ``home``; ``flags`` go before each command's name (sockets, URLs)."""

    def __init__(self, home: Path, *flags: object) -> None:
        self.home = home
        self.flags = [str(flag) for flag in flags]
        self.env = {name: os.environ[name] for name in _PASSED_ON if name in os.environ} | {
            "HOME": str(home),
            "XDG_STATE_HOME": str(home / "state"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_RUNTIME_DIR": "",
            "PYTHONUNBUFFERED": "1",
        }

    @property
    def partials(self) -> list[Path]:
        """The files in which texts of broken answers are kept."""
        return sorted((self.home / "state" / "rbee" / "partial").glob("*.txt"))

    def start(self, *arguments: object, prefix: Sequence[str] = ()) -> Command:
        """Start `rbee ARGUMENTS` and return at once; ``prefix`` is a command line to run it by."""
        return Command([*prefix, *RBEE, *self.flags, *map(str, arguments)], self.env)

    def rbee(self, *arguments: object, limit_s: float = 60.0) -> Done:
        """Run `rbee ARGUMENTS` to its end."""
        return self.start(*arguments).wait(limit_s)
