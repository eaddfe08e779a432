"""What a reload of a daemon's configuration changed, as entries of its audit log."""

from collections.abc import Set as AbstractSet

import msgspec

from rbee.host.audit.entries import SYSTEM, EventType
from rbee.host.audit.log import AuditLog


def record_reload(audit: AuditLog, before: msgspec.Struct, after: msgspec.Struct) -> None:
    """A reload that was taken: the names of the keys that differ; values are in the file, and could be private."""
    names = [name for name in before.__struct_fields__ if getattr(before, name) != getattr(after, name)]
    audit.record(EventType.CONFIG_RELOAD, SYSTEM, outcome="ok", fields=names)


def record_refused_reload(audit: AuditLog, code: str) -> None:
    """A reload that was refused with an error of that code."""
    audit.record(EventType.CONFIG_RELOAD, SYSTEM, outcome=code)


def record_tokens(audit: AuditLog, before: AbstractSet[str], after: AbstractSet[str]) -> None:
    """The fingerprints of tokens that came in force and went out of it, where there are any."""
    if before != after:
        added, removed = sorted(after - before), sorted(before - after)
        audit.record(EventType.CREDENTIAL_CHANGE, SYSTEM, added=added, removed=removed)
