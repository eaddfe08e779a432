"""How a daemon or the command asks the worker's runtime what it can start: a process of its own, and its answer."""

import os
import sys
from pathlib import Path

import msgspec

from rbee.host.config import load_config
from rbee.wire.errors import ConfigError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_KEPT = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")


class ProviderResult(msgspec.Struct, frozen=True):
    """Whether a session started on a provider; where it did not, the loader's own words and what would help."""

    ok: bool
    reason: str = ""
    advice: str = ""


class ProbeResult(msgspec.Struct, frozen=True):
    """What the probe prints: providers by the runtime's own names, such as CUDAExecutionProvider."""

    onnxruntime_version: str
    providers: dict[str, ProviderResult]


class _WorkerYaml(msgspec.Struct, frozen=True):
    """What the probe needs of worker.yaml."""

    cuda_library_path: str | None = None


def probe_command() -> tuple[str, ...]:
    """The probe's argv. It is as isolated as the caller: the folder a person is in never decides what root runs."""
    return (sys.executable, "-I" if sys.flags.isolated else "-P", "-m", "rbee.worker.probe")


def probe_environment(config_dir: Path) -> dict[str, str]:
    """The probe's whole environment: CUDA's libraries where worker.yaml has workers look for them, no telemetry.

    A worker.yaml that does not load counts as absent: its own check says what is wrong with it.
    """
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    try:
        folder = load_config(_WorkerYaml, config_dir / "worker.yaml", required=False).value.cuda_library_path
    except ConfigError:
        folder = None
    if folder:
        kept["LD_LIBRARY_PATH"] = ":".join(filter(None, [folder, kept.get("LD_LIBRARY_PATH")]))
    return {**kept, "ORT_DISABLE_TELEMETRY": "1"}
