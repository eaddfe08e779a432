"""A histogram of seconds that costs one event loop next to nothing: a bisection and two additions, no lock."""

import bisect
import itertools
import time
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

Bucket = tuple[str, float] | tuple[str, float, Exemplar]


class Series:
    """The observations of one set of labels."""

    __slots__ = ("_bounds", "_counts", "_exemplars", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._exemplars: dict[int, Exemplar] = {}
        self._sum = 0.0

    def observe(self, seconds: float, exemplar: dict[str, str] | None = None) -> None:
        """Count one; ``exemplar`` names a request that took so long."""
        at = bisect.bisect_left(self._bounds, seconds)
        self._counts[at] += 1
        self._sum += seconds
        if exemplar is not None:
            self._exemplars[at] = Exemplar(exemplar, seconds, time.time())

    def buckets(self) -> list[Bucket]:
        """Bound, how many were at most that, and the latest exemplar between it and the bound before."""
        bounds = [*map(repr, self._bounds), "+Inf"]
        rows: list[Bucket] = []
        for at, (bound, count) in enumerate(zip(bounds, itertools.accumulate(self._counts), strict=True)):
            exemplar = self._exemplars.get(at)
            rows.append((bound, float(count)) if exemplar is None else (bound, float(count), exemplar))
        return rows

    @property
    def sum(self) -> float:
        """All of them together."""
        return self._sum


class Durations(Collector):
    """A family of :class:`Series` by labels, shown as a Prometheus histogram; for use from one thread."""

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._words = name, documentation
        self._labelnames = tuple(labelnames)
        self._bounds = tuple(buckets)
        self._series: dict[tuple[str, ...], Series] = {}
        if not self._labelnames:
            self.labels()
        registry.register(self)

    def labels(self, *values: str) -> Series:
        """The series of these values, in the order of the names."""
        series = self._series.get(values)
        if series is None:
            if len(values) != len(self._labelnames):
                raise ValueError(f"{self._words[0]} has the labels {self._labelnames}")
            series = self._series[values] = Series(self._bounds)
        return series

    def observe(self, seconds: float, exemplar: dict[str, str] | None = None) -> None:
        """Count one in the family without labels."""
        self.labels().observe(seconds, exemplar)

    def describe(self) -> Iterable[HistogramMetricFamily]:
        """The family without its series."""
        return [HistogramMetricFamily(*self._words, labels=self._labelnames)]

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """The family as it is now."""
        (family,) = self.describe()
        for values, series in self._series.items():
            family.add_metric(values, series.buckets(), series.sum)
        return [family]
