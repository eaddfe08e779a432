"""Catches what native libraries write to stderr while a block runs: a loader's own words reach nobody otherwise."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
MOST_BYTES = 64 << 10


class NativeMessages:
    """What was written; ``text`` is complete once the block has ended."""

    text: str = ""


@contextmanager
def captured_stderr() -> Iterator[NativeMessages]:
    """Redirect file descriptor 2 into memory for the block's time, for the whole process.

    Nothing is lost: the caller has the text and decides what to show.
    """
    messages = NativeMessages()
    saved = os.dup(2)
    memory = os.memfd_create("stderr", os.MFD_CLOEXEC)
    try:
        os.dup2(memory, 2)
        yield messages
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        raw = os.pread(memory, MOST_BYTES, 0)
        os.close(memory)
        messages.text = COLOUR.sub("", raw.decode("utf-8", "replace"))
