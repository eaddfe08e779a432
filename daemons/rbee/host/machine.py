"""Facts of this machine: memory, disk, cores, and GPUs."""

import os
import shutil
import socket
from pathlib import Path

from rbee.wire.messages import GpuFacts, MachineFacts

DRIVER_PATHS = (Path("/dev/nvidiactl"), Path("/proc/driver/nvidia/version"), Path("/dev/dxg"))


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


def has_gpu_driver() -> bool:
    """Whether this machine shows the files of an NVIDIA driver."""
    return any(path.exists() for path in DRIVER_PATHS)


def gpu_list() -> tuple[list[GpuFacts], str]:
    """The GPUs that the driver shows and the driver's version; nothing on a machine without a driver. Blocks."""
    if not has_gpu_driver():
        return [], ""
    # the binding of NVML takes 17 MB of memory: a machine without a driver does not pay for it
    from rbee.host import nvml

    return nvml.gpu_list()
