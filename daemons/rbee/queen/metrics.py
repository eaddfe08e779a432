"""What the queen counts and times of herself; labels are bounded by known models, routes, states and codes."""

from collections import Counter as Tally
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from rbee.host.audit.metrics import AuditMetrics
from rbee.queen.placement.declarations import Declarations
from rbee.queen.registry.registry import Registry
from rbee.queen.routing.breaker import BreakerState
from rbee.queen.routing.metrics import PlacingMetrics
from rbee.wire.declarations import DeclaredBy
from rbee.wire.http.counts import Counts
from rbee.wire.http.durations import Durations
from rbee.wire.http.metrics import DURATION_BUCKETS, HOP_BUCKETS, HttpMetrics
from rbee.wire.messages import WorkerState


class QueenMetrics:
    """All metrics of a queen on a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.http = HttpMetrics(registry, "queen_rbee")
        self.placing = PlacingMetrics(registry)
        self.audit = AuditMetrics(registry, "queen_rbee")
        self.ready_notifications = Counter(
            "queen_rbee_worker_ready_notifications_received_total",
            "Ready callbacks that hives delivered, repeated and late ones included",
            registry=registry,
        )
        self.fallback_polls = Counter(
            "queen_rbee_readiness_fallback_polls_total",
            "Times that a worker was asked whether it is ready because its hive was silent; 0 in a healthy system",
            registry=registry,
        )
        self.callback_delivery = Durations(
            "queen_rbee_callback_delivery_seconds",
            "From a hive's sending of a callback to its arrival (clocks of two machines may differ)",
            buckets=HOP_BUCKETS,
            registry=registry,
        )
        self.request_duration = Durations(
            "queen_rbee_request_duration_seconds",
            "Inference requests from arrival to the end of their answer",
            ("route", "outcome"),
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self.requests = Counts("queen_rbee_requests_total", "Inference requests", registry=registry)
        self.errors = Counter(
            "queen_rbee_errors_total", "Inference requests that ended with an error, by code", ("code",),
            registry=registry,
        )  # fmt: skip
        self.heartbeats = Counter("queen_rbee_heartbeats_total", "Heartbeats received", registry=registry)
        self.fleet_refusals = Counter(
            "queen_rbee_fleet_refusals_total",
            "Words of hives that were refused: by a token or certificate of another (speaker), of addresses that are "
            "not the node's (address)",
            ("reason",),
            registry=registry,
        )
        for reason in ("speaker", "address"):
            self.fleet_refusals.labels(reason)
        self.events_dropped = Counter(
            "queen_rbee_event_listeners_dropped_total", "Event listeners let go because they did not keep up",
            registry=registry,
        )  # fmt: skip

    def watch(self, workers: Registry, declarations: Declarations, kept: Callable[[], int]) -> None:
        """Count workers, hives and declared models whenever somebody scrapes; ``kept``: workers that are kept now."""
        self.registry.register(_Census(workers, declarations, kept))


class _Census(Collector):
    def __init__(self, workers: Registry, declarations: Declarations, kept: Callable[[], int]) -> None:
        self._workers = workers
        self._declarations = declarations
        self._kept = kept

    def collect(self) -> list[GaugeMetricFamily]:
        """Gauges, made from the registry and the declarations at the time of the scrape."""
        workers = GaugeMetricFamily("queen_rbee_workers", "Workers by state", labels=["state"])
        tally = Tally(worker.state for worker in self._workers.workers())
        for state in WorkerState:
            workers.add_metric([state.value], tally[state])
        hives = GaugeMetricFamily("queen_rbee_hives", "Hives by state", labels=["state"])
        stale = sum(hive.stale for hive in self._workers.hives())
        hives.add_metric(["live"], len(self._workers.hives()) - stale)
        hives.add_metric(["stale"], stale)
        breakers = GaugeMetricFamily("queen_rbee_breakers", "Workers by the state of their breaker", labels=["state"])
        states = Tally(worker.breaker.state for worker in self._workers.workers())
        for breaker in BreakerState:
            breakers.add_metric([breaker.value], states[breaker])
        declared = GaugeMetricFamily(
            "queen_rbee_declared_models", "Models that are declared, by whose word that is", labels=["declared_by"]
        )
        words = Tally(one.declared_by for one in self._declarations.all())
        for by in DeclaredBy:
            declared.add_metric([by.value], words[by])
        kept = GaugeMetricFamily(
            "queen_rbee_kept_workers", "Workers that declarations keep now, by replicas.min and warm times",
            value=self._kept(),
        )  # fmt: skip
        return [workers, hives, breakers, declared, kept]
