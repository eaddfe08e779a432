"""The key ``audit`` of a daemon's configuration."""

from typing import Annotated

from msgspec import Meta

from rbee.host.audit.entries import AuditLevel

AuditSetting = Annotated[str, Meta(pattern="^(off|changes|all)$")] | bool
"""How much of what happens is written to the audit log; YAML reads ``off`` as false."""


def audit_level(setting: AuditSetting) -> AuditLevel:
    """The level that a setting stands for; raises ValueError, which becomes the file's error, for ``true``."""
    if isinstance(setting, str):
        return AuditLevel(setting)
    if setting:
        raise ValueError("audit: expected off, changes or all")
    return AuditLevel.OFF
