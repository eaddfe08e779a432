"""The project as its packages have it: a copy of the source with the queen's straight way compiled."""

import shutil
import subprocess
import sys
from pathlib import Path

from tests.machines.testbed import cache
from tests.machines.testbed.errors import TestbedError
from tests.machines.testbed.packages import CHECKOUT, LOCKS

_COMPILER = CHECKOUT / "packaging/native.py"


def folder() -> Path:
    """The folder to put on Python's path in place of ``daemons``, for the Python that runs this.

    Raises:
        TestbedError: it cannot be compiled; the compiler's last words are in the message.
    """
    source = CHECKOUT / "daemons"
    lock = (LOCKS / "test.txt").read_text()
    key = cache.digest([sys.version, sys.executable, lock, _COMPILER.read_text(), cache.digest_files(source)])

    def build(to: Path) -> None:
        shutil.copytree(source / "rbee", to / "rbee", ignore=shutil.ignore_patterns("__pycache__"))
        command = [sys.executable, "-P", str(_COMPILER), str(to)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            needs = "it needs a C compiler and Python's headers (apt-get install gcc libc6-dev python3-dev)"
            said = f"{done.stdout[-1500:]}{done.stderr[-1500:]}"
            raise TestbedError(f"the queen's straight way could not be compiled; {needs}:\n{said}")

    return cache.build_once("native", key, build)
