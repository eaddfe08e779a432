"""Figures of `rbee top`: rates and medians between samples, workers as events tell of them, rows of a picture."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.keeper.top import rows
from rbee.keeper.top.figures import Rates, Sample, between, median_ms, rates_of_workers, read_metrics
from rbee.keeper.top.picture import WINDOW_S, Fleet, Look, QueenFacts, with_workers
from rbee.keeper.workers import Health
from rbee.wire.machines import HiveView
from rbee.wire.messages import GpuFacts, MachineFacts, WorkerHealth, WorkerReport, WorkerState
from rbee.wire.worker_spec import Backend

METRICS = """
# TYPE queen_rbee_requests counter
queen_rbee_requests_total 12.0
# TYPE queen_rbee_errors counter
queen_rbee_errors_total{code="A"} 1.0
queen_rbee_errors_total{code="B"} 2.0
# TYPE queen_rbee_waiting_requests gauge
queen_rbee_waiting_requests{model="m",priority="batch"} 2.0
queen_rbee_waiting_requests{model="m",priority="interactive"} 3.0
queen_rbee_waiting_requests{model="n",priority="batch"} 0.0
# TYPE queen_rbee_request_duration_seconds histogram
queen_rbee_request_duration_seconds_bucket{le="0.1",outcome="ok",route="a"} 1.0
queen_rbee_request_duration_seconds_bucket{le="+Inf",outcome="ok",route="a"} 2.0
queen_rbee_request_duration_seconds_bucket{le="0.1",outcome="ok",route="b"} 3.0
queen_rbee_request_duration_seconds_bucket{le="+Inf",outcome="ok",route="b"} 3.0
queen_rbee_request_duration_seconds_bucket{le="0.1",outcome="error",route="b"} 9.0
queen_rbee_request_duration_seconds_bucket{le="+Inf",outcome="error",route="b"} 9.0
"""
GIB = 1 << 30
MACHINE = MachineFacts("bee", 8, 16 * GIB, 4 * GIB, 100 * GIB, 50 * GIB, labels=["gpu"])


def report(worker: str = "w", state: WorkerState = WorkerState.BUSY, **more: object) -> WorkerReport:
    made = WorkerReport(
        worker, "bee", "b", 1, state, model="m", backend=Backend.CUDA, device=1, slots_total=4, slots_available=1
    )
    return msgspec.structs.replace(made, **more)


def look(at: float, requests: float = 0.0, **tokens: int) -> Look:
    return Look(QueenFacts("ok", "1.0", 2), [], Sample(at, requests, tokens_of=tokens, requests_of=tokens))


def test_metrics_are_summed_over_labels_that_do_not_matter() -> None:
    found = read_metrics(METRICS, 5.0)
    assert (found.at, found.requests, found.errors, found.waiting) == (5.0, 12, 3, {"m": 5})
    assert found.buckets == {0.1: 4, math.inf: 5}
    assert read_metrics("", 5.0) == Sample(5.0)


def test_rates_are_growth_by_time_and_a_restart_counts_from_nothing() -> None:
    before = Sample(10.0, requests=100, errors=9, tokens_of={"a": 50, "gone": 7}, requests_of={"a": 5})
    after = Sample(12.0, requests=110, errors=4, waiting={"m": 3}, tokens_of={"a": 90, "new": 8}, requests_of={"a": 6})
    found = between(before, after, in_flight=2)
    assert (found.requests_per_s, found.errors_per_s, found.tokens_per_s) == (5.0, 2.0, 24.0)
    assert (found.in_flight, found.waiting, found.p50_ms) == (2, {"m": 3}, None)
    assert rates_of_workers(before, after) == {"a": Rates(0.5, 20.0), "new": Rates(0.0, 4.0)}
    assert between(after, after).requests_per_s == 0.0


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({}, {}, None),
        ({0.1: 4, math.inf: 4}, {0.1: 4, math.inf: 4}, None),
        ({}, {0.1: 10, 0.2: 10, math.inf: 10}, 50.0),
        ({}, {0.1: 0, 0.2: 10, math.inf: 10}, 150.0),
        ({0.1: 100, 0.2: 100, math.inf: 100}, {0.1: 100, 0.2: 110, math.inf: 110}, 150.0),
        ({}, {0.1: 1, 0.2: 1, math.inf: 9}, 200.0),
        ({0.1: 50, math.inf: 50}, {0.1: 2, math.inf: 2}, 50.0),
    ],
)
def test_the_median_is_within_its_bucket(
    before: dict[float, float], after: dict[float, float], expected: float | None
) -> None:
    assert median_ms(before, after) == expected


@given(st.lists(st.floats(0.001, 5.0), min_size=1), st.lists(st.floats(0.001, 5.0)))
def test_the_median_lies_in_the_bucket_of_the_real_one(now: list[float], earlier: list[float]) -> None:
    bounds = [0.01, 0.1, 1.0, 10.0, math.inf]
    before = {bound: float(sum(one <= bound for one in earlier)) for bound in bounds}
    after = {bound: float(sum(one <= bound for one in earlier + now)) for bound in bounds}
    found = median_ms(before, after)
    assert found is not None
    real = sorted(now)[(len(now) - 1) // 2]
    upper = next(bound for bound in bounds if real <= bound)
    lower = max([0.0, *(bound for bound in bounds if bound < real)])
    assert lower * 1000 - 0.1 <= found <= upper * 1000 + 0.1


def test_figures_are_those_of_the_last_seconds() -> None:
    fleet = Fleet()
    for second in range(61):
        fleet.looked(look(float(second), requests=max(0.0, second - 50) * 10))
    assert fleet.picture().figures.requests_per_s == 10.0
    assert len(fleet._looks) == WINDOW_S + 1


def test_workers_come_and_go_by_events_and_have_their_rates() -> None:
    fleet = Fleet()
    assert fleet.picture().workers == []
    fleet.told(report("b"), removed=False)
    fleet.told(report("a", WorkerState.LOADING), removed=False)
    fleet.looked(look(1.0, **{"bee/b": 0}))
    fleet.looked(look(3.0, **{"bee/b": 10}))
    shown = fleet.picture()
    assert [(one.report.worker_id, one.rates.tokens_per_s) for one in shown.workers] == [("a", 0.0), ("b", 5.0)]
    assert shown.figures.in_flight == 2
    fleet.told(report("a"), removed=True)
    fleet.told(report("never"), removed=True)
    assert [one.report.worker_id for one in fleet.picture().workers] == ["b"]
    fleet.problem = "away"
    assert rows.troubles(fleet.picture()) == ["attention: away"]
    fleet.looked(look(4.0))
    assert rows.troubles(fleet.picture()) == []


def test_a_sample_has_the_counters_of_workers_that_answered() -> None:
    health = WorkerHealth("healthy", WorkerState.IDLE, "w", "1", 4, 0, 1.0, 7, 70)
    answered = Health("bee", "w", WorkerState.IDLE, True, health)
    found = with_workers(Sample(1.0), [answered, Health("bee", "x", WorkerState.STOPPED, False)])
    assert (found.requests_of, found.tokens_of) == ({"bee/w": 7}, {"bee/w": 70})


def test_rows_say_what_a_person_looks_for() -> None:
    gpu = GpuFacts(0, "card", "u", 24 * GIB, 4 * GIB, temperature_c=61)
    hive = HiveView("bee", "1.0", False, 1.0, True, 2, msgspec.structs.replace(MACHINE, gpus=[gpu]))
    assert rows.hive_row(hive) == (
        "bee", "live", "1.0", "8", "4.0 GiB of 16.0 GiB", "50.0 GiB of 100.0 GiB", "0: 20.0 GiB of 24.0 GiB 61 C", "2",
        "gpu",
    )  # fmt: skip
    silent = HiveView("bee", "", True, 75.0, False, 0)
    assert rows.hive_row(silent)[:3] == ("bee", "silent 1 min 15 s", "-")
    fleet = Fleet()
    fleet.told(report(), removed=False)
    (worker,) = fleet.picture().workers
    assert rows.worker_row(worker) == ("w", "bee", "busy", "m", "cuda:1", "3/4", "0", "0", "")
