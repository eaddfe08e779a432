"""GPU, driver and CUDA libraries: what ONNX Runtime can really start a session on."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from rbee.host.config import load_config
from rbee.host.machine import gpu_list
from rbee.keeper.doctor.finding import Finding, fail, ok, run, warn
from rbee.wire.errors import ConfigError
from rbee.wire.messages import GpuFacts

PROBE = (sys.executable, "-m", "rbee.worker.probe")
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_NVIDIA, _DISPLAY = "0x10de", ("0x0300", "0x0302")


class Provider(msgspec.Struct, frozen=True):
    """Whether a session started, the loader's words where it did not, and what would help."""

    ok: bool
    reason: str = ""
    advice: str = ""


class Probed(msgspec.Struct, frozen=True):
    """What the worker's probe prints."""

    onnxruntime_version: str
    providers: dict[str, Provider]


class WorkerYaml(msgspec.Struct, frozen=True):
    """What the doctor needs of worker.yaml."""

    cuda_library_path: str | None = None


def device(config_dir: Path, pci: Path = Path("/sys/bus/pci/devices")) -> Iterator[Finding]:
    """The driver, then a session on each provider."""
    gpus, driver = gpu_list()
    for gpu in gpus:
        total = gpu.memory_total_bytes >> 20
        yield ok("driver", f"GPU {gpu.index}: {gpu.name}, {total} MiB, driver {driver}")
    if not gpus and _has_card(pci):
        yield fail("driver", "an NVIDIA GPU is in this machine and no driver answers", "apt install nvidia-driver")
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
    done = run(PROBE, _environment(config_dir))
    last = done.err.strip().rpartition("\n")[2]
    if done.code != 0:
        yield warn("runtime", f"ONNX Runtime cannot be probed: {last}", "apt install rbee-worker")
        return
    try:
        probed = msgspec.json.decode(done.out.encode(), type=Probed)
    except msgspec.MsgspecError as error:
        yield fail("runtime", f"the probe's answer has another shape: {error}", "apt install --reinstall rbee-worker")
        return
    cpu, cuda = probed.providers.get(CPU, Provider(False)), probed.providers.get(CUDA, Provider(False))
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


def _environment(config_dir: Path) -> dict[str, str]:
    names = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
    kept = {name: os.environ[name] for name in names if name in os.environ}
    try:
        folder = load_config(WorkerYaml, config_dir / "worker.yaml", required=False).value.cuda_library_path
    except ConfigError:
        folder = None  # the configuration's own check has said so
    if folder:
        kept["LD_LIBRARY_PATH"] = ":".join([folder, *filter(None, [kept.get("LD_LIBRARY_PATH")])])
    return {**kept, "ORT_DISABLE_TELEMETRY": "1"}
