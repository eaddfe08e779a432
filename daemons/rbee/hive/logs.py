"""A worker's log lines: from the journal, or from what its supervisor kept of its output."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

import msgspec

from rbee.wire.errors import Unavailable
from rbee.wire.names import unit_of

_MOST_LINE = 1 << 20
_READ_LIMIT_S = 20.0
_POLL_S = 0.5


class LogLine(msgspec.Struct, frozen=True):
    """One record: when, how grave (syslog priority), what; ``fields`` are rbee's own."""

    time_unix: float
    priority: int
    message: str
    pid: int = 0
    fields: dict[str, str] = {}


class LogSource(Protocol):
    """Where a worker's lines come from."""

    def read(self, worker_id: str, lines: int, *, follow: bool) -> AsyncIterator[LogLine]:
        """The last ``lines`` records, then, where ``follow``, each new one."""

    def last(self, worker_id: str, invocation_id: str) -> AsyncIterator[LogLine]:
        """The last record that one life of a worker wrote itself; nothing where it wrote none."""


class JournalLogs:
    """The journal, by journalctl(1): the hive's user is a member of systemd-journal."""

    def read(self, worker_id: str, lines: int, *, follow: bool) -> AsyncIterator[LogLine]:
        """Yield records; raises Unavailable when journalctl fails."""
        return self._records("--unit", unit_of(worker_id), "--lines", str(lines), follow=follow)

    def last(self, worker_id: str, invocation_id: str) -> AsyncIterator[LogLine]:
        """Yield at most one record, of the unit's own processes in that life; raises Unavailable as read()."""
        return self._records(f"_SYSTEMD_INVOCATION_ID={invocation_id}", "--lines", "1", follow=False)

    async def _records(self, *chosen: str, follow: bool) -> AsyncIterator[LogLine]:
        command = ["journalctl", *chosen, "--output", "json", "--no-pager"]
        process = await asyncio.create_subprocess_exec(
            *command,
            *(["--follow"] if follow else []),
            env={"PATH": os.environ.get("PATH", "/usr/bin:/bin")},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            limit=_MOST_LINE,
        )
        try:
            if process.stdout is not None:
                async for line in _lines(process.stdout, follow=follow):
                    yield line
            if not follow and await process.wait() != 0:
                raise Unavailable("journalctl failed: is the hive's user a member of the group systemd-journal?")
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()


async def _lines(stream: asyncio.StreamReader, *, follow: bool) -> AsyncIterator[LogLine]:
    while True:
        try:
            async with asyncio.timeout(None if follow else _READ_LIMIT_S):
                raw = await stream.readline()
        except TimeoutError:
            raise Unavailable("the journal did not answer in time") from None
        except ValueError:
            continue  # a record over the limit: left out
        if not raw:
            return
        line = journal_line(raw)
        if line is not None:
            yield line


def journal_line(raw: bytes) -> LogLine | None:
    """One line of journalctl's JSON; None where it is none. Values that are not UTF-8 text come as byte lists."""
    try:
        record = msgspec.json.decode(raw, type=dict[str, object])
        return LogLine(
            time_unix=int(str(record.get("__REALTIME_TIMESTAMP", "0"))) / 1e6,
            priority=int(str(record.get("PRIORITY", "6"))),
            message=_text(record.get("MESSAGE")),
            pid=int(str(record.get("_PID", "0"))),
            fields={
                name.removeprefix("RBEE_").lower(): _text(value)
                for name, value in record.items()
                if name.startswith("RBEE_")
            },
        )
    except (msgspec.MsgspecError, ValueError):
        return None


def _text(value: object) -> str:
    if isinstance(value, list):
        return bytes(item for item in value if isinstance(item, int) and 0 <= item < 256).decode("utf-8", "replace")
    return value if isinstance(value, str) else ""


class KeptLogs:
    """The lines that the child-process supervisor kept."""

    def __init__(self, lines: Callable[[str, int], Sequence[tuple[float, str]]]) -> None:
        self._lines = lines

    def last(self, worker_id: str, invocation_id: str) -> AsyncIterator[LogLine]:
        """Yield the last line: one that has begun anew since is rare, for it waits a second before it does."""
        return self.read(worker_id, 1, follow=False)

    async def read(self, worker_id: str, lines: int, *, follow: bool) -> AsyncIterator[LogLine]:
        """Yield lines; following looks twice a second, which a developer's terminal can bear."""
        last: tuple[float, str] | None = None
        for line in self._lines(worker_id, lines):
            last = line
            yield LogLine(line[0], 6, line[1])
        while follow:
            await asyncio.sleep(_POLL_S)
            kept = self._lines(worker_id, 10_000)
            new = kept[kept.index(last) + 1 :] if last in kept else kept
            for line in new:
                last = line
                yield LogLine(line[0], 6, line[1])
