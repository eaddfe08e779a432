"""The key ``audit`` of a daemon's configuration."""

from typing import Annotated

import msgspec
from msgspec import Meta

from rbee.host.audit.entries import AuditLevel

AuditSetting = Annotated[str, Meta(pattern="^(off|changes|all)$")] | bool
"""How much of what happens is written to the audit log; YAML reads ``off`` as false."""


class Audited(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of a daemon that has an audit log; by name alone, ``audit`` comes after its other fields."""

    audit: AuditSetting = "changes"

    def __post_init__(self) -> None:
        """Raise ValueError, which becomes the file's error, for an ``audit`` that is no level."""
        if self.audit is True:
            raise ValueError("audit: expected off, changes or all")

    @property
    def audit_level(self) -> AuditLevel:
        """How much is written to the audit log."""
        return AuditLevel(self.audit) if isinstance(self.audit, str) else AuditLevel.OFF
