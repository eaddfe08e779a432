"""Facts of this machine: memory, disk, cores, and GPUs."""

import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from rbee.wire.messages import GpuFacts, MachineFacts

# CUDA 13, which ONNX Runtime is built for, wants a driver from this series on. Debian's own package nvidia-driver is
# older (535 in Debian 12, 550 in 13); this one is of NVIDIA's apt source and serves every GPU that CUDA 13 supports.
OLDEST_DRIVER = 580
DRIVER_PACKAGE = "nvidia-open"
DRIVER_ADVICE = f"{DRIVER_PACKAGE} from NVIDIA's apt source (driver {OLDEST_DRIVER} or later)"
DRIVER_PATHS = (Path("/dev/nvidiactl"), Path("/proc/driver/nvidia/version"), Path("/dev/dxg"))


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A process with memory, in bytes, on the GPU numbered ``device``; 0 where the driver does not tell how much."""

    device: int
    pid: int
    size: int


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """Memory of a process that is in RAM, in bytes: now, and the most since it began."""

    resident: int
    peak: int


def own_memory() -> ProcessMemory:
    """What this process takes of the machine's memory, as the kernel counts it (proc(5): VmRSS and VmHWM)."""
    amounts = _amounts(Path("/proc/self/status"))
    resident = amounts.get("VmRSS", 0)
    return ProcessMemory(resident, max(resident, amounts.get("VmHWM", 0)))


def machine_facts(folder: Path) -> MachineFacts:
    """What this machine has now; disk figures are of the file system that holds ``folder``. Blocks: use a thread."""
    memory = _amounts(Path("/proc/meminfo"))
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


def _amounts(path: Path) -> dict[str, int]:
    """The amounts of memory that a file of the kernel names, in bytes (proc(5): its kB are KiB)."""
    amounts = {}
    for line in path.read_text().splitlines():
        name, _, rest = line.partition(":")
        if rest.endswith(" kB"):
            amounts[name] = int(rest.split()[0]) * 1024
    return amounts


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def has_gpu_driver() -> bool:
    """Whether this machine shows the files of an NVIDIA driver."""
    return any(path.exists() for path in DRIVER_PATHS)


def driver_is_too_old(version: str) -> bool:
    """Whether a driver's version, such as 550.163.01, is below what CUDA 13 needs; an unknown one is not."""
    series = version.partition(".")[0]
    return series.isdigit() and int(series) < OLDEST_DRIVER


def gpu_list() -> tuple[list[GpuFacts], str]:
    """The GPUs that the driver shows and the driver's version; nothing on a machine without a driver. Blocks."""
    if not has_gpu_driver():
        return [], ""
    # the binding of NVML takes 17 MB of memory: a machine without a driver does not pay for it
    from rbee.host import nvml

    return nvml.gpu_list()


def gpu_processes() -> list[GpuProcess]:
    """The processes that the driver counts memory of its GPUs for; none on a machine without a driver. Blocks."""
    if not has_gpu_driver():
        return []
    from rbee.host import nvml

    return nvml.gpu_processes()


def process_lives(pid: int) -> bool:
    """Whether a process has the number, be it another one by now; signal 0 is sent to nobody (kill(2))."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
