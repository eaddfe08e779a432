"""Which cores a worker keeps to, on this machine's own kernel."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.wire.errors import ConfigError
from rbee.worker.engine.cores import busy_times, idlest, pin

STAT = "cpu  30 0 3 400 5 1 2 0 0 0\ncpu0 10 1 2 100 3 1 1 1 5 0\ncpu1 20 0 1 300 2 0 1 0 0 0\nintr 5 0\n"
times = st.dictionaries(st.integers(0, 15), st.integers(0, 1000))


def test_a_core_is_busy_with_all_but_idling_and_waiting_for_disks() -> None:
    assert busy_times(STAT) == {0: 10 + 1 + 2 + 1 + 1 + 1, 1: 20 + 1 + 1}


@given(times, times, st.sets(st.integers(0, 15), min_size=1), st.integers(1, 16))
def test_the_idlest_are_of_those_allowed_and_none_left_out_was_idler(
    before: dict[int, int], after: dict[int, int], allowed: set[int], count: int
) -> None:
    def busy(core: int) -> int:
        return after.get(core, 0) - before.get(core, 0)

    chosen = idlest(before, after, allowed, count)
    assert chosen <= allowed
    assert len(chosen) == min(count, len(allowed))
    left = allowed - chosen
    assert not left or max(map(busy, chosen)) <= min(map(busy, left))


def test_a_process_and_its_threads_keep_to_the_cores() -> None:
    program = (
        "import os, threading\n"
        "from rbee.worker.engine.cores import pin\n"
        "go, here = threading.Event(), threading.Event()\n"
        "seen = []\n"
        "def old():\n"
        "    here.set(); go.wait(60); seen.append(os.sched_getaffinity(0))\n"
        "thread = threading.Thread(target=old); thread.start(); here.wait(60)\n"
        "cores = pin(1); go.set(); thread.join()\n"
        "new = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0))); new.start(); new.join()\n"
        "assert len(cores) == 1 and seen == [cores, cores], (cores, seen)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_more_cores_than_there_are_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="pin_cores: the worker may use"):
        pin(1024)
