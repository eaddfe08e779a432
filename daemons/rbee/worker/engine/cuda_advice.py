"""Turns what the loader or the CUDA runtime said into what is missing and which package brings it."""

import re
from dataclasses import dataclass

from rbee.host.machine import DRIVER_ADVICE

MISSING_LIBRARY = re.compile(r"(lib[\w.+-]+\.so[.\d]*): cannot open shared object file")
OLD_DRIVER = re.compile(r"CUDA driver version is insufficient|CUDA failure 35\b", re.IGNORECASE)
NO_DRIVER = re.compile(
    r"no CUDA-capable device|CUDA_ERROR_NO_DEVICE|libcuda\.so|CUDA failure 100\b|driver/library version mismatch|"
    r"no CUDA driver",
    re.IGNORECASE,
)
BAD_DEVICE = re.compile(r"invalid device ordinal|CUDA failure 101", re.IGNORECASE)
# Packages of NVIDIA's apt source, which has CUDA 13.1 for Debian 12 and 13 alike; Debian's own are of CUDA 11 and 12.
PACKAGES = (
    ("libcuda.so", DRIVER_ADVICE),
    ("libcublas", "libcublas-13-1"),
    ("libcudnn", "libcudnn9-cuda-13"),
    ("libcudart", "cuda-cudart-13-1"),
    ("libcufft", "libcufft-13-1"),
    ("libcurand", "libcurand-13-1"),
    ("libnvrtc", "cuda-nvrtc-13-1"),
    ("libnvJitLink", "libnvjitlink-13-1"),
)
MOST_QUOTED = 400


@dataclass(frozen=True, slots=True)
class Advice:
    """``problem`` in the loader's words, ``library`` where one is missing, ``package`` that would bring it.

    ``driver`` is whether the machine has a driver: without one, a library alone would not help.
    """

    problem: str
    library: str | None
    package: str | None
    driver: bool = True

    @property
    def sentence(self) -> str:
        """The whole advice for a person."""
        what = f"{self.library} cannot be loaded" if self.library else self.problem
        todo = f"install {self.package}" if self.package else "run nvidia-smi to check driver and device"
        if not self.driver and self.package != DRIVER_ADVICE:
            then = self.package or "try again"
            todo = f"install {DRIVER_ADVICE}: this machine has no NVIDIA driver; then {then}"
        return (
            f"backend cuda was asked for and the CUDA provider did not start: {what}; {todo}, "
            "or set `backend: cpu` in the worker's definition"
        )


def advise(messages: str, *, driver: bool) -> Advice:
    """Read ``messages`` (stderr and exception text of the attempt) and say what is missing.

    ``driver``: whether the machine has an NVIDIA driver.
    """
    found = MISSING_LIBRARY.search(messages)
    if found is not None:
        library = found.group(1)
        package = next((name for prefix, name in PACKAGES if library.startswith(prefix)), None)
        return Advice(found.group(0), library, package, driver)
    if OLD_DRIVER.search(messages) and driver:
        return Advice(f"the NVIDIA driver is too old for CUDA 13 ({_last_line(messages)})", None, DRIVER_ADVICE, driver)
    if OLD_DRIVER.search(messages) or NO_DRIVER.search(messages):
        return Advice(f"no CUDA driver or device answers ({_last_line(messages)})", None, DRIVER_ADVICE, driver)
    if BAD_DEVICE.search(messages):
        return Advice("this machine has no CUDA device of that number", None, None, driver)
    return Advice(_last_line(messages) or "the runtime gave no reason", None, None, driver)


def _last_line(messages: str) -> str:
    lines = [line.strip() for line in messages.splitlines() if line.strip()]
    errors = [line for line in lines if "[E:" in line or "error" in line.lower()]
    chosen = (errors or lines or [""])[-1]
    return re.sub(r"/[\w./-]+/", "", chosen)[:MOST_QUOTED]
