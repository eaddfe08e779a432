"""The bench `overload`: what a queen serves at twice what her workers can take, and what she tells the rest."""

import json
from dataclasses import asdict, dataclass

from tests.bench import alone, load
from tests.bench.quantiles import median, quantile, ratio
from tests.bench.report import Bench, Figure, Measured, Target

SLOTS, SERVICE_S = 4, 0.05
CAPACITY = SLOTS / SERVICE_S
LIMIT_S = 1.0
"""How long a request may wait; the load generator gives up on an answer after four times that."""
LOADS = (0.75, 1.0, 1.5, 2.0)
ROUNDS, QUICK_ROUNDS = 5, 1
SECONDS, QUICK_SECONDS = 10.0, 6.0
WARM_UP_S = 2.0
_BODY = json.dumps({"model": alone.MODEL, "messages": [{"role": "user", "content": "hello"}]}).encode()


@dataclass(frozen=True, slots=True)
class Step:
    """One load, as a share of what the worker can take; rates in requests a second, times in ms."""

    load: float
    offered: float
    goodput: float
    accepted_p50_ms: float | None
    accepted_p99_ms: float | None
    refused: int
    with_retry_after: int
    too_many: int
    no_answer: int


def _step(url: str, token: str, share: float, seconds: float) -> Step:
    rate = share * CAPACITY
    shots = load.constant(url, token, _BODY, rate, seconds + WARM_UP_S, 4 * LIMIT_S)
    steady = [shot for shot in shots if shot.due_s >= WARM_UP_S]
    served = [shot.took_ms for shot in steady if shot.status == 200]
    refused = [shot for shot in steady if shot.status not in (0, 200)]
    return Step(
        share,
        len(steady) / seconds,
        sum(took <= (LIMIT_S + 4 * SERVICE_S) * 1000 for took in served) / seconds,
        quantile(served, 0.5),
        quantile(served, 0.99),
        len(refused),
        sum(shot.retry_after is not None for shot in refused),
        sum(shot.status == 429 for shot in refused),
        sum(shot.status == 0 for shot in steady),
    )


def measure(quick: bool) -> Measured:
    """Each load in turn, in interleaved rounds."""
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    limits = {"requests": {"admission_timeout_s": LIMIT_S}, "heartbeat": {"stale_after_intervals": 100}}
    with alone.queen(**limits) as stack, alone.program("fake_worker", str(SLOTS), str(SERVICE_S)) as port:
        alone.tell(stack, "bee", [alone.report("bee", "w", f"http://127.0.0.1:{port}", slots=SLOTS)])
        url = f"{stack.queen_url}/v1/chat/completions"
        steps = [_step(url, stack.tokens["api_token"], share, seconds) for _ in range(rounds) for share in LOADS]
    goodput = {share: median(step.goodput for step in steps if step.load == share) for share in LOADS}
    twice = [step for step in steps if step.load == LOADS[-1]]
    refused = float(sum(step.refused for step in twice))
    best = max((found for found in goodput.values() if found is not None), default=None)
    found = {
        "goodput_ratio_at_2x": ratio(goodput[2.0], best),
        "rejected_have_retry_after": ratio(float(sum(step.with_retry_after for step in twice)), refused),
        "rejected_with_429": ratio(float(sum(step.too_many for step in twice)), refused),
        "goodput_max": best,
        "goodput_of_capacity": ratio(best, CAPACITY),
        "goodput_at_2x": goodput[2.0],
        "offered_at_2x": median(step.offered for step in twice),
        "accepted_p50_ms_at_2x": median(step.accepted_p50_ms for step in twice if step.accepted_p50_ms is not None),
        "accepted_p99_ms_at_2x": median(step.accepted_p99_ms for step in twice if step.accepted_p99_ms is not None),
        "no_answer": float(sum(step.no_answer for step in steps)),
    }
    return Measured(found, [asdict(step) for step in steps])


FIGURES = (
    Figure("goodput_ratio_at_2x", "", "served in time at twice the capacity / the most at any", Target(">=", 0.9)),
    Figure("rejected_have_retry_after", "", "share of refusals then that say Retry-After", Target("=", 1)),
    Figure("rejected_with_429", "", "share of them that came at once as 429; the rest waited in vain: 503"),
    Figure("goodput_max", "1/s", "the most that was served in time"),
    Figure("goodput_of_capacity", "", "the same by what the fake worker's slots can do"),
    Figure("goodput_at_2x", "1/s", "served in time at twice the capacity"),
    Figure("offered_at_2x", "1/s", "requests that came then"),
    Figure("accepted_p50_ms_at_2x", "ms", "a request that was served then, queue included"),
    Figure("accepted_p99_ms_at_2x", "ms", "the same at p99: the limit of waiting is 1000", Target("<=", 1200)),
    Figure("no_answer", "", "requests without any answer, all loads", Target("=", 0)),
)

BENCH = Bench(
    "overload", "Loads up to twice what a fake worker of 4 slots and 50 ms a request can take.", FIGURES, measure
)
