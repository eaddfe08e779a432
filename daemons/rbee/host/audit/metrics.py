"""What a daemon counts of its audit log."""

from prometheus_client import CollectorRegistry, Counter, Gauge


class AuditMetrics:
    """``prefix`` is the daemon's: queen_rbee, rbee_hive."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        self.entries = Counter(f"{prefix}_audit_entries_total", "Entries written to the audit log", registry=registry)
        self.lost = Counter(
            f"{prefix}_audit_lost_total",
            "Entries that the audit log could not take: its queue was full, or the disk refused; 0 in a healthy system",
            registry=registry,
        )
        self.size = Gauge(f"{prefix}_audit_bytes", "Size of all files of the audit log", registry=registry)
