"""Memory stays where it is, however many texts come, end and are cut off."""

import json
import subprocess
import sys
from pathlib import Path

from tests.bench import decoders

PROGRAM = Path(decoders.__file__).parent / "inside" / "generate_churn.py"
REQUESTS = 1_500
MOST_GROWTH = 8 << 20
"""Bytes. The caches of these requests are 40 MB together, so that a leak of one in five would show."""


def test_texts_that_come_and_go_leave_nothing(tmp_path: Path) -> None:
    folder = decoders.build(tmp_path / "tiny", decoders.TINY, "fp32")
    command = [sys.executable, str(PROGRAM), str(folder), str(REQUESTS)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=110)
    found = json.loads(done.stdout)
    assert found["after"] - found["before"] < MOST_GROWTH
