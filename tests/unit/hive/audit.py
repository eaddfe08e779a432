"""An audit log for parts of a hive that are tested alone."""

from pathlib import Path

from prometheus_client import CollectorRegistry

from rbee.host.audit.entries import AuditLevel
from rbee.host.audit.log import AuditLog
from rbee.host.audit.metrics import AuditMetrics


def audit_in(folder: Path) -> AuditLog:
    """One that is switched off, so that nobody has to end it."""
    return AuditLog(folder, AuditLevel.OFF, AuditMetrics(CollectorRegistry(), "rbee_hive"))
