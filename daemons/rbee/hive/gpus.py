"""What orders ask of the GPU driver: which GPUs there are, and whether the memory of workers that ended is free."""

import asyncio
import time
from dataclasses import dataclass

from rbee.hive.driver_read import DriverRead
from rbee.hive.workers import WorkerTable
from rbee.host.machine import DRIVER_ADVICE, gpu_list, gpu_processes, process_lives
from rbee.wire.errors import BackendUnavailable, InvalidDevice, VramExhausted
from rbee.wire.messages import GpuFacts, WorkerReport
from rbee.wire.worker_spec import Backend

ANSWER_LIMIT_S = 2.0
FREE_LIMIT_S = 5.0
"""How long a start waits for memory: the queen waits for the answer to its order for 10 s."""
_LOOK_S = 0.05
_MB = 1 << 20


@dataclass(frozen=True, slots=True)
class Held:
    """Memory, in bytes, that the driver counts for the process of a worker which has ended."""

    worker_id: str
    device: int
    pid: int
    size: int


class Gpus:
    """Asks the driver; one that hangs holds up nobody for longer than a limit. ``free_limit_s``: of a start's wait."""

    def __init__(self, table: WorkerTable, free_limit_s: float = FREE_LIMIT_S) -> None:
        self._table = table
        self._free_limit_s = free_limit_s
        self._list = DriverRead(gpu_list, "list of GPUs")
        self._processes = DriverRead(gpu_processes, "processes on GPUs")

    async def listed(self) -> tuple[list[GpuFacts], str]:
        """The GPUs and the driver's version; raises BackendUnavailable where the driver does not answer."""
        try:
            return await self._list.within(ANSWER_LIMIT_S)
        except TimeoutError:
            raise BackendUnavailable(
                f"the GPU driver did not answer within {ANSWER_LIMIT_S:g} s: try 'nvidia-smi', look for NVRM in "
                "'journalctl -k', and reboot the machine if it hangs",
                details={"timeout_s": ANSWER_LIMIT_S},
            ) from None

    async def check(self, backend: Backend, device: int) -> None:
        """Raise InvalidDevice or BackendUnavailable where this machine does not have the device."""
        valid = [0]
        if backend is Backend.CUDA:
            gpus, _ = await self.listed()
            valid = [gpu.index for gpu in gpus]
        if not valid:
            raise BackendUnavailable(
                f"cuda is asked for and this machine has no NVIDIA driver or GPU: install {DRIVER_ADVICE}, "
                "or use the backend cpu",
                details={"field": "backend", "available": [Backend.CPU.value]},
            )
        if device not in valid:
            raise InvalidDevice(
                f"this machine has no such device for {backend.value}: use one of {valid}",
                details={"field": "device", "valid": valid},
            )

    async def measure(self, ready: WorkerReport) -> None:
        """Put the memory that the driver counts for a worker of a GPU into its row; of one that is ready now."""
        if ready.backend is not Backend.CUDA or not ready.managed:
            return
        try:
            processes = await self._processes.within(ANSWER_LIMIT_S)
        except TimeoutError:
            return
        size = sum(each.size for each in processes if (each.pid, each.device) == (ready.pid, ready.device))
        self._table.set_gpu_bytes(ready.worker_id, ready.invocation_id, size)

    async def prove_free(self, device: int) -> None:
        """Wait until no worker that ended has memory on ``device``; raises VramExhausted where that takes too long."""
        limit_s = self._free_limit_s
        held = await self.held_by_ended(limit_s, device)
        if not held:
            return
        amount = -(-sum(one.size for one in held) // _MB)
        names = ", ".join(f"{one.worker_id} (process {one.pid})" for one in held)
        raise VramExhausted(
            f"GPU {device} is not free: after {limit_s:g} s the driver still counts {amount} MB for what ended there, "
            f"{names}; try again, and if 'nvidia-smi' goes on showing it, reset the GPU or reboot the machine",
            details={"device": device, "held_vram_mb": amount, "workers": [one.worker_id for one in held]},
            retry_after_s=limit_s,
        )

    async def held_by_ended(self, limit_s: float, device: int | None = None) -> list[Held]:
        """Wait until the driver has freed the memory of workers that ended; what it holds after ``limit_s`` seconds.

        A driver that does not answer proves nothing and holds up nothing: a worker tells what it lacks.
        """
        deadline = time.monotonic() + limit_s
        held: list[Held] = []
        while ended := self._ended(device):
            left = deadline - time.monotonic()
            try:
                processes = await self._processes.within(ANSWER_LIMIT_S)
            except TimeoutError:
                return held
            held = [
                Held(ended[each.pid], each.device, each.pid, each.size)
                for each in processes
                if each.pid in ended and device in (None, each.device)
            ]
            if not held or left <= 0:
                return held
            await asyncio.sleep(min(_LOOK_S, left))  # the driver has no event for memory that becomes free
        return []

    def _ended(self, device: int | None) -> dict[int, str]:
        """Workers of a GPU by the process that they had, which lives no more."""
        found = {}
        for worker in self._table.all():
            report, pid = worker.report, worker.last_pid
            on_gpu = report is not None and report.backend is Backend.CUDA and device in (None, report.device)
            if on_gpu and pid and not worker.unit.main_pid and not process_lives(pid):
                found[pid] = worker.worker_id
        return found
