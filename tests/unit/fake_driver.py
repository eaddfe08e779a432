"""The fake driver of GPUs that do not exist, in this process: what it tells is written by a test."""

import ctypes
from pathlib import Path

import pynvml
import pytest
from tests.behaviour.support import fake_gpu

from rbee.host import machine


class Driver:
    """Built into ``folder`` and in the driver's place for the length of a test; fails without a compiler."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._processes, self._lost = folder / "gpu-processes", folder / "gpu-lost"
        monkeypatch.setenv("FAKE_GPU_PROCESSES", str(self._processes))
        monkeypatch.setenv("FAKE_GPU_LOST", str(self._lost))
        monkeypatch.setattr(machine, "DRIVER_PATHS", (Path("/"),))
        monkeypatch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(fake_gpu.build(folder))))
        monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})

    def counts(self, *processes: tuple[int, int, int]) -> None:
        """Processes on GPUs: device, process, bytes each."""
        new = self._processes.with_suffix(".new")
        new.write_text("".join(f"{device} {pid} {size}\n" for device, pid, size in processes))
        new.replace(self._processes)

    def loses(self, device: int) -> None:
        """That GPU has fallen off the bus."""
        self._lost.write_text(str(device))
