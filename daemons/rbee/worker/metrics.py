"""What a worker counts of itself, beside its HTTP server's own counters."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from rbee.wire.http.metrics import HttpMetrics

FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
INFERENCE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class WorkerMetrics:
    """Metrics in a registry of their own; durations in seconds."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.http = HttpMetrics(self.registry, "rbee_worker")
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "rbee_worker_requests_total",
            "Inference requests that ended, by route and outcome",
            ("route", "outcome"),
            registry=self.registry,
        )
        self.tokens = Counter("rbee_worker_tokens_total", "Tokens read and written", ("kind",), registry=self.registry)
        self.first_token = Histogram(
            "rbee_worker_time_to_first_token_seconds",
            "From the request to its first text",
            buckets=FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.inference = Histogram(
            "rbee_worker_inference_seconds",
            "From the request to its last result",
            buckets=INFERENCE_BUCKETS,
            registry=self.registry,
        )
        self.slots = Gauge("rbee_worker_slots", "Slots by state", ("state",), registry=self.registry)
        self.load_seconds = Gauge("rbee_worker_load_seconds", "How long loading took", registry=self.registry)
        self.info = Info("rbee_worker", "What this worker is", registry=self.registry)

    def ended(self, route: str, outcome: str) -> None:
        """Count a request that ended."""
        self.requests.labels(route, outcome).inc()
