"""A picture as lines and rows of text, for a screen, a pipe and `rbee status`."""

from collections.abc import Sequence

from rbee.keeper.text import duration, size
from rbee.keeper.top.picture import Picture, WorkerPicture
from rbee.keeper.workers import note_of
from rbee.wire.machines import HiveView
from rbee.wire.messages import GpuFacts

HIVE_HEADS = ("NODE", "STATE", "VERSION", "CORES", "RAM FREE", "DISK FREE", "GPU", "WORKERS", "LABELS")
WORKER_HEADS = ("WORKER", "NODE", "STATE", "MODEL", "BACKEND", "SLOTS BUSY", "REQ/S", "TOK/S", "NOTE")


def headline(picture: Picture) -> str:
    """The queen and the fleet's figures in one line."""
    figures = picture.figures
    waiting = sum(figures.waiting.values()) or picture.queen.waiting
    median = "-" if figures.p50_ms is None else f"{figures.p50_ms:g} ms"
    errors = f", {figures.errors_per_s:g} errors/s" if figures.errors_per_s else ""
    return (
        f"queen {picture.queen.status} {picture.queen.version}: {figures.requests_per_s:g} requests/s{errors}, "
        f"{figures.tokens_per_s:g} tokens/s, p50 {median}, {figures.in_flight} in flight, {waiting} waiting"
    )


def troubles(picture: Picture) -> list[str]:
    """What is wrong, a line each; and where requests wait, for which models."""
    found = [f"attention: {picture.problem}"] if picture.problem else []
    found += [f"attention: {line}" for line in picture.queen.degraded]
    return found + [f"waiting: {count} for {model}" for model, count in sorted(picture.figures.waiting.items())]


def hive_row(hive: HiveView) -> tuple[str, ...]:
    """One machine of the table."""
    state = f"silent {duration(hive.silent_s)}" if hive.stale else "live"
    machine = hive.machine
    if machine is None:
        return (hive.hive_id, state, hive.version or "-", "-", "-", "-", "-", str(hive.workers), "-")
    return (
        hive.hive_id,
        state,
        hive.version,
        str(machine.cores),
        _free(machine.ram_available_bytes, machine.ram_total_bytes),
        _free(machine.disk_available_bytes, machine.disk_total_bytes),
        "; ".join(_gpu(gpu) for gpu in machine.gpus) or "-",
        str(hive.workers),
        ",".join(machine.labels) or "-",
    )


def worker_row(worker: WorkerPicture) -> tuple[str, ...]:
    """One worker of the table."""
    report = worker.report
    return (
        report.worker_id,
        report.hive_id,
        report.state.value,
        report.model or "-",
        f"{report.backend.value}:{report.device}" if report.backend else "-",
        f"{report.slots_total - report.slots_available}/{report.slots_total}" if report.slots_total else "-",
        f"{worker.rates.requests_per_s:g}",
        f"{worker.rates.tokens_per_s:g}",
        note_of(report),
    )


def tables(picture: Picture) -> Sequence[tuple[Sequence[str], Sequence[tuple[str, ...]]]]:
    """Heads and rows of both tables: machines, workers."""
    return (
        (HIVE_HEADS, [hive_row(hive) for hive in picture.hives]),
        (WORKER_HEADS, [worker_row(worker) for worker in picture.workers]),
    )


def _free(available: int, total: int) -> str:
    return f"{size(available)} of {size(total)}"


def _gpu(gpu: GpuFacts) -> str:
    heat = "" if gpu.temperature_c is None else f" {gpu.temperature_c} C"
    return f"{gpu.index}: {_free(gpu.memory_total_bytes - gpu.memory_used_bytes, gpu.memory_total_bytes)}{heat}"
