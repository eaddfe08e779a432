"""GPU, driver and CUDA libraries: what ONNX Runtime can really start a session on."""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from rbee.host.machine import DRIVER_ADVICE, OLDEST_DRIVER, driver_is_too_old, gpu_list
from rbee.host.probe import CPU, CUDA, ProbeResult, ProviderResult, probe_command, probe_environment
from rbee.keeper.doctor.finding import Finding, fail, ok, run, warn
from rbee.wire.messages import GpuFacts

_NVIDIA, _DISPLAY = "0x10de", ("0x0300", "0x0302")


def device(config_dir: Path, pci: Path = Path("/sys/bus/pci/devices")) -> Iterator[Finding]:
    """The driver, then a session on each provider."""
    gpus, driver = gpu_list()
    for gpu in gpus:
        total = gpu.memory_total_bytes >> 20
        yield ok("driver", f"GPU {gpu.index}: {gpu.name}, {total} MiB, driver {driver}")
    if driver_is_too_old(driver):
        yield fail(
            "driver", f"driver {driver} is older than CUDA 13 needs, {OLDEST_DRIVER}", f"install {DRIVER_ADVICE}"
        )
    if not gpus and _has_card(pci):
        yield fail("driver", "an NVIDIA GPU is in this machine and no driver answers", f"install {DRIVER_ADVICE}")
    elif not gpus:
        yield ok("driver", "no NVIDIA GPU: workers run on the CPU")
    yield from _providers(config_dir, gpus)


def _has_card(pci: Path) -> bool:
    def read(file: Path) -> str:
        try:
            return file.read_text().strip()
        except OSError:
            return ""

    cards = (card for card in pci.glob("*") if read(card / "vendor") == _NVIDIA)
    return any(read(card / "class")[:6] in _DISPLAY for card in cards)


def _providers(config_dir: Path, gpus: list[GpuFacts]) -> Iterator[Finding]:
    done = run(probe_command(), probe_environment(config_dir))
    last = done.err.strip().rpartition("\n")[2]
    if done.code != 0:
        yield warn("runtime", f"ONNX Runtime cannot be probed: {last}", "apt install rbee-worker")
        return
    try:
        probed = msgspec.json.decode(done.out.encode(), type=ProbeResult)
    except msgspec.MsgspecError as error:
        yield fail("runtime", f"the probe's answer has another shape: {error}", "apt install --reinstall rbee-worker")
        return
    cpu, cuda = probed.providers.get(CPU, ProviderResult(False)), probed.providers.get(CUDA, ProviderResult(False))
    version = probed.onnxruntime_version
    if cpu.ok:
        yield ok("runtime", f"ONNX Runtime {version} runs on the CPU")
    else:
        yield fail("runtime", f"no session on the CPU: {cpu.reason}", "apt install --reinstall rbee-worker")
    if cuda.ok:
        yield ok("cuda", f"ONNX Runtime {version} runs on the GPU")
    elif gpus:
        advice = cuda.advice or "see CUDA in rbee-worker.yaml(5)"
        yield fail("cuda", f"no session on the GPU: {cuda.reason}", advice)
