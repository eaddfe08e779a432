"""The pace of requests that are not acceptable."""

from rbee.wire.http.invalid import MOST_CALLERS, InvalidPace


def refused(pace: InvalidPace, caller: str, now: float, requests: int) -> int:
    return sum(pace.refusal(caller, now) is not None for _ in range(requests))


def test_each_caller_has_so_many_at_once_and_so_many_a_second() -> None:
    pace = InvalidPace(50)
    assert refused(pace, "a", 10.0, 60) == 10
    assert refused(pace, "b", 10.0, 50) == 0
    assert refused(pace, "a", 10.5, 30) == 5
    assert refused(pace, "a", 100.0, 60) == 10


def test_a_caller_below_the_pace_is_never_refused() -> None:
    pace = InvalidPace(50)
    assert sum(refused(pace, "a", number / 49, 1) for number in range(1000)) == 0


def test_a_refusal_says_when_to_come_back() -> None:
    pace = InvalidPace(1)
    assert pace.refusal("a", 1.0) is None
    refusal = pace.refusal("a", 1.0)
    assert refusal is not None
    assert (refusal.status, refusal.retry_after_s) == (429, 1.0)
    assert pace.refusal("a", 2.0) is None


def test_another_limit_holds_from_the_next_request_on() -> None:
    pace = InvalidPace(50)
    pace.refusal("a", 1.0)
    pace.most = 2
    assert refused(pace, "a", 1.0, 5) == 3


def test_callers_are_forgotten_past_a_bound() -> None:
    pace = InvalidPace(1)
    for number in range(MOST_CALLERS + 100):
        pace.refusal(str(number), 1.0)
    assert len(pace._callers) == MOST_CALLERS
    assert refused(pace, "0", 1.0, 1) == 0
