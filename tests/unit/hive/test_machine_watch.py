"""The machine's facts, where reading them hangs or fails."""

import asyncio
import errno
import os
import threading
import time

from rbee.hive.machine_watch import MachineWatch
from rbee.wire.messages import MachineFacts

FACTS = MachineFacts("node", 2, 4, 3, 2, 1)


async def test_a_read_that_hangs_holds_up_nothing_and_is_made_once() -> None:
    go_on, reads = threading.Event(), []

    def read() -> MachineFacts:
        reads.append(threading.current_thread())
        assert go_on.wait(10)
        return FACTS

    watch = MachineWatch(read, limit_s=0.1)
    began = time.monotonic()
    for _ in range(3):
        assert (await watch.facts()).ram_total_bytes == 0
    assert time.monotonic() - began < 1.0
    assert len(reads) == 1
    assert reads[0].daemon
    go_on.set()
    await asyncio.sleep(0.05)
    assert await watch.facts() == FACTS
    assert await watch.facts() == FACTS
    assert len(reads) == 2


async def test_a_read_that_fails_leaves_the_last_facts() -> None:
    found: list[MachineFacts] = [FACTS]

    def read() -> MachineFacts:
        if not found:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return found.pop()

    watch = MachineWatch(read)
    assert await watch.facts() == FACTS
    assert await watch.facts() == FACTS
