"""Clients' limits, rates, the retry budget, the breaker, and how long loads take: by numbers alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.queen.partners import report

from rbee.queen.admission.clients import MOST_REMEMBERED, Clients
from rbee.queen.admission.fair import Priority
from rbee.queen.admission.loads import KEPT, LoadTimes
from rbee.queen.admission.rates import RetryBudget, ServiceTimes, retry_after_s
from rbee.queen.config import ClientLimits
from rbee.queen.routing.breaker import FAILURES, FIRST_OPEN_S, MOST_OPEN_S, Breaker, BreakerState
from rbee.queen.routing.decision import Key
from rbee.wire.errors import TooManyRequests
from rbee.wire.messages import Progress, WorkerState


def test_a_client_sends_what_its_rate_allows() -> None:
    clients = Clients({"alice": ClientLimits(requests_per_minute=60, burst=3)})
    for _ in range(3):
        clients.enter("alice", 10.0)
    with pytest.raises(TooManyRequests, match="60 requests a minute") as refused:
        clients.enter("alice", 10.0)
    assert refused.value.retry_after_s == 1
    assert refused.value.details == {"limit": "requests_per_minute", "allowed": 60.0}
    clients.enter("alice", 11.0)
    clients.enter("bob", 10.0)


@given(st.lists(st.floats(0, 5), max_size=80), st.floats(6, 600), st.integers(1, 10))
def test_no_window_has_more_than_the_rate_and_one_burst(gaps: list[float], a_minute: float, burst: int) -> None:
    clients = Clients({"*": ClientLimits(requests_per_minute=a_minute, burst=burst)})
    now, came = 0.0, []
    for gap in gaps:
        now += gap
        try:
            clients.enter("any", now)
        except TooManyRequests as refused:
            assert refused.retry_after_s is not None
            assert refused.retry_after_s >= 1
        else:
            came.append(now)
    for first, began in enumerate(came):
        for last in range(first, len(came)):
            assert last - first + 1 <= burst + (came[last] - began) * a_minute / 60 + 1e-6


def test_a_client_has_as_many_at_once_as_it_may() -> None:
    clients = Clients({"*": ClientLimits(concurrent=2), "free": ClientLimits()})
    for _ in range(2):
        clients.enter("any", 0.0)
    with pytest.raises(TooManyRequests, match="2 requests at once"):
        clients.enter("any", 0.0)
    clients.leave("any")
    clients.enter("any", 0.0)
    clients.enter("any", 0.0, again=True)  # one that is placed anew was let in before
    for _ in range(50):
        clients.enter("free", 0.0)


def test_new_limits_hold_at_once_and_clients_are_not_remembered_for_ever() -> None:
    clients = Clients({"*": ClientLimits(requests_per_minute=1)})
    clients.enter("any", 0.0)
    clients.configure({})
    clients.enter("any", 0.0)
    clients.configure({"*": ClientLimits(requests_per_minute=1)})
    for number in range(MOST_REMEMBERED + 10):
        clients.enter(f"c{number}", 0.0)
        clients.leave(f"c{number}")
    assert len(clients._clients) <= MOST_REMEMBERED
    assert clients._clients["any"].running == 2


def test_a_client_of_batch_work_gets_no_other_priority() -> None:
    clients = Clients({"night": ClientLimits(priority="batch")})
    assert clients.priority("night", Priority.INTERACTIVE) is Priority.BATCH
    assert clients.priority("day", Priority.INTERACTIVE) is Priority.INTERACTIVE
    assert clients.priority("day", Priority.BATCH) is Priority.BATCH


def test_one_request_that_hung_says_little_and_a_slow_worker_is_noticed() -> None:
    times = ServiceTimes()
    for _ in range(20):
        times.note("m", 0.01)
    times.note("m", 60.0)
    assert (times.wait_s("m", 0, 1) or 0) < 0.02
    for _ in range(20):
        times.note("m", 1.0)
    assert (times.wait_s("m", 0, 1) or 0) > 0.5


def test_the_expected_wait_is_the_queue_by_the_rate() -> None:
    times = ServiceTimes()
    assert times.wait_s("m", 10, 4) is None
    for _ in range(20):
        times.note("m", 2.0)
    assert times.wait_s("m", 7, 4) == pytest.approx(4.0)
    assert times.wait_s("m", 7, 0) is None
    for _ in range(100):
        times.note("m", 0.1)
    assert times.wait_s("m", 7, 4) == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize(("wait_s", "said"), [(None, 5), (0.0, 1), (1.2, 2), (1000.0, 60)])
def test_retry_after(wait_s: float | None, said: int) -> None:
    assert retry_after_s(wait_s) == said


@given(st.integers(0, 500), st.floats(0, 1), st.integers(1, 50))
def test_tries_anew_are_a_share_of_requests(requests: int, share: float, reserve: int) -> None:
    budget = RetryBudget(share, reserve)
    spent = 0
    while budget.spend():
        spent += 1
    assert spent == reserve
    for _ in range(requests):
        budget.deposit()
        spent += budget.spend()
    assert spent <= reserve + requests * share + 1e-6


def test_a_connection_that_fails_opens_the_breaker_and_trials_come_ever_later() -> None:
    breaker = Breaker()
    now, gaps = 0.0, []
    assert breaker.trip(now)
    assert not breaker.trip(now)
    for _ in range(6):
        gap = breaker.until - now
        gaps.append(gap)
        assert not breaker.cooled(breaker.until - 0.1)
        now = breaker.until
        assert breaker.cooled(now)
        assert breaker.half_open()
        assert breaker.trip(now)
    assert gaps == [FIRST_OPEN_S, 10.0, 20.0, 40.0, MOST_OPEN_S, MOST_OPEN_S]
    assert not breaker.reassured()  # a trial failed: the hive's word does not bring the next one forward
    assert breaker.half_open()
    assert breaker.good_answer()
    assert breaker.trip(now)
    assert breaker.until == now + FIRST_OPEN_S
    assert breaker.reassured()


def test_bad_answers_in_a_row_open_it() -> None:
    breaker = Breaker()
    for _ in range(3):
        for _ in range(FAILURES - 1):
            assert not breaker.bad_answer(0.0)
        breaker.good_answer()
    opened = [breaker.bad_answer(0.0) for _ in range(FAILURES)]
    assert opened == [False] * (FAILURES - 1) + [True]
    breaker.half_open()
    assert breaker.bad_answer(10.0)  # one is enough on trial
    assert breaker.state is BreakerState.OPEN


def test_the_last_loads_tell_how_long_one_takes() -> None:
    loads = LoadTimes()
    for number, seconds in enumerate([100.0, *([8.0] * (KEPT - 1)), 12.0]):
        began = 1000.0 * number
        loads.note(report(spawned_unix=began, ready_unix=began + seconds))
    loading = report(WorkerState.LOADING, progress=Progress("weights", 1, 4))
    assert loads.usual_s(Key("bee", "w")) == 8.0
    assert loads.eta_s(loading, 3.0) == 5.0
    assert loads.eta_s(loading, 30.0) == 0.0


def test_at_the_first_load_its_progress_tells() -> None:
    loads = LoadTimes()
    assert loads.eta_s(report(WorkerState.LOADING), 3.0) is None
    assert loads.eta_s(report(WorkerState.LOADING, progress=Progress("weights", 1, 4)), 3.0) == pytest.approx(9.0)
    assert loads.eta_s(report(WorkerState.LOADING, progress=Progress("weights", 0, 4)), 3.0) is None
