"""A fake GPU: a library in the place of the driver's libnvidia-ml.so.1, built with the C compiler of this machine."""

import shutil
import subprocess
from pathlib import Path

LIBRARY = "libnvidia-ml.so.1"
SOURCE = Path(__file__).with_name("fake_nvml.c")


def build(folder: Path) -> Path:
    """Build the library into ``folder`` and return its path; fails with the compiler's words."""
    compiler = shutil.which("cc")
    assert compiler, "no C compiler: apt-get install gcc libc6-dev (tests/run does)"
    target = folder / LIBRARY
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(target), str(SOURCE)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return target
