"""What the queen counts and times of placing: waits, refusals, choices of a worker, tries anew, and breakers."""

import enum

from prometheus_client import CollectorRegistry, Counter, Gauge

from rbee.queen.admission.fair import FairQueue, Priority
from rbee.queen.admission.waiting import Waiter
from rbee.queen.placement.scaling import Why
from rbee.queen.routing.decision import Reason
from rbee.wire.http.counts import Counts
from rbee.wire.http.durations import Durations
from rbee.wire.http.metrics import DURATION_BUCKETS, HOP_BUCKETS

ROUTE_BUCKETS = (
    5e-6, 1e-5, 1.5e-5, 2e-5, 2.5e-5, 3e-5, 4e-5, 5e-5, 6e-5, 7e-5, 8e-5, 9e-5, 1e-4, 1.1e-4, 1.2e-4, 1.5e-4, 2e-4,
    5e-4, 1e-3, 1e-2,
)  # fmt: skip
"""Seconds of one decision: tens of microseconds."""


class Shed(enum.StrEnum):
    """Why a request was refused a worker."""

    CLIENT_LIMIT = "client_limit"
    QUEUE_FULL = "queue_full"
    EXPECTED_WAIT = "expected_wait"
    DEADLINE = "deadline"
    OUT_OF_REACH = "out_of_reach"
    ALL_BUSY = "all_busy"


class Remembered(enum.StrEnum):
    """Whether a worker had the beginning of a prompt: and got it, or was busy and so passed over."""

    HIT = "hit"
    MISS = "miss"
    OVERLOADED = "overloaded"


class PlacingMetrics:
    """Metrics of admission, placement and retries, on the registry of the queen's."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._make_waits(registry)
        self._make_choices(registry)
        self._make_failures(registry)

    def _make_waits(self, registry: CollectorRegistry) -> None:
        self.ready_to_first_request = Durations(
            "queen_rbee_ready_to_first_request_seconds",
            "From a ready callback's arrival to the first waiting request sent to that worker",
            buckets=HOP_BUCKETS,
            registry=registry,
        )
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
        for shed in Shed:
            self._shed.labels(shed.value)
        # found once: a look-up by label costs as much as the count itself
        self._queue = {priority: queue.labels(priority.value) for priority in Priority}

    def _make_choices(self, registry: CollectorRegistry) -> None:
        self.route = Durations(
            "queen_rbee_route_seconds",
            "CPU time that the choice of a worker took, of one choice in eight",
            buckets=ROUTE_BUCKETS,
            registry=registry,
        )
        placements = Counts(
            "queen_rbee_placements_total", "Requests given to a worker, by why it was that one", ("reason",),
            registry=registry,
        )  # fmt: skip
        affinity = Counts(
            "queen_rbee_affinity_total",
            "Prompts by whether a worker had their beginning: hit, miss, or overloaded and so passed over",
            ("outcome",),
            registry=registry,
        )
        self.worker_placements = Counter(
            "queen_rbee_worker_placements_total",
            "Workers that were to be placed on a node, by what came of it: placed, or the code of the error",
            ("outcome",),
            registry=registry,
        )
        self.worker_placements.labels("placed")
        self.estimates = Counter(
            "queen_rbee_worker_estimates_total",
            "Decisions on where a worker starts, by what its need of memory rests on: measured (at the last start of "
            "one like it), files, nothing",
            ("basis",),
            registry=registry,
        )
        self.evictions = Counter(
            "queen_rbee_evictions_total", "Idle workers that ended so that another one fits", registry=registry
        )
        self.drains = Counter(
            "queen_rbee_drains_total",
            "Workers of declared models that ended: replaced by one of a changed declaration, before that one "
            "starts for want of memory (makes_way), surplus, or idle",
            ("reason",),
            registry=registry,
        )
        for why in Why:
            self.drains.labels(why.value)
        self.replacements_failed = Counter(
            "queen_rbee_replacements_failed_total",
            "Workers of a changed declaration that did not come up: those of the former one went on",
            registry=registry,
        )
        self._affinity = {outcome: affinity.labels(outcome.value) for outcome in Remembered}
        self._placed = {reason: placements.labels(reason.value) for reason in Reason}

    def _make_failures(self, registry: CollectorRegistry) -> None:
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

    def shed(self, reason: Shed) -> None:
        """Count a request that was refused a worker."""
        self._shed.labels(reason.value).inc()

    def looked_up(self, outcome: Remembered) -> None:
        """Count a prompt whose beginning was looked for."""
        self._affinity[outcome].inc()

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
