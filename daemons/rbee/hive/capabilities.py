"""Which backends really start on this machine: a session is tried on each, in a process of its own."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from rbee import __version__
from rbee.host.probe import CPU, CUDA, ProbeResult, ProviderResult, probe_command, probe_environment
from rbee.wire.errors import ConnectionTimeout, ProtocolError, ProviderUnavailable
from rbee.wire.messages import GpuFacts

PROBE_LIMIT_S = 60.0
_BACKENDS = {CPU: "cpu", CUDA: "cuda"}


class Capabilities(msgspec.Struct, frozen=True):
    """GET /v1/capabilities of a hive."""

    version: str
    onnxruntime_version: str
    backends: list[str]
    providers: dict[str, ProviderResult]
    devices: list[GpuFacts]
    driver: str
    probed_at_unix: float


class Probe:
    """Runs the probe once and keeps its answer; concurrent callers share one run."""

    def __init__(self, config_dir: Path) -> None:
        self._config_dir = config_dir
        self._lock = asyncio.Lock()
        self._result: ProbeResult | None = None
        self._at = 0.0

    async def result(self, now: float, *, again: bool = False) -> tuple[ProbeResult, float]:
        """The probe's answer and when it was taken; raises ProviderUnavailable, ConnectionTimeout, ProtocolError."""
        async with self._lock:
            if self._result is None or again:
                environment = await asyncio.to_thread(probe_environment, self._config_dir)
                self._result = await _run(probe_command(), environment)
                self._at = now
            return self._result, self._at


async def _run(command: Sequence[str], environment: dict[str, str]) -> ProbeResult:
    process = await asyncio.create_subprocess_exec(
        *command,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PROBE_LIMIT_S):
            output, complaint = await process.communicate()
    except TimeoutError:
        raise ConnectionTimeout(f"the probe of the execution providers took over {PROBE_LIMIT_S:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        last = complaint.decode("utf-8", "replace").strip().rpartition("\n")[2][:300]
        raise ProviderUnavailable(
            f"the worker's runtime cannot be probed on this machine: {last or 'it ended without a word'}; "
            "install it: apt install rbee-worker"
        )
    try:
        return msgspec.json.decode(output, type=ProbeResult)
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"the probe's answer does not fit the protocol: {error}") from None


def capabilities_of(probe: ProbeResult, at_unix: float, gpus: list[GpuFacts], driver: str) -> Capabilities:
    """The answer of GET /v1/capabilities."""
    backends = [_BACKENDS[name] for name, result in probe.providers.items() if result.ok and name in _BACKENDS]
    return Capabilities(
        version=__version__,
        onnxruntime_version=probe.onnxruntime_version,
        backends=backends,
        providers=probe.providers,
        devices=gpus,
        driver=driver,
        probed_at_unix=at_unix,
    )
