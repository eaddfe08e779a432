"""Which worker takes a request, and what waiting requests need: decided without a clock or a socket."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.queen.partners import report

from rbee.queen.routing.decision import (
    Fail,
    Key,
    Start,
    Wait,
    Waiting,
    failure,
    free,
    load,
    next_step,
    prefers,
    routable,
    startable,
)
from rbee.queen.routing.pool import Pool
from rbee.wire.messages import Progress, WorkerReport, WorkerState
from rbee.wire.shortage import needs

NAMES = "abcdefghijkl"
"""More than are looked through one by one."""


@dataclass
class Row:
    """A candidate as routing sees one."""

    key: Key
    state: WorkerState = WorkerState.IDLE
    held: bool = False
    slots: int = 4
    in_flight: int = 0
    turn: float = 0.0
    work: float = 0.0
    weight: float = 1.0
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
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=len(NAMES)))
    return [
        Row(
            Key("bee", name),
            draw(st.sampled_from(list(WorkerState))),
            draw(st.booleans()),
            draw(st.integers(1, 4)),
            draw(st.integers(0, 5)),
            draw(st.floats(0, 100)),
            draw(st.sampled_from([0.0, 1.0, 300.0])),
        )
        for name in names
    ]


def pool_of(rows: list[Row]) -> Pool[Row]:
    pool: Pool[Row] = Pool()
    for one in rows:
        pool.put(one)
    return pool


@given(candidates(), st.sets(st.sampled_from(NAMES)))
def test_the_choice_is_ready_free_and_least_loaded(rows: list[Row], excluded: set[str]) -> None:
    exclude = {Key("bee", name) for name in excluded}
    fit = [
        one for one in rows if one.state.ready and not one.held and one.in_flight < one.slots and one.key not in exclude
    ]
    chosen = pool_of(rows).least(exclude)
    if chosen is None:
        assert not fit
    else:
        assert chosen in fit
        assert load(chosen) == min(load(one) for one in fit)


@given(
    candidates(),
    st.lists(st.tuples(st.integers(0, 11), st.sampled_from(["take", "give", "state", "drop", "back"]), st.data())),
)
def test_the_index_follows_every_change(rows: list[Row], changes: list[tuple[int, str, st.DataObject]]) -> None:
    pool = pool_of(rows)
    left = {one.key: one for one in rows}
    for number, what, data in changes:
        if number >= len(rows):
            continue
        one = rows[number]
        if what == "take" and one.in_flight < one.slots:
            one.in_flight, one.work, one.turn = one.in_flight + 1, one.work + 5.0, one.turn + 1
        elif what == "give" and one.in_flight:
            one.in_flight, one.work = one.in_flight - 1, max(0.0, one.work - 5.0)
        elif what == "state":
            one.state = data.draw(st.sampled_from(list(WorkerState)))
        elif what == "drop":
            pool.remove(one.key)
            left.pop(one.key, None)
        elif what == "back" and one.key not in left:
            pool.put(one)
            left[one.key] = one
        if what in ("take", "give") and one.key in left:
            pool.load_changed(one)
        else:
            pool.touch(one)
        fit = [each for each in left.values() if free(each)]
        chosen = pool.least()
        assert (chosen is None) == (not fit)
        assert chosen is None or load(chosen) == min(load(each) for each in fit)
        assert pool.slots == sum(each.slots for each in left.values() if routable(each))
        assert list(pool.rows()) == list(left.values())


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 40))
def test_requests_spread_evenly_and_never_past_the_slots(workers: int, slots: int, requests: int) -> None:
    rows = [row(f"w{n}", slots=slots) for n in range(workers)]
    pool = pool_of(rows)
    for _ in range(requests):
        chosen = pool.least()
        if chosen is None:
            assert all(one.in_flight == slots for one in rows)
            break
        take(pool, chosen)
    assert max(one.in_flight for one in rows) - min(one.in_flight for one in rows) <= 1
    assert sum(one.in_flight for one in rows) == min(requests, workers * slots)


def take(pool: Pool[Row], one: Row, work: float = 1.0) -> None:
    one.in_flight, one.work, one.turn = one.in_flight + 1, one.work + work, one.turn + 1 / one.weight
    pool.touch(one)


def test_one_after_another_goes_round() -> None:
    rows = [row("a"), row("b"), row("c")]
    pool = pool_of(rows)
    seen = []
    for _ in range(6):
        chosen = pool.least()
        assert chosen is not None
        chosen.turn += 1
        pool.touch(chosen)
        seen.append(chosen.key.worker_id)
    assert sorted(seen) == ["a", "a", "b", "b", "c", "c"]


def test_a_long_request_weighs_more_than_two_short_ones() -> None:
    rows = [row("a"), row("b")]
    pool = pool_of(rows)
    took = []
    for work in (4000.0, 10.0, 10.0, 10.0):
        chosen = pool.least()
        assert chosen is not None
        take(pool, chosen, work)
        took.append(chosen.key.worker_id)
    assert took == ["a", "b", "b", "b"]


@pytest.mark.parametrize("more", [{"weight": 3.0}, {"slots": 12}])
def test_work_goes_by_weight_and_by_slots(more: dict[str, float]) -> None:
    rows = [row("a", slots=4), row("b", **({"slots": 4} | more))]
    pool = pool_of(rows)
    for _ in range(4):
        chosen = pool.least()
        assert chosen is not None
        take(pool, chosen)
    assert [one.in_flight for one in rows] == [1, 3]


@given(candidates(), st.floats(0, 1))
def test_a_prefix_is_followed_to_a_free_worker_within_the_slack(rows: list[Row], slack: float) -> None:
    least = pool_of(rows).least()
    if least is None:
        return
    assert prefers(least, least, slack)
    for one in rows:
        if prefers(one, least, slack):
            assert free(one)
            assert one.in_flight / one.slots <= least.in_flight / least.slots + slack
        elif free(one):
            assert one.in_flight / one.slots > least.in_flight / least.slots + slack


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


@given(candidates(), st.sets(st.sampled_from(NAMES)))
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
        ("oom-kill", "oom-kill", "OUT_OF_MEMORY"),
        ("VRAM_EXHAUSTED", "exit-code", "VRAM_EXHAUSTED"),
        ("", "core-dump", "WORKER_FAILED"),
    ],
)
def test_failures_carry_the_workers_own_reason(reason: str, result: str, code: str) -> None:
    error = failure(report(S.FAILED, reason=reason, result=result, exit_status=1))
    assert error.code == code
    assert error.details["reason"] == reason
    assert error.details["result"] == result
    assert "journalctl -u rbee-worker@w" in error.message


def test_a_shortage_that_a_worker_told_has_its_amounts_again() -> None:
    said = needs(4 << 30, 5 << 30, "on cuda:0")
    told = report(
        S.FAILED, reason="VRAM_FRAGMENTED", status_text=f"VRAM_FRAGMENTED: the model {said} in pieces: restart"
    )
    error = failure(told)
    assert (error.code, error.status) == ("VRAM_FRAGMENTED", 503)
    assert (error.details["required_vram_mb"], error.details["available_vram_mb"]) == (4096, 5120)
    assert f"the model {said} in pieces: restart; see 'journalctl" in error.message


def test_a_kill_for_memory_says_how_far_loading_was() -> None:
    progress = Progress("creating the session", 2, 4)
    error = failure(report(S.FAILED, reason="oom-kill", result="oom-kill", progress=progress, last_log="listening"))
    assert "while loading, at 'creating the session 2/4 steps', and the kernel killed it" in error.message
    assert (error.details["cause"], error.details["last_log"]) == ("oom-kill", "listening")
