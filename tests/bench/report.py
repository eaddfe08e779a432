"""What a bench has to say: figures beside their targets, as a table, as JSON, and in docs/performance.md."""

import datetime
import json
import operator
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
RESULTS = CHECKOUT / "build/bench"
PAGE = CHECKOUT / "docs/performance.md"
_BEGIN, _END = "<!-- figures: written by tests/bench/run all -->", "<!-- end of figures -->"
_SIGNS = {"<=": operator.le, "=": operator.eq, ">=": operator.ge}
Metrics = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure has to be: ``sign`` is <=, = or >=."""

    sign: str
    value: float

    def met(self, measured: float | None) -> bool:
        """Whether the figure is as it has to be; one that could not be measured is not."""
        return measured is not None and bool(_SIGNS[self.sign](measured, self.value))

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric of a bench: its name in the JSON, its unit, what it says, and its target if it has one.

    ``beside`` names the figure that a miss is explained by: the floor, or what the difference was made of.
    """

    name: str
    unit: str
    meaning: str
    target: Target | None = None
    beside: str | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a bench found: its metrics by name, and its rounds as they came."""

    metrics: Metrics
    rounds: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Bench:
    """One bench: ``measure`` takes whether it has to be quick."""

    name: str
    purpose: str
    figures: tuple[Figure, ...]
    measure: Callable[[bool], Measured]


@dataclass(frozen=True, slots=True)
class Result:
    """A bench's result as it is kept in build/bench/NAME.json."""

    name: str
    date: str
    machine: str
    quick: bool
    metrics: Metrics
    rounds: list[dict[str, Any]]

    @classmethod
    def of(cls, bench: Bench, machine: str, quick: bool, found: Measured) -> "Result":
        """The result of a run that ends now; raises KeyError for a metric that no figure describes."""
        unknown = found.metrics.keys() - {figure.name for figure in bench.figures}
        if unknown:
            raise KeyError(f"{bench.name} has no figure for {sorted(unknown)}")
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        metrics = {figure.name: _rounded(found.metrics.get(figure.name)) for figure in bench.figures}
        return cls(bench.name, now, machine, quick, metrics, found.rounds)

    @classmethod
    def kept(cls, bench: Bench) -> "Result | None":
        """The last result of the bench that was saved here, None where there is none."""
        path = RESULTS / f"{bench.name}.json"
        if not path.exists():
            return None
        found = cls(**json.loads(path.read_text()))
        return replace(found, metrics={figure.name: found.metrics.get(figure.name) for figure in bench.figures})

    def save(self) -> Path:
        """Write build/bench/NAME.json."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
        return path


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def _shown(value: float | None, unit: str) -> str:
    if value is None:
        return "not measured"
    return f"{value:.4g} {unit}".rstrip()


def _verdict(figure: Figure, value: float | None) -> str:
    if figure.target is None:
        return ""
    return "met" if figure.target.met(value) else "MISSED"


def rows(bench: Bench, result: Result) -> list[tuple[str, str, str, str, str]]:
    """Name, value, target, verdict and meaning of each figure."""
    return [
        (
            figure.name,
            _shown(result.metrics[figure.name], figure.unit),
            str(figure.target or ""),
            _verdict(figure, result.metrics[figure.name]),
            figure.meaning,
        )
        for figure in bench.figures
    ]


def table(bench: Bench, result: Result) -> str:
    """The figures for a terminal."""
    lines = [("figure", "measured", "target", "", ""), *rows(bench, result)]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line[:4], widths, strict=True)) for line in lines]
    return "\n".join(f"{head}  {line[4]}".rstrip() for head, line in zip(text, lines, strict=True))


def write_page(results: Sequence[tuple[Bench, Result]]) -> Path:
    """Put the figures into docs/performance.md; what is written around them stays."""
    before, _, rest = PAGE.read_text().partition(_BEGIN)
    _, _, after = rest.partition(_END)
    parts = [part for bench, result in results for part in _section(bench, result)]
    PAGE.write_text("\n".join([f"{before}{_BEGIN}", "", *parts, *_misses(results), "", f"{_END}{after}"]))
    return PAGE


def _section(bench: Bench, result: Result) -> list[str]:
    quick = ", a quick run" if result.quick else ""
    lines = [f"## {bench.name}", "", f"{bench.purpose} Measured {result.date[:10]} on {result.machine}{quick}.", ""]
    lines += ["| figure | measured | target | | what it says |", "|---|---|---|---|---|"]
    for name, value, target, verdict, meaning in rows(bench, result):
        lines.append(f"| `{name}` | {value} | {target} | {verdict} | {meaning} |")
    return [*lines, ""]


def _misses(results: Sequence[tuple[Bench, Result]]) -> list[str]:
    missed = [
        _miss(bench, result, figure)
        for bench, result in results
        for figure in bench.figures
        if figure.target is not None and not figure.target.met(result.metrics[figure.name])
    ]
    return ["## Targets that were missed", "", *(missed or ["None."])]


def _miss(bench: Bench, result: Result, figure: Figure) -> str:
    said = f"- `{figure.name}` of {bench.name}: {_shown(result.metrics[figure.name], figure.unit)}, "
    said += f"where {figure.target} is the target"
    if figure.beside is not None:
        said += f"; `{figure.beside}` of the same run was {_shown(result.metrics[figure.beside], figure.unit)}"
    return f"{said}. The host: {result.machine}."
