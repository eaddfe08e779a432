"""Facts of this machine: memory, disk, cores, and GPUs through NVML."""

import os
import shutil
import socket
from pathlib import Path

import pynvml

from rbee.wire.messages import GpuFacts, MachineFacts


def machine_facts(folder: Path) -> MachineFacts:
    """What this machine has now; disk figures are of the file system that holds ``folder``. Blocks: use a thread."""
    memory = _memory()
    disk = shutil.disk_usage(_existing(folder))
    gpus, driver = gpu_list()
    return MachineFacts(
        hostname=socket.gethostname()[:512],
        cores=len(os.sched_getaffinity(0)),
        ram_total_bytes=memory.get("MemTotal", 0),
        ram_available_bytes=memory.get("MemAvailable", 0),
        disk_total_bytes=disk.total,
        disk_available_bytes=disk.free,
        gpus=gpus,
        driver=driver,
    )


def _memory() -> dict[str, int]:
    """/proc/meminfo in bytes (proc(5): its kB are KiB)."""
    amounts = {}
    for line in Path("/proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        amounts[name] = int(rest.split()[0]) * 1024
    return amounts


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


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
