"""Counters that every HTTP server keeps of itself, and the /metrics route."""

import functools

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as OPENMETRICS_TYPE
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics

from rbee.wire import context
from rbee.wire.auth import redacted
from rbee.wire.http.counts import Counts
from rbee.wire.http.durations import Durations

OPENMETRICS_MEDIA = "application/openmetrics-text"
DURATION_BUCKETS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip
"""Seconds: fine where a hop is a millisecond, coarse where a model loads."""
HOP_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)
"""Seconds of one hop: milliseconds when healthy, tries with backoff when not."""


class HttpMetrics:
    """Requests and their durations by route pattern, method and status; ids are never labels."""

    def __init__(self, registry: CollectorRegistry, prefix: str) -> None:
        self.registry = registry
        self.requests = Counts(
            f"{prefix}_http_requests_total",
            "HTTP requests answered",
            ("route", "method", "status"),
            registry=registry,
        )
        self.requests_of = functools.cache(self.requests.labels)
        """The counter of a route, a method and a status: the library's own way to it costs as much as a count."""
        self.errors = Counter(
            f"{prefix}_http_errors_total", "Answers that are errors, by code", ("code",), registry=registry
        )
        self.duration = Durations(
            f"{prefix}_http_request_seconds",
            "Time from request to the end of its answer",
            ("route",),
            buckets=DURATION_BUCKETS,
            registry=registry,
        )


def exposition(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """The metrics as text and its content type: OpenMetrics where the scraper asks for it, else Prometheus text."""
    if OPENMETRICS_MEDIA in accept:
        return _guarded(generate_openmetrics(registry)), OPENMETRICS_TYPE  # type: ignore[no-untyped-call]
    return _guarded(generate_latest(registry)), CONTENT_TYPE_LATEST


def exemplar() -> dict[str, str] | None:
    """The request in hand as the exemplar of an observation: shown to scrapers that ask for OpenMetrics."""
    correlation_id = context.correlation_id.get()
    return None if correlation_id is None else {"correlation_id": correlation_id}


def _guarded(text: bytes) -> bytes:
    return redacted(text.decode()).encode()
