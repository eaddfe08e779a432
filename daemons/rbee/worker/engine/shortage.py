"""What it means that the runtime could not allocate memory: of the machine, of a GPU, or of a GPU in one piece."""

import re
from collections.abc import Callable

from rbee.wire.errors import OutOfMemory, OutOfVram, VramFragmented
from rbee.wire.shortage import needs
from rbee.worker.engine.runtime import available_memory

MARKS = (
    "Failed to allocate memory",
    "is smaller than requested bytes of",
    "out of memory",
    "bad_alloc",
    "bad allocation",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""Words of the runtime's errors where memory is short."""
_LESS = "ask for less at once, or choose a smaller or quantised model"
_RESTART = "restart the worker with 'rbee worker restart', and where that does not help the others on this GPU"
_ASKED = re.compile(r"requested buffer of size (\d+)")
_OVER_LIMIT = re.compile(r"Available memory of (\d+) is smaller than requested bytes of (\d+)")
"""What the runtime's arena says past gpu_mem_limit, whatever the device has free."""


def is_shortage(error: Exception) -> bool:
    """Whether a failure of the runtime, or of Python, is one of memory."""
    return isinstance(error, MemoryError) or any(mark in str(error) for mark in MARKS)


def free_vram(device: int) -> int | None:
    """Bytes that the driver says are free on a GPU; None where it does not tell. Blocks."""
    # a worker pays for the driver's binding only when it fails
    from rbee.host.machine import gpu_list

    gpus, _ = gpu_list()
    found = next((gpu for gpu in gpus if gpu.index == device), None)
    return None if found is None else max(0, found.memory_total_bytes - found.memory_used_bytes)


def shortage(
    error: Exception, what: str, device: int | None, free: Callable[[int], int | None] = free_vram
) -> OutOfMemory:
    """The error of an allocation that failed for ``what``; ``device`` is the GPU's index, None on the CPU. Blocks.

    A driver has no figure of fragmentation: a GPU is fragmented where one piece was asked for and at least as much was
    free. Past the worker's own gpu_mem_limit_mb it is not the GPU that is short.
    """
    asked = _ASKED.search(str(error))
    required = int(asked[1]) if asked else None
    if device is None:
        there = available_memory()
        text = f"{what} {needs(required, there, 'of the machine')}: raise MemoryMax= of the worker's unit, {_LESS}"
        return OutOfMemory(text, details=_details("ram", required, there))
    place = f"on cuda:{device}"
    if limited := _OVER_LIMIT.search(str(error)):
        there, required = int(limited[1]), int(limited[2])
        text = f"{what} {needs(required, there, place)} within gpu_mem_limit_mb: raise that limit, {_LESS}"
        return OutOfVram(text, details=_details("vram", required, there))
    there = free(device)
    if required is not None and there is not None and there >= required:
        text = f"{what} {needs(required, there, place)} in pieces that are smaller: {_RESTART}"
        return VramFragmented(text, details=_details("vram", required, there))
    text = f"{what} {needs(required, there, place)}: stop another worker on this GPU, {_LESS}"
    return OutOfVram(text, details=_details("vram", required, there))


def _details(memory: str, required: int | None, available: int | None) -> dict[str, object]:
    """Amounts in MiB beside the reason; what is needed is rounded up."""
    return {
        "reason": "out_of_memory",
        f"required_{memory}_mb": None if required is None else -(-required >> 20),
        f"available_{memory}_mb": None if available is None else available >> 20,
    }
