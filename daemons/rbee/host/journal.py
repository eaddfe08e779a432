"""Log records into the journal, with their fields (systemd's native journal protocol), or as text elsewhere.

Protocol: https://systemd.io/JOURNAL_NATIVE_PROTOCOL/
"""

import datetime
import logging
import os
import re
import socket
import struct
import sys
import traceback

from rbee.wire import context
from rbee.wire.auth import redacted
from rbee.wire.log import ALERT, fields_of

JOURNAL_SOCKET = "/run/systemd/journal/socket"
_UNSAFE = re.compile(r"[^A-Z0-9_]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def setup_logging(component: str, level: str) -> None:
    """Send records of ``level`` and above to the journal when stderr is the journal, else to stderr as text."""
    handler: logging.Handler = JournalHandler(component) if _stderr_is_journal() else TextHandler(component)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    set_level(level)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def set_level(level: str) -> None:
    """Put another level in force: debug, info, warning or error."""
    logging.getLogger().setLevel(level.upper())


def _stderr_is_journal() -> bool:
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        status = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return device == str(status.st_dev) and inode == str(status.st_ino)


def _priority(level: int) -> int:
    if level >= ALERT:
        return 1
    if level >= logging.CRITICAL:
        return 2
    if level >= logging.ERROR:
        return 3
    if level >= logging.WARNING:
        return 4
    return 6 if level >= logging.INFO else 7


def _message(record: logging.LogRecord) -> str:
    """The sentence, its fields behind it, and no control character that could forge a second record."""
    fields = dict(fields_of(record))
    correlation = context.correlation_id.get()
    if correlation is not None:
        fields.setdefault("correlation_id", correlation)
    text = record.getMessage()
    if fields:
        text += " " + " ".join(f"{key}={_quoted(value)}" for key, value in fields.items())
    return _CONTROL.sub("?", redacted(text))


def _lines(record: logging.LogRecord) -> str:
    """The same where a record is a line: what follows a newline in it does not look like a record of its own."""
    return _message(record).replace("\n", "\n    ")


def _quoted(value: object) -> str:
    text = str(value).replace("\n", "\\n")
    return f'"{text}"' if " " in text or not text else text


def _stack(record: logging.LogRecord) -> str:
    return redacted("".join(traceback.format_exception(*record.exc_info)).rstrip()) if record.exc_info else ""


class TextHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Readable lines on stderr: time, level, component, sentence, fields, stack if any."""

    def __init__(self, component: str) -> None:
        super().__init__(sys.stderr)
        self._component = component

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        stack = _stack(record)
        line = f"{moment} {record.levelname} {self._component}: {_lines(record)}"
        return f"{line}\n{stack}" if stack else line


class JournalHandler(logging.Handler):
    """One datagram a record: MESSAGE, PRIORITY, RBEE_COMPONENT, RBEE_CORRELATION_ID, RBEE_<FIELD>, CODE_*, stack."""

    def __init__(self, component: str) -> None:
        super().__init__()
        self._component = component
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def emit(self, record: logging.LogRecord) -> None:
        """Send the record; one that the journal cannot take (restart, too large) goes to stderr as text."""
        data = b"".join(_entry(key, value) for key, value in self._journal_fields(record).items())
        try:
            self._socket.sendto(data, JOURNAL_SOCKET)
        except OSError:
            sys.stderr.write(f"<{_priority(record.levelno)}>{_lines(record)}\n")

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()

    def _journal_fields(self, record: logging.LogRecord) -> dict[str, str]:
        fields = {
            "MESSAGE": _message(record),
            "PRIORITY": str(_priority(record.levelno)),
            "SYSLOG_IDENTIFIER": self._component,
            "RBEE_COMPONENT": self._component,
            "CODE_FILE": record.pathname.rpartition("rbee/")[2],
            "CODE_LINE": str(record.lineno),
            "LOGGER": record.name,
        }
        correlation = context.correlation_id.get()
        if correlation is not None:
            fields["RBEE_CORRELATION_ID"] = correlation
        for key, value in fields_of(record).items():
            fields["RBEE_" + _UNSAFE.sub("_", key.upper())] = redacted(str(value))
        stack = _stack(record)
        if stack:
            fields["RBEE_STACK"] = stack
            fields["MESSAGE"] += redacted(f": {record.exc_info[1]!r}") if record.exc_info and record.exc_info[1] else ""
        return fields


def _entry(key: str, value: str) -> bytes:
    data = value.encode("utf-8", "replace")
    if b"\n" in data:
        # a value of several lines goes with its length, a 64-bit little-endian number, before it
        return key.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return key.encode() + b"=" + data + b"\n"
