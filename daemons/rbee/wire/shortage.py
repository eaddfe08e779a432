"""Memory that ran out: how a worker says so at its end, and what its report then means to those who wait for it."""

import re

from rbee.wire.errors import OutOfMemory, OutOfVram, VramFragmented
from rbee.wire.messages import WorkerReport

EXIT_NO_MEMORY = 71
"""Exit code of a worker whose runtime could not allocate what loading needs (sysexits.h: EX_OSERR)."""
OOM_KILL = "oom-kill"
"""systemd's result where the kernel, or systemd-oomd, killed a unit for its memory (systemd.service(5))."""
KINDS: dict[str, type[OutOfMemory]] = {kind.code: kind for kind in (OutOfMemory, OutOfVram, VramFragmented)}
MIB = 1 << 20
_AMOUNTS = re.compile(r"needs (\d+) MB at once.*?, (\d+) MB")
_MORE_MEMORY = "raise MemoryMax= of its unit, stop another worker, or choose a smaller or quantised model"


def needs(required_bytes: int | None, available_bytes: int | None, where: str) -> str:
    """What was asked for and what is there, in words that :func:`reported` reads again; ``where`` says of what."""
    there = "" if available_bytes is None else f", {available_bytes // MIB} MB are free"
    if required_bytes is None:
        return f"needs more memory {where} than there is{there}"
    return f"needs {-(-required_bytes // MIB)} MB at once {where}{there}"


def code_told(status_text: str) -> str | None:
    """The code with which a worker's last STATUS= begins where its memory ran out, else None."""
    code = status_text.partition(":")[0]
    return code if code in KINDS else None


def reported(report: WorkerReport) -> OutOfMemory | None:
    """The error of a worker whose memory ran out, from its report; None where it ended for another reason."""
    if report.result == OOM_KILL:
        details: dict[str, object] = {"cause": OOM_KILL, "last_log": report.last_log}
        return OutOfMemory(
            f"worker {report.worker_id} ran out of memory{_where(report)} and the kernel killed it (oom-kill): "
            f"{_MORE_MEMORY}",
            details=details,
        )
    kind = KINDS.get(report.reason)
    if kind is None:
        return None
    said = report.status_text.removeprefix(f"{kind.code}: ")
    details = {"cause": "allocation", "last_log": report.last_log}
    amounts = _AMOUNTS.search(said)
    if amounts is not None:
        memory = "ram" if kind is OutOfMemory else "vram"
        details |= {f"required_{memory}_mb": int(amounts[1]), f"available_{memory}_mb": int(amounts[2])}
    return kind(f"worker {report.worker_id} could not allocate its memory: {said}", details=details)


def _where(report: WorkerReport) -> str:
    """How far loading was; nothing of a worker that had been ready."""
    progress = report.progress
    if progress is None:
        return ""
    counted = f" {progress.done}/{progress.total} {progress.unit}" if progress.total else ""
    return f" while loading, at '{progress.stage}{counted}',"
