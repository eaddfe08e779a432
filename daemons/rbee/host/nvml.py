"""GPUs through NVML, the driver's own library (nvidia-ml-py)."""

import pynvml

from rbee.wire.messages import GpuFacts


def gpu_list() -> tuple[list[GpuFacts], str]:
    """The GPUs that the driver shows and the driver's version; nothing on a machine without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return [], ""
    try:
        count = pynvml.nvmlDeviceGetCount()
        return [_gpu(index) for index in range(count)], _text(pynvml.nvmlSystemGetDriverVersion())
    finally:
        pynvml.nvmlShutdown()


def _gpu(index: int) -> GpuFacts:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
    return GpuFacts(
        index=index,
        name=_text(pynvml.nvmlDeviceGetName(handle)),
        uuid=_text(pynvml.nvmlDeviceGetUUID(handle)),
        memory_total_bytes=int(memory.total),
        memory_used_bytes=int(memory.used),
        temperature_c=_temperature(handle),
        compute_capability=f"{major}.{minor}",
    )


def _temperature(handle: object) -> int | None:
    try:
        return int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))
    except pynvml.NVMLError:
        return None  # some virtual GPUs do not tell


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
