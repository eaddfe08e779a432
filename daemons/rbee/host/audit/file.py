"""The files of an audit log: appended to, rotated, kept within a budget, and mended after a crash. Blocking calls."""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from rbee.host.audit.chain import FILE_NAME, MOST_LINE, fields_of, files_of, rotated_name, rotated_unix
from rbee.host.audit.entries import GENESIS, SYSTEM, Details, EventType, Head, hash_of, line_of, sealed
from rbee.wire.log import ALERT, log

LOGGER = logging.getLogger(__name__)
FILE_MODE = 0o640
_HEAD_EVERY = 1000
_WARN_AT, _MAKE_ROOM_AT = 0.95, 0.99


class Pending(msgspec.Struct, frozen=True):
    """What is to become an entry."""

    unix: float
    event_type: EventType
    actor: str
    details: Details


@dataclass(frozen=True, slots=True)
class AuditLimits:
    """A file is rotated before it is over ``rotate_bytes``; all files together stay within ``budget_bytes``.

    At 95 % of the budget there is a warning; at 99 % an error, and the oldest rotated file goes.
    """

    rotate_bytes: int = 10_000_000
    budget_bytes: int = 100_000_000


LIMITS = AuditLimits()


class AuditFile:
    """``audit.jsonl`` in ``folder`` and those rotated before it; used by one thread.

    Every call raises OSError where the disk refuses: an entry that was handed over then is not in the file, and the
    next call begins with what is there. ``total`` is the size of all files in bytes.
    """

    def __init__(self, folder: Path, limits: AuditLimits = LIMITS, clock: Callable[[], float] = time.time) -> None:
        self._path = folder / FILE_NAME
        self._limits = limits
        self._clock = clock
        self._descriptor: int | None = None
        self._size = 0
        self._head = GENESIS
        self._since_head = 0
        self._warned = False
        self.total = 0

    @property
    def is_open(self) -> bool:
        """Whether the file is open for writing."""
        return self._descriptor is not None

    def open(self) -> None:
        """Go on where the chain ends; an entry says where a line that a crash tore was taken away."""
        self._path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        torn = self._open_current()
        try:
            files = files_of(self._path.parent)
            self.total = sum(path.stat().st_size for path in files)
            self._head = next((head for path in reversed(files) if (head := last_hash(path)) is not None), GENESIS)
            if torn:
                log(LOGGER, logging.WARNING, "the end of the audit log was torn and is taken away", bytes=torn)
                self._append(self._clock(), EventType.AUDIT_RECOVERED, SYSTEM, {"dropped_bytes": torn})
        except OSError:
            self.close()
            raise
        self.show_head()

    def write(self, one: Pending) -> None:
        """Append an entry."""
        if self._descriptor is None:
            self.open()
        self._append(one.unix, one.event_type, one.actor, one.details)

    def sync(self) -> None:
        """Have what was written on the disk."""
        if self._descriptor is None:
            return
        try:
            os.fdatasync(self._descriptor)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; the next :meth:`write` opens it again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def show_head(self) -> None:
        """Write the newest hash to the journal: `rbee audit verify --contains` finds a tail that was cut off by it."""
        self._since_head = 0
        log(LOGGER, logging.INFO, "audit head", event="audit.head", entry_hash=self._head, file=self._path)

    def _open_current(self) -> int:
        """Open the file; returns the bytes of a torn last line that were taken away."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, FILE_MODE)
        try:
            os.fchmod(descriptor, FILE_MODE)
            size = os.fstat(descriptor).st_size
            start = max(0, size - MOST_LINE)
            tail = os.pread(descriptor, size - start, start)
            torn = tail[tail.rfind(b"\n") + 1 :]
            if torn and _is_entry(torn + b"\n"):
                os.write(descriptor, b"\n")
                size, torn = size + 1, b""
            elif torn:
                size -= len(torn)
                os.ftruncate(descriptor, size)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor, self._size = descriptor, size
        return len(torn)

    def _append(self, unix: float, event_type: EventType, actor: str, details: Details) -> None:
        entry = sealed(unix, event_type, actor, details, self._head)
        line = line_of(entry)
        if self._size and self._size + len(line) > self._limits.rotate_bytes:
            self._rotate()
        self._write_whole(line)
        self._head = entry.entry_hash
        self._size += len(line)
        self.total += len(line)
        self._since_head += 1
        if self._since_head >= _HEAD_EVERY:
            self.show_head()

    def _write_whole(self, line: bytes) -> None:
        if self._descriptor is None:
            raise OSError("the audit log is not open")
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError("the disk took a part of an entry")
        except OSError:
            with contextlib.suppress(OSError):  # what is left of the line is a torn one: the next opening mends it
                os.ftruncate(self._descriptor, self._size)
            self.close()
            raise

    def _rotate(self) -> None:
        self.sync()
        self.close()
        others = files_of(self._path.parent)[:-1]
        # a clock that went back must not put the newest file before older ones
        unix = max(self._clock(), rotated_unix(others[-1]) + 1e-3 if others else 0.0)
        self._path.rename(self._path.with_name(rotated_name(self._path, unix)))
        self._open_current()
        _sync_folder(self._path.parent)
        self.show_head()

    def keep_budget(self) -> None:
        """Warn, or make room, where the files have come near to the budget."""
        used = self.total / self._limits.budget_bytes
        if used >= _MAKE_ROOM_AT:
            self._make_room()
        elif used >= _WARN_AT and not self._warned:
            log(LOGGER, logging.WARNING, "the audit log has used 95 % of its room: save its oldest file elsewhere")
        self._warned = used >= _WARN_AT

    def _make_room(self) -> None:
        """Remove the oldest rotated file, once an entry says so; without one the file in hand is rotated first."""
        if self._path == files_of(self._path.parent)[0]:
            self._rotate()
        oldest = files_of(self._path.parent)[0]
        hash_before = last_hash(oldest) or GENESIS
        log(LOGGER, logging.ERROR, "the audit log has used 99 % of its room: its oldest file is removed", file=oldest)
        details: Details = {"file": oldest.name, "last_hash": hash_before}
        self._append(self._clock(), EventType.AUDIT_REMOVED, SYSTEM, details)
        self.sync()
        size = oldest.stat().st_size
        oldest.unlink()
        self.total -= size


def last_hash(path: Path) -> str | None:
    """The hash of a file's last entry that can be read, None where there is none in its last 64 KiB."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - MOST_LINE))
        lines = file.read().splitlines(keepends=True)
    for raw in reversed(lines):
        try:
            return msgspec.json.decode(raw, type=Head).entry_hash
        except (msgspec.DecodeError, UnicodeDecodeError):
            log(LOGGER, ALERT, "the last line of the audit log is no entry: 'rbee audit verify' tells more", file=path)
    return None


def _is_entry(raw: bytes) -> bool:
    fields = fields_of(raw)
    return fields is not None and fields["entry_hash"] == hash_of(fields)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
