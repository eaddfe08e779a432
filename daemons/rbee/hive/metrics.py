"""What the hive counts and measures; the names are an interface (docs, dashboards, benches)."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from rbee.host.audit.metrics import AuditMetrics
from rbee.wire.http.metrics import DURATION_BUCKETS
from rbee.wire.messages import GpuFacts, WorkerReport, WorkerState

LOAD_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
REPORTED_STATES = tuple(state for state in WorkerState if state is not WorkerState.STALE)


class HiveMetrics:
    """The hive's metrics on one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.audit = AuditMetrics(registry, "rbee_hive")
        self.ready_callbacks = Counter(
            "rbee_hive_worker_ready_callbacks_total",
            "Ready callbacks sent to the queen, each try by its outcome",
            ("status",),
            registry=registry,
        )
        self.ready_latency = Histogram(
            "worker_ready_latency_seconds",
            "From the start of a worker's unit to READY=1",
            buckets=LOAD_BUCKETS,
            registry=registry,
        )
        self.ready_signal = Histogram(
            "rbee_hive_ready_signal_seconds",
            "From a unit becoming active to the hive knowing it",
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self.callback = Histogram(
            "rbee_hive_callback_seconds",
            "Round trip of a callback that the queen accepted",
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self.workers = Gauge("rbee_hive_workers", "Workers by state", ("state",), registry=registry)
        self.gpu_total = Gauge("rbee_hive_gpu_memory_total_bytes", "Memory of a GPU", ("gpu",), registry=registry)
        self.gpu_used = Gauge("rbee_hive_gpu_memory_used_bytes", "Memory of a GPU in use", ("gpu",), registry=registry)
        self.health_checks = Counter(
            "rbee_hive_health_checks_total", "HTTP health checks of workers", ("result",), registry=registry
        )
        self.crashes = Counter(
            "rbee_hive_worker_crashes_total", "Lives of workers that ended badly", ("model",), registry=registry
        )
        self.callback_degraded = Gauge(
            "rbee_hive_callback_degraded",
            "1 while reports to the queen fail with all their tries",
            registry=registry,
        )
        self.bus_reconnects = Counter(
            "rbee_hive_bus_reconnects_total", "Losses of the system bus that were healed", registry=registry
        )
        self.certificate_end = Gauge(
            "rbee_hive_certificate_end_timestamp_seconds",
            "When this node's certificate ends, in seconds since the epoch; 0 without one",
            registry=registry,
        )
        self.heartbeats = Counter("rbee_hive_heartbeats_total", "Heartbeats by outcome", ("status",), registry=registry)
        self._preset()

    def _preset(self) -> None:
        """Show every label value from the start: a rate over a series that appears late loses its first step."""
        for status in ("success", "failure"):
            self.ready_callbacks.labels(status)
            self.heartbeats.labels(status)
        for result in ("healthy", "unhealthy"):
            self.health_checks.labels(result)
        self.count_workers([])

    def count_workers(self, reports: list[WorkerReport]) -> None:
        """Set the gauge of workers by state."""
        counts: dict[WorkerState, int] = dict.fromkeys(REPORTED_STATES, 0)
        for report in reports:
            counts[report.state] += 1
        for state, count in counts.items():
            self.workers.labels(state.value).set(count)

    def show_gpus(self, gpus: list[GpuFacts]) -> None:
        """Set the gauges of GPU memory."""
        for gpu in gpus:
            self.gpu_total.labels(str(gpu.index)).set(gpu.memory_total_bytes)
            self.gpu_used.labels(str(gpu.index)).set(gpu.memory_used_bytes)
