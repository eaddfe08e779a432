"""A daemon's audit log: entries are handed over without waiting, and a thread of its own writes them.

Entries of changes are on the disk (fdatasync) as soon as the thread has written what waits together; those that only
the level ``all`` writes within a second. Nobody waits for that: an order is carried out while its entry is written.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from rbee.host.audit.entries import ONLY_IN_ALL, SYSTEM, AuditLevel, Details, EventType, Value
from rbee.host.audit.file import LIMITS, AuditFile, AuditLimits, Pending
from rbee.host.audit.metrics import AuditMetrics
from rbee.wire import context
from rbee.wire.auth import redacted
from rbee.wire.log import ALERT, log

LOGGER = logging.getLogger(__name__)
MOST_WAITING = 8192
_BATCH = 512
_SYNC_S = 1.0
_AGAIN_S = 10.0
_CLOSE_LIMIT_S = 5.0
_MOST_VALUE = 4096


class AuditLog:
    """The audit log in ``folder``. All but the thread's own work is called from the event loop.

    ``everything`` says whether callers and inference are written too: a hot path asks before it gathers what to say.
    ``problem`` is why entries cannot be written now, or ''.
    """

    def __init__(
        self,
        folder: Path,
        level: AuditLevel,
        metrics: AuditMetrics,
        limits: AuditLimits = LIMITS,
        most_waiting: int = MOST_WAITING,
    ) -> None:
        self._file = AuditFile(folder, limits)
        self._metrics = metrics
        self._queue: queue.Queue[Pending | None] = queue.Queue(most_waiting)
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._lock = threading.Lock()
        self._lost = 0
        self._told = False
        self.problem = ""
        self.level = level
        self.everything = level is AuditLevel.ALL

    def start(self, **details: Value) -> None:
        """Begin to write; ``details`` say who begins."""
        self._thread.start()
        self.record(EventType.AUDIT_STARTED, SYSTEM, level=self.level.value, **details)

    def use(self, level: AuditLevel) -> None:
        """Put another level in force; where it is another one, the last or first entry says so."""
        if level is self.level:
            return
        before = self.level
        self.level = max(before, level, key=list(AuditLevel).index)
        self.record(EventType.AUDIT_LEVEL, SYSTEM, before=before.value, level=level.value)
        self.level, self.everything = level, level is AuditLevel.ALL

    def record(self, event_type: EventType, actor: str, **details: Value | None) -> None:
        """Hand over an entry; None values are left out, the request in hand names its correlation id. Never waits."""
        if self.level is AuditLevel.OFF or (event_type in ONLY_IN_ALL and not self.everything):
            return
        known: Details = {key: _bounded(value) for key, value in details.items() if value is not None}
        correlation = context.correlation_id.get()
        if correlation is not None:
            known.setdefault("correlation_id", correlation)
        try:
            self._queue.put_nowait(Pending(time.time(), event_type, redacted(actor), known))
        except queue.Full:
            self._lose(1, "its queue is full")

    async def close(self) -> None:
        """Write what waits, and end the thread; a disk that does not answer is waited for 5 s."""
        if not self._thread.is_alive():
            return
        self.record(EventType.AUDIT_STOPPED, SYSTEM)
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        try:
            self._queue.put(None, timeout=_CLOSE_LIMIT_S)
        except queue.Full:
            log(LOGGER, ALERT, "the audit log did not come to its end", waiting=self._queue.qsize())
            return
        self._thread.join(_CLOSE_LIMIT_S)

    def _lose(self, entries: int, why: str) -> None:
        self._metrics.lost.inc(entries)
        self._owe(entries, why)

    def _owe(self, entries: int, why: str) -> None:
        """The chain is to have an entry that so many were lost, as soon as it takes one."""
        with self._lock:
            self._lost += entries
            told, self._told, self.problem = self._told, True, f"entries of the audit log are lost: {why}"
        if not told:
            log(LOGGER, ALERT, "entries of the audit log are lost", why=why)

    # the thread's own work

    def _run(self) -> None:
        unsynced = False
        while True:
            batch, last = self._take(_SYNC_S if unsynced else _AGAIN_S if self._lost else None)
            changes = any(one.event_type not in ONLY_IN_ALL for one in batch)
            unsynced = self._write(batch, sync=changes or last or not batch)
            if last:
                if self._file.is_open:
                    self._file.show_head()
                self._file.close()
                return

    def _take(self, limit_s: float | None) -> tuple[list[Pending], bool]:
        """What waits, at least one entry unless ``limit_s`` passes first; and whether it is the end."""
        batch: list[Pending] = []
        try:
            one = self._queue.get(timeout=limit_s)
            while one is not None:
                batch.append(one)
                if len(batch) == _BATCH:
                    return batch, False
                one = self._queue.get_nowait()
        except queue.Empty:
            return batch, False
        return batch, True

    def _write(self, batch: Sequence[Pending], *, sync: bool) -> bool:
        """Write and, if so asked, sync; returns whether something is not yet known to be on the disk."""
        written = 0
        try:
            for one in batch:
                self._file.write(one)
                written += 1
            self._write_lost()
            self._file.keep_budget()
            if sync:
                self._file.sync()
        except OSError as error:
            self._lose(len(batch) - written, error.strerror or str(error))
        else:
            with self._lock:
                if not self._lost:
                    self._told, self.problem = False, ""
        self._metrics.entries.inc(written)
        self._metrics.size.set(self._file.total)
        return not sync and bool(written)

    def _write_lost(self) -> None:
        lost = self._take_lost()
        if not lost:
            return
        try:
            self._file.write(Pending(time.time(), EventType.AUDIT_LOST, SYSTEM, {"entries": lost}))
        except OSError as error:
            self._owe(lost, error.strerror or str(error))
            raise

    def _take_lost(self) -> int:
        with self._lock:
            lost, self._lost = self._lost, 0
        return lost


def _bounded(value: Value) -> Value:
    if isinstance(value, list):
        return [redacted(one)[:_MOST_VALUE] for one in value[: _MOST_VALUE // 64]]
    return value if isinstance(value, int) else redacted(value)[:_MOST_VALUE]
