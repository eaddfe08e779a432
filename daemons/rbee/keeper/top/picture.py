"""The picture of a fleet at one moment: what the queen told, put together."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from rbee.keeper.top.figures import Figures, Rates, Sample, between, rates_of_workers
from rbee.keeper.workers import Health
from rbee.wire.machines import HiveView
from rbee.wire.messages import WorkerReport

WINDOW_S = 10.0
"""Rates and the median are those of the last so many seconds."""


class QueenFacts(msgspec.Struct, frozen=True):
    """What is shown of the queen's /health."""

    status: str = "unknown"
    version: str = ""
    in_flight: int = 0
    waiting: int = 0
    degraded: list[str] = []


class WorkerPicture(msgspec.Struct, frozen=True):
    """One worker and its rates."""

    report: WorkerReport
    rates: Rates = Rates()


class Picture(msgspec.Struct, frozen=True):
    """The whole fleet, as `rbee top --json` prints it; ``problem`` says why the figures are old, or is empty."""

    queen: QueenFacts
    figures: Figures
    hives: Sequence[HiveView]
    workers: Sequence[WorkerPicture]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Look:
    """What one round of questions brought."""

    queen: QueenFacts
    hives: Sequence[HiveView]
    sample: Sample


def with_workers(sample: Sample, health: Iterable[Health]) -> Sample:
    """The sample with each worker's own counters."""
    answered = {f"{one.hive_id}/{one.worker_id}": one.health for one in health if one.health is not None}
    return replace(
        sample,
        tokens_of={name: found.tokens_total for name, found in answered.items()},
        requests_of={name: found.requests_total for name, found in answered.items()},
    )


@dataclass(slots=True)
class Fleet:
    """What is known so far: looks of the last seconds, and workers as events told of them."""

    workers: dict[str, WorkerReport] = field(default_factory=dict)
    problem: str = ""
    _looks: deque[Look] = field(default_factory=deque)

    def looked(self, look: Look) -> None:
        """A round of questions was answered."""
        self._looks.append(look)
        while len(self._looks) > 2 and look.sample.at - self._looks[1].sample.at >= WINDOW_S:
            self._looks.popleft()
        self.problem = ""

    def told(self, report: WorkerReport, *, removed: bool) -> None:
        """An event about a worker came."""
        name = f"{report.hive_id}/{report.worker_id}"
        if removed:
            self.workers.pop(name, None)
        else:
            self.workers[name] = report

    def picture(self) -> Picture:
        """The picture of this moment."""
        if not self._looks:
            return Picture(QueenFacts(), Figures(), [], self._workers({}), self.problem)
        first, last = self._looks[0], self._looks[-1]
        figures = between(first.sample, last.sample, last.queen.in_flight)
        rates = rates_of_workers(first.sample, last.sample)
        return Picture(last.queen, figures, last.hives, self._workers(rates), self.problem)

    def _workers(self, rates: dict[str, Rates]) -> list[WorkerPicture]:
        return [WorkerPicture(self.workers[name], rates.get(name, Rates())) for name in sorted(self.workers)]
