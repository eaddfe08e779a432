"""What the queen counts and times of herself; labels are bounded by known models, routes, states and codes."""

import enum
from collections import Counter as Tally

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from rbee.queen.breaker import BreakerState
from rbee.queen.fair import FairQueue, Priority
from rbee.queen.registry import Registry
from rbee.queen.routing import Reason
from rbee.queen.waiting import Waiter
from rbee.wire.http.durations import Durations
from rbee.wire.http.metrics import DURATION_BUCKETS, HttpMetrics
from rbee.wire.messages import WorkerState

HOP_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
"""Seconds of one hop: milliseconds when healthy, tries with backoff when not."""
ROUTE_BUCKETS = (5e-6, 1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 7.5e-5, 1e-4, 1.5e-4, 2e-4, 5e-4, 1e-3, 1e-2)
"""Seconds of one decision: tens of microseconds."""


class Shed(enum.StrEnum):
    """Why a request was refused a worker."""

    CLIENT_LIMIT = "client_limit"
    QUEUE_FULL = "queue_full"
    EXPECTED_WAIT = "expected_wait"
    DEADLINE = "deadline"
    OUT_OF_REACH = "out_of_reach"
    ALL_BUSY = "all_busy"


class QueenMetrics:
    """All metrics of a queen on a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.http = HttpMetrics(registry, "queen_rbee")
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
        self.ready_to_first_request = Durations(
            "queen_rbee_ready_to_first_request_seconds",
            "From a ready callback's arrival to the first waiting request sent to that worker",
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
        self.requests = Counter("queen_rbee_requests_total", "Inference requests", registry=registry)
        self.errors = Counter(
            "queen_rbee_errors_total", "Inference requests that ended with an error, by code", ("code",),
            registry=registry,
        )  # fmt: skip
        queue = Durations(
            "queen_rbee_queue_seconds",
            "Time that a request waited for a worker",
            ("priority",),
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        self.waiting = Gauge(
            "queen_rbee_waiting_requests", "Requests that wait for a worker of the model", ("model", "priority"),
            registry=registry,
        )  # fmt: skip
        self._shed = Counter(
            "queen_rbee_shed_requests_total", "Requests that were refused a worker, by reason", ("reason",),
            registry=registry,
        )  # fmt: skip
        self.route = Durations(
            "queen_rbee_route_seconds",
            "CPU time that the choice of a worker took, of one choice in eight",
            buckets=ROUTE_BUCKETS,
            registry=registry,
        )
        placements = Counter(
            "queen_rbee_placements_total", "Requests given to a worker, by why it was that one", ("reason",),
            registry=registry,
        )  # fmt: skip
        self.affinity = Counter(
            "queen_rbee_affinity_total",
            "Prompts by whether a worker had their beginning: hit, miss, or overloaded and so passed over",
            ("outcome",),
            registry=registry,
        )
        self.retries = Counter(
            "queen_rbee_retries_total",
            "Requests placed anew, by what the worker before had done: refused, unreachable, broke_off",
            ("reason",),
            registry=registry,
        )
        self.retries_refused = Counter(
            "queen_rbee_retries_refused_total", "Requests not placed anew because the budget was spent",
            registry=registry,
        )  # fmt: skip
        self.breaker_opened = Counter(
            "queen_rbee_breaker_opened_total", "Times that a worker was taken out because its HTTP failed",
            registry=registry,
        )  # fmt: skip
        for shed in Shed:
            self._shed.labels(shed.value)
        # found once: a look-up by label costs as much as the count itself
        self._queue = {priority: queue.labels(priority.value) for priority in Priority}
        self._placed = {reason: placements.labels(reason.value) for reason in Reason}
        self.heartbeats = Counter("queen_rbee_heartbeats_total", "Heartbeats received", registry=registry)
        self.events_dropped = Counter(
            "queen_rbee_event_listeners_dropped_total", "Event listeners let go because they did not keep up",
            registry=registry,
        )  # fmt: skip

    def shed(self, reason: Shed) -> None:
        """Count a request that was refused a worker."""
        self._shed.labels(reason.value).inc()

    def placed(self, reason: Reason) -> None:
        """Count a request that was given to a worker."""
        self._placed[reason].inc()

    def waited(self, priority: Priority, seconds: float) -> None:
        """Time the wait of a request, whatever came of it."""
        self._queue[priority].observe(seconds)

    def note_waiting(self, model: str, waiters: FairQueue[Waiter], *, known: bool) -> None:
        """Say how many wait for a model; a name that no worker has is no label."""
        for priority in Priority:
            if not len(waiters):
                self.waiting.remove(model, priority.value)
            elif known:
                self.waiting.labels(model, priority.value).set(waiters.waiting(priority))

    def watch(self, workers: Registry) -> None:
        """Count workers and hives by state whenever somebody scrapes."""
        self.registry.register(_Census(workers))


class _Census(Collector):
    def __init__(self, workers: Registry) -> None:
        self._workers = workers

    def collect(self) -> list[GaugeMetricFamily]:
        """Three gauges, made from the registry at the time of the scrape."""
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
        return [workers, hives, breakers]
