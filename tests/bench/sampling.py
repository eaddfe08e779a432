"""The bench `sampling`: a step's choice of tokens beside one that sorts the vocabulary, on scores of two kinds."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbee.worker.engine.sampling import BatchSampler, SamplingParams
from tests.bench.quantiles import median, ratio
from tests.bench.report import Bench, Figure, Measured, Metrics, Target

ROUNDS, QUICK_ROUNDS = 9, 5
BATCHES = {"32x150k": (32, 150_000), "8x32k": (8, 32_000)}
SPREADS = {"peaked": 4.0, "flat": 0.02}
"""Standard deviation of the scores: as of a trained model, and as of one with random weights."""
WAYS = {
    "greedy": SamplingParams(temperature=0.0),
    "plain": SamplingParams(),
    "top_k": SamplingParams(top_k=40),
    "top_p": SamplingParams(top_p=0.9),
    "penalties": SamplingParams(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05),
}
Scores = NDArray[np.float32]


def sorted_choice(scores: Scores, params: SamplingParams, random: np.random.Generator) -> list[int]:
    """The reference: each row in double precision, in the order of a whole sort."""
    if params.temperature == 0.0:
        return [int(row.argmax()) for row in scores]
    chosen = []
    for row in scores:
        order = np.argsort(-row, kind="stable")
        scaled = row[order].astype(np.float64) / params.temperature
        weights = np.exp(scaled - scaled[0])
        if params.top_k:
            weights[params.top_k :] = 0.0
        mass = weights.cumsum()
        last = int(np.searchsorted(mass, params.top_p * mass[-1])) if params.top_p < 1 else len(mass) - 1
        chosen.append(int(order[np.searchsorted(mass[: last + 1], random.random() * mass[last], side="right")]))
    return chosen


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _round(batch: str, spread: str, number: int) -> dict[str, Any]:
    """Each way beside its reference on the same scores."""
    rows, vocabulary = BATCHES[batch]
    random = np.random.default_rng(number)
    scores = random.normal(0, SPREADS[spread], (rows, vocabulary)).astype(np.float32)
    found: dict[str, Any] = {"batch": batch, "spread": spread}
    for name, params in WAYS.items():
        sampler = BatchSampler()
        for key in range(rows):
            sampler.add(key, params, range(500))
        sampler.choose(range(rows), scores)
        found[f"{name}_ms"] = _seconds(lambda sampler=sampler: sampler.choose(range(rows), scores)) * 1000  # type: ignore[misc]
        found[f"{name}_sorted_ms"] = _seconds(lambda params=params: sorted_choice(scores, params, random)) * 1000  # type: ignore[misc]
    return found


def measure(quick: bool) -> Measured:
    """In turns, so that what else the host does meets both alike."""
    rounds = [
        _round(batch, spread, number)
        for number in range(QUICK_ROUNDS if quick else ROUNDS)
        for batch in BATCHES
        for spread in SPREADS
    ]
    found: Metrics = {}
    for batch in BATCHES:
        for name in WAYS:
            mine = [each for each in rounds if each["batch"] == batch]
            worst = max(SPREADS, key=lambda spread: _median(mine, spread, f"{name}_ms"))
            found[f"{name}_{batch}_ms"] = _median(mine, worst, f"{name}_ms")
            found[f"{name}_{batch}_vs_sorted"] = ratio(
                _median(mine, worst, f"{name}_sorted_ms"), _median(mine, worst, f"{name}_ms")
            )
    return Measured(found, rounds)


def _median(rounds: list[dict[str, Any]], spread: str, figure: str) -> float:
    return median(each[figure] for each in rounds if each["spread"] == spread) or 0.0


def _figures() -> tuple[Figure, ...]:
    figures = []
    for batch, (rows, vocabulary) in BATCHES.items():
        for name in WAYS:
            what = f"a step's choice, {name}, {rows} rows of {vocabulary:,} scores, the worse kind of scores"
            target = None if name == "greedy" else Target(">=", 5.0)
            beside = "as fast as " + ("the bare argmax of each row" if name == "greedy" else "sorting each row")
            figures.append(Figure(f"{name}_{batch}_vs_sorted", "x", beside, target))
            figures.append(Figure(f"{name}_{batch}_ms", "ms", what))
    return tuple(figures)


BENCH = Bench(
    "sampling",
    "What the choice of a step's tokens costs, beside one that sorts every row.",
    _figures(),
    measure,
)
