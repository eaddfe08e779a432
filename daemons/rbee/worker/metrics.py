"""What a worker counts of itself, beside its HTTP server's own counters."""

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rbee.wire.http.durations import Durations
from rbee.wire.http.metrics import HttpMetrics

if TYPE_CHECKING:
    from rbee.worker.engine.batch.prefix import PrefixCounts
    from rbee.worker.engine.shared_runs import RunCounts

FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
INFERENCE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class PrefixCollector(Collector):
    """What a prefix cache counts, read when somebody asks."""

    def __init__(self, counts: "PrefixCounts") -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Lookups by result, tokens taken over, bytes held."""
        lookups = CounterMetricFamily(
            "rbee_worker_prefix_lookups", "Prompts looked up in the prefix cache, by result", labels=("result",)
        )
        lookups.add_metric(("hit",), self._counts.hits)
        lookups.add_metric(("miss",), self._counts.misses)
        yield lookups
        yield CounterMetricFamily(
            "rbee_worker_prefix_reused_tokens", "Prompt tokens that were not read again", self._counts.reused_tokens
        )
        yield GaugeMetricFamily("rbee_worker_prefix_bytes", "Held by the prefix cache", self._counts.held_bytes)


class RunCollector(Collector):
    """What shared runs do, read when somebody asks: rows over runs is how many share one."""

    def __init__(self, counts: "RunCounts") -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        """Runs, the rows in them, rows that wait."""
        yield CounterMetricFamily("rbee_worker_shared_runs", "Runs of the model that requests share", self._counts.runs)
        yield CounterMetricFamily(
            "rbee_worker_shared_rows", "Texts, pairs or tensor requests in those runs", self._counts.rows
        )
        yield GaugeMetricFamily("rbee_worker_waiting_rows", "Those that wait for a run", self._counts.waiting)


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
        self._ended_of = functools.cache(self.requests.labels)
        self.tokens = Counter("rbee_worker_tokens_total", "Tokens read and written", ("kind",), registry=self.registry)
        self.texts = Counter(
            "rbee_worker_texts_total",
            "Texts that ended, by their end: stop, length",
            ("finish",),
            registry=self.registry,
        )
        self.grammars = Counter(
            "rbee_worker_grammars_total",
            "Texts that were held to a grammar, by its kind",
            ("kind",),
            registry=self.registry,
        )
        self.first_token = Histogram(
            "rbee_worker_time_to_first_token_seconds",
            "From the request to its first text",
            buckets=FIRST_TOKEN_BUCKETS,
            registry=self.registry,
        )
        self.inference = Durations(
            "rbee_worker_inference_seconds",
            "From the request to its last result",
            buckets=INFERENCE_BUCKETS,
            registry=self.registry,
        )
        self.slots = Gauge(
            "rbee_worker_slots", "Slots by state, and requests waiting for one", ("state",), registry=self.registry
        )
        self.load_seconds = Gauge("rbee_worker_load_seconds", "How long loading took", registry=self.registry)
        self.info = Info("rbee_worker", "What this worker is", registry=self.registry)

    def watch_prefixes(self, counts: "PrefixCounts") -> None:
        """Tell from now on what a text model's prefix cache does."""
        self.registry.register(PrefixCollector(counts))

    def watch_runs(self, counts: "RunCounts") -> None:
        """Tell from now on what shared runs do."""
        self.registry.register(RunCollector(counts))

    def ended(self, route: str, outcome: str) -> None:
        """Count a request that ended."""
        self._ended_of(route, outcome).inc()
