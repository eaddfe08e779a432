"""GPUs through NVML, the driver's own library (nvidia-ml-py)."""

from collections.abc import Iterator
from contextlib import contextmanager

import pynvml

from rbee.host.machine import GpuProcess
from rbee.wire.messages import GpuFacts


@contextmanager
def _driver() -> Iterator[None]:
    pynvml.nvmlInit()
    try:
        yield
    finally:
        pynvml.nvmlShutdown()


def gpu_list() -> tuple[list[GpuFacts], str]:
    """The GPUs that the driver shows and its version; nothing without a driver, and no GPU that it has lost."""
    try:
        with _driver():
            found = [_gpu(index) for index in range(pynvml.nvmlDeviceGetCount())]
            return [gpu for gpu in found if gpu is not None], _text(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return [], ""


def _gpu(index: int) -> GpuFacts | None:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
        name, uuid = _text(pynvml.nvmlDeviceGetName(handle)), _text(pynvml.nvmlDeviceGetUUID(handle))
    except pynvml.NVMLError:
        return None  # it has fallen off the bus: the other ones serve on
    return GpuFacts(
        index=index,
        name=name,
        uuid=uuid,
        memory_total_bytes=int(memory.total),
        memory_used_bytes=int(memory.used),
        temperature_c=_temperature(handle),
        compute_capability=f"{major}.{minor}",
    )


def gpu_processes() -> list[GpuProcess]:
    """Every process that the driver counts memory of a GPU for; those of a GPU that does not tell are left out."""
    try:
        with _driver():
            return [each for index in range(pynvml.nvmlDeviceGetCount()) for each in _processes(index)]
    except pynvml.NVMLError:
        return []


def _processes(index: int) -> list[GpuProcess]:
    try:
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(pynvml.nvmlDeviceGetHandleByIndex(index))
    except pynvml.NVMLError:
        return []
    return [GpuProcess(index, int(each.pid), int(each.usedGpuMemory or 0)) for each in found]


def _temperature(handle: object) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
    except pynvml.NVMLError:
        return None  # some virtual GPUs do not tell


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
