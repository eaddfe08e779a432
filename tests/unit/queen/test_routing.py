"""Which worker takes a request, and what waiting requests need: decided without a clock or a socket."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.queen.partners import report

from rbee.queen.routing import Fail, Key, Start, Wait, Waiting, choose, failure, next_step, startable
from rbee.wire.messages import WorkerReport, WorkerState


@dataclass
class Row:
    """A candidate as routing sees one."""

    key: Key
    state: WorkerState = WorkerState.IDLE
    held: bool = False
    slots: int = 4
    in_flight: int = 0
    served: int = 0
    exit_status: int = 0
    managed: bool = True
    since_unix: float = 0.0

    @property
    def report(self) -> WorkerReport:
        return report(
            self.state, worker=self.key.worker_id, exit_status=self.exit_status, managed=self.managed,
            since_unix=self.since_unix,
        )  # fmt: skip


def row(name: str, state: WorkerState = WorkerState.IDLE, **more: object) -> Row:
    return Row(Key("bee", name), state, **more)  # type: ignore[arg-type]


@st.composite
def candidates(draw: st.DrawFn) -> list[Row]:
    names = draw(st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8))
    return [
        Row(
            Key("bee", name),
            draw(st.sampled_from(list(WorkerState))),
            draw(st.booleans()),
            draw(st.integers(1, 4)),
            draw(st.integers(0, 5)),
            draw(st.integers(0, 100)),
        )
        for name in names
    ]


@given(candidates(), st.sets(st.sampled_from("abcdefgh")))
def test_the_choice_is_ready_free_and_least_loaded(rows: list[Row], excluded: set[str]) -> None:
    exclude = {Key("bee", name) for name in excluded}
    fit = [
        one for one in rows if one.state.ready and not one.held and one.in_flight < one.slots and one.key not in exclude
    ]
    chosen = choose(rows, exclude)
    if chosen is None:
        assert not fit
    else:
        found = next(one for one in fit if one.key == chosen)
        assert found.in_flight == min(one.in_flight for one in fit)


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 40))
def test_requests_spread_evenly_and_never_past_the_slots(workers: int, slots: int, requests: int) -> None:
    rows = [row(f"w{n}", slots=slots) for n in range(workers)]
    by_key = {one.key: one for one in rows}
    for _ in range(requests):
        key = choose(rows)
        if key is None:
            assert all(one.in_flight == slots for one in rows)
            break
        by_key[key].in_flight += 1
        by_key[key].served += 1
    assert max(one.in_flight for one in rows) - min(one.in_flight for one in rows) <= 1
    assert sum(one.in_flight for one in rows) == min(requests, workers * slots)


def test_one_after_another_goes_round() -> None:
    rows = [row("a"), row("b"), row("c")]
    seen = []
    for _ in range(6):
        key = choose(rows)
        assert key is not None
        next(one for one in rows if one.key == key).served += 1
        seen.append(key.worker_id)
    assert sorted(seen) == ["a", "a", "b", "b", "c", "c"]


S = WorkerState
A, B = Key("bee", "a"), Key("bee", "b")


@pytest.mark.parametrize(
    ("rows", "tried", "starting", "step"),
    [
        ([], set(), set(), Fail(None)),
        ([row("a", S.BUSY, in_flight=4)], set(), set(), Wait(Waiting.BUSY, A)),
        ([row("a", S.LOADING), row("b", S.STOPPED)], set(), set(), Wait(Waiting.LOADING, A)),
        ([row("a", S.STOPPED)], set(), set(), Start(A)),
        ([row("a", S.STOPPED)], set(), {A}, Wait(Waiting.LOADING, A)),
        ([row("a", S.FAILED, exit_status=1), row("b", S.STOPPED)], set(), set(), Start(B)),
        ([row("a", S.FAILED, exit_status=1)], set(), set(), Start(A)),
        ([row("a", S.DRAINING)], set(), set(), Wait(Waiting.LOADING, A)),
        ([row("a", S.UNHEALTHY)], set(), set(), Wait(Waiting.SILENT, A)),
        ([row("a", S.STALE)], set(), set(), Wait(Waiting.SILENT, A)),
        ([row("a", S.IDLE, held=True)], set(), set(), Wait(Waiting.BUSY, A)),
    ],
)
def test_what_is_needed_next(rows: list[Row], tried: set[Key], starting: set[Key], step: object) -> None:
    assert next_step(rows, tried, starting) == step


@pytest.mark.parametrize(
    ("one", "may"),
    [
        (row("a", S.STOPPED), True),
        (row("a", S.FAILED, exit_status=1), True),
        (row("a", S.FAILED, exit_status=78), False),
        (row("a", S.FAILED, exit_status=69), False),
        (row("a", S.STOPPED, managed=False), False),
        (row("a", S.DRAINING), False),
    ],
)
def test_what_may_be_started(one: Row, may: bool) -> None:
    assert startable(one) is may


@given(candidates(), st.sets(st.sampled_from("abcdefgh")))
def test_requests_fail_only_when_nothing_can_come(rows: list[Row], tried_names: set[str]) -> None:
    tried = {Key("bee", name) for name in tried_names}
    step = next_step(rows, tried, set())
    if isinstance(step, Fail):
        hopeful = {S.IDLE, S.BUSY, S.LOADING, S.UNHEALTHY, S.STALE}
        assert not any(one.state in hopeful for one in rows)
        assert all(one.key in tried for one in rows)
    if isinstance(step, Start):
        assert step.key not in tried


def test_one_that_was_tried_fails_with_the_latest_reason() -> None:
    rows = [row("a", S.FAILED, since_unix=1.0), row("b", S.FAILED, since_unix=2.0)]
    step = next_step(rows, {A, B}, set())
    assert isinstance(step, Fail)
    assert step.report is not None
    assert step.report.worker_id == "b"


@pytest.mark.parametrize(
    ("reason", "result", "code"),
    [
        ("LOADING_TIMEOUT", "exit-code", "LOADING_TIMEOUT"),
        ("", "timeout", "LOADING_TIMEOUT"),
        ("out of memory", "oom-kill", "WORKER_FAILED"),
    ],
)
def test_failures_carry_the_workers_own_reason(reason: str, result: str, code: str) -> None:
    error = failure(report(S.FAILED, reason=reason, result=result, exit_status=1))
    assert error.code == code
    assert error.details["reason"] == reason
    assert error.details["result"] == result
    assert "journalctl -u rbee-worker@w" in error.message
