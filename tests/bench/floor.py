"""The floor of the readiness path: when a bare listener on the bus hears that a unit is active."""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bench.usage import PYTHON
from tests.machines.testbed import Machine

_PROGRAM = Path(__file__).with_name("inside") / "listen.py"
_PLACE = "/run/bench/listen.py"


class Floor:
    """A process of its own on the machine, unprivileged, for the length of a block."""

    def __init__(self, machine: Machine, unit: str) -> None:
        self._machine = machine
        self._unit = unit
        self._heard: list[int] = []
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="floor", daemon=True)

    def __enter__(self) -> Self:
        self._machine.write(_PLACE, _PROGRAM.read_text())
        self._process = self._machine.popen([PYTHON, "-I", _PLACE, self._unit], user="nobody")
        assert self._process.stdout is not None
        said = self._process.stdout.readline()
        assert said == "listening\n", f"the bare listener did not come up: {said}{self._process.stdout.read()}"
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._thread.join(5)
        self._process.communicate()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self._heard.append(int(line))
                self._news.notify_all()

    def first_after(self, moment_us: int, limit_s: float = 5.0) -> int:
        """When it first heard the unit to be active after a moment (CLOCK_MONOTONIC, us)."""
        end = time.monotonic() + limit_s
        with self._news:
            while not self._heard or self._heard[-1] < moment_us:
                assert self._news.wait(end - time.monotonic()), f"the bare listener heard nothing in {limit_s:g} s"
            return next(heard for heard in self._heard if heard >= moment_us)
