"""Waits, before a worker takes memory of a GPU, for what the driver has yet to free of processes that ended there."""

import logging
import time

from rbee.host.machine import GpuProcess, gpu_processes, process_lives
from rbee.wire.log import log

LOGGER = logging.getLogger(__name__)
FREE_LIMIT_S = 5.0
_LOOK_S = 0.05
_MB = 1 << 20


def await_freed(device: int, limit_s: float = FREE_LIMIT_S) -> None:
    """Return once the driver counts no memory of the GPU for a process that lives no more, or after ``limit_s``.

    Blocks. A hive waits for that before it starts a worker. systemd, which starts one anew that crashed, does not,
    and a load whose memory does not suffice is not tried again.
    """
    deadline = time.monotonic() + limit_s
    while held := _held_by_ended(device):
        if time.monotonic() >= deadline:
            log(
                LOGGER, logging.WARNING, "the driver counts memory for what ended: the load goes on with what is left",
                device=device, held_mb=-(-sum(one.size for one in held) // _MB), pids=[one.pid for one in held],
                waited_s=limit_s,
            )  # fmt: skip
            return
        time.sleep(_LOOK_S)  # the driver has no event for memory that becomes free


def _held_by_ended(device: int) -> list[GpuProcess]:
    return [one for one in gpu_processes() if one.device == device and not process_lives(one.pid)]
