"""What an entry of an audit log is: its fields, its canonical form, and the hash that chains it to the one before.

The canonical form of an entry is its JSON without ``entry_hash``: keys sorted at every depth, no white space, UTF-8.
``entry_hash`` is the SHA-256 of that in hex, and ``previous_hash`` is the ``entry_hash`` of the entry before.
"""

import datetime
import enum
import hashlib
from typing import Any

import msgspec

GENESIS = "0" * 64
"""``previous_hash`` of the very first entry."""
SYSTEM = "system"
"""The actor of what a daemon does by itself."""
_canonical = msgspec.json.Encoder(order="sorted").encode
_HASH_FIELD = "entry_hash"


class AuditLevel(enum.StrEnum):
    """How much is written: nothing; what changes something and who was refused; every caller and inference too."""

    OFF = "off"
    CHANGES = "changes"
    ALL = "all"


class EventType(enum.StrEnum):
    """What an entry tells of; the names are an interface."""

    AUDIT_STARTED = "audit.started"
    AUDIT_STOPPED = "audit.stopped"
    AUDIT_LEVEL = "audit.level"
    AUDIT_LOST = "audit.lost"
    AUDIT_RECOVERED = "audit.recovered"
    AUDIT_REMOVED = "audit.removed"
    AUTH_FAILURE = "auth.failure"
    AUTH_SUCCESS = "auth.success"
    CONFIG_RELOAD = "config.reload"
    CREDENTIAL_CHANGE = "credential.change"
    WORKER_SPAWN = "worker.spawn"
    WORKER_STOP = "worker.stop"
    WORKER_RESTART = "worker.restart"
    WORKER_REGISTER = "worker.register"
    WORKER_REMOVE = "worker.remove"
    WORKER_HOLD = "worker.hold"
    WORKER_ASSIGNED = "worker.assigned"
    MODEL_DECLARE = "model.declare"
    MODEL_FETCH = "model.fetch"
    MODEL_REMOVE = "model.remove"
    MODEL_PIN = "model.pin"
    ALIAS_CHANGE = "alias.change"
    NODE_ADD = "node.add"
    NODE_UPDATE = "node.update"
    NODE_REMOVE = "node.remove"
    NODE_ENROL = "node.enrol"
    NODE_ROTATE = "node.rotate"
    NODE_CERTIFY = "node.certify"
    INFERENCE_START = "inference.start"
    INFERENCE_COMPLETE = "inference.complete"


ONLY_IN_ALL = frozenset(
    {EventType.AUTH_SUCCESS, EventType.INFERENCE_START, EventType.WORKER_ASSIGNED, EventType.INFERENCE_COMPLETE}
)
"""Events that the level ``changes`` leaves out; a crash of the machine may cost the latest second of them."""

Value = str | int | list[str]
Details = dict[str, Value]
"""Facts of an event. No floating-point number: its text is not the same everywhere, and so its hash would not be."""


class Entry(msgspec.Struct, frozen=True):
    """One line of the file. ``timestamp`` is ISO 8601 in UTC with microseconds."""

    timestamp: str
    event_type: EventType
    actor: str
    details: Details
    previous_hash: str
    entry_hash: str = ""


class Head(msgspec.Struct, frozen=True):
    """What is read of a line of any version to chain the next one to it."""

    previous_hash: str
    entry_hash: str


def sealed(unix: float, event_type: EventType, actor: str, details: Details, previous_hash: str) -> Entry:
    """The entry that follows the one of ``previous_hash``."""
    entry = Entry(_iso(unix), event_type, actor, details, previous_hash)
    fields = msgspec.structs.asdict(entry)
    return msgspec.structs.replace(entry, entry_hash=hash_of(fields))


def hash_of(fields: dict[str, Any]) -> str:
    """The hash that an entry of these fields should have; one that it names itself is left out."""
    return hashlib.sha256(_canonical({key: value for key, value in fields.items() if key != _HASH_FIELD})).hexdigest()


def line_of(entry: Entry) -> bytes:
    """The entry as it stands in the file."""
    return msgspec.json.encode(entry) + b"\n"


def _iso(unix: float) -> str:
    moment = datetime.datetime.fromtimestamp(unix, datetime.UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")
