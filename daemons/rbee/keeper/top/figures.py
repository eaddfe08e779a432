"""Figures of a moment and of the time between two: counters become rates, buckets become a median."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from prometheus_client.parser import text_string_to_metric_families

_REQUESTS, _ERRORS = "queen_rbee_requests_total", "queen_rbee_errors_total"
_WAITING = "queen_rbee_waiting_requests"
_BUCKET = "queen_rbee_request_duration_seconds_bucket"
_WELL = "ok"


@dataclass(frozen=True, slots=True)
class Sample:
    """The queen's counters at a moment (monotonic seconds), and each worker's, by HIVE/WORKER.

    ``buckets`` counts requests that ended well by the upper bound of their seconds, each bound those below it included.
    """

    at: float
    requests: float = 0.0
    errors: float = 0.0
    waiting: Mapping[str, int] = field(default_factory=dict)
    buckets: Mapping[float, float] = field(default_factory=dict)
    tokens_of: Mapping[str, int] = field(default_factory=dict)
    requests_of: Mapping[str, int] = field(default_factory=dict)


class Figures(msgspec.Struct, frozen=True):
    """The whole fleet: rates a second over the last seconds, the median request in ms, what waits and runs now."""

    requests_per_s: float = 0.0
    errors_per_s: float = 0.0
    tokens_per_s: float = 0.0
    p50_ms: float | None = None
    in_flight: int = 0
    waiting: dict[str, int] = {}


class Rates(msgspec.Struct, frozen=True):
    """One worker: requests and tokens a second."""

    requests_per_s: float = 0.0
    tokens_per_s: float = 0.0


def read_metrics(text: str, at: float) -> Sample:
    """The queen's part of a sample, from her /metrics; what a scrape lacks counts as nothing."""
    totals: Counter[str] = Counter()
    waiting: Counter[str] = Counter()
    buckets: Counter[float] = Counter()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in (_REQUESTS, _ERRORS):
                totals[sample.name] += round(sample.value)
            elif sample.name == _WAITING and sample.value:
                waiting[sample.labels.get("model", "")] += round(sample.value)
            elif sample.name == _BUCKET and sample.labels.get("outcome") == _WELL:
                buckets[float(sample.labels["le"])] += round(sample.value)
    return Sample(at, totals[_REQUESTS], totals[_ERRORS], dict(waiting), dict(buckets))


def between(before: Sample, after: Sample, in_flight: int = 0) -> Figures:
    """The fleet's figures over the time between two samples; zero rates where they are of one moment."""
    workers = rates_of_workers(before, after)
    return Figures(
        requests_per_s=_rate(before.requests, after.requests, before, after),
        errors_per_s=_rate(before.errors, after.errors, before, after),
        tokens_per_s=round(sum(one.tokens_per_s for one in workers.values()), 1),
        p50_ms=median_ms(before.buckets, after.buckets),
        in_flight=in_flight,
        waiting=dict(after.waiting),
    )


def rates_of_workers(before: Sample, after: Sample) -> dict[str, Rates]:
    """Each worker's rates; one that is new counts from its start."""
    return {
        worker: Rates(
            _rate(before.requests_of.get(worker, 0), after.requests_of.get(worker, 0), before, after),
            _rate(before.tokens_of.get(worker, 0), tokens, before, after),
        )
        for worker, tokens in after.tokens_of.items()
    }


def median_ms(before: Mapping[float, float], after: Mapping[float, float]) -> float | None:
    """The median of what was counted between two states of a histogram, in ms; None where nothing was.

    Within the bucket that holds it the counts are taken to be spread evenly; past the last bound it is that bound.
    """
    restarted = any(after.get(bound, 0) < count for bound, count in before.items())
    bounds = sorted(after)
    counts = [after[bound] - (0 if restarted else before.get(bound, 0)) for bound in bounds]
    if not counts or counts[-1] <= 0:
        return None
    half = counts[-1] / 2
    lower, below = 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count >= half:
            if math.isinf(bound):
                return round(lower * 1000, 1)
            return round((lower + (bound - lower) * (half - below) / (count - below)) * 1000, 1)
        lower, below = bound, count
    return None


def _rate(before: float, after: float, first: Sample, last: Sample) -> float:
    """A counter's growth a second; one that is lower than before began anew."""
    seconds = last.at - first.at
    grown = after - before if after >= before else after
    return round(grown / seconds, 1) if seconds > 0 else 0.0
