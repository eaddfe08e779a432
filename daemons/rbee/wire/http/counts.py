"""A counter that costs one event loop next to nothing: an addition, no lock."""

import time
from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector


class Count:
    """What is counted under one set of labels."""

    __slots__ = ("created_unix", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.created_unix = time.time()

    def inc(self) -> None:
        """One more."""
        self.value += 1.0


class Counts(Collector):
    """A family of :class:`Count` by labels, shown as a Prometheus counter; for use from one thread."""

    def __init__(
        self, name: str, documentation: str, labelnames: Sequence[str] = (), *, registry: CollectorRegistry
    ) -> None:
        self._words = name, documentation
        self._labelnames = tuple(labelnames)
        self._counts: dict[tuple[str, ...], Count] = {}
        if not self._labelnames:
            self.labels()
        registry.register(self)

    def labels(self, *values: str) -> Count:
        """The count of these values, in the order of the names."""
        count = self._counts.get(values)
        if count is None:
            if len(values) != len(self._labelnames):
                raise ValueError(f"{self._words[0]} has the labels {self._labelnames}")
            count = self._counts[values] = Count()
        return count

    def describe(self) -> Iterable[CounterMetricFamily]:
        """The family without its counts."""
        return [CounterMetricFamily(*self._words, labels=self._labelnames)]

    def collect(self) -> Iterable[CounterMetricFamily]:
        """The family as it is now."""
        (family,) = self.describe()
        for values, count in self._counts.items():
            family.add_metric(values, count.value, created=count.created_unix)
        return [family]
