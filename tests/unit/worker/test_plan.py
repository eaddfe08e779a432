"""What a step does, for any rows: pure decisions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.worker.engine.batch.plan import (
    LEAST_TOKENS,
    MOST_SHARE,
    MOST_TOKENS,
    READING_SHARE,
    Pace,
    RowView,
    StepPlan,
    contiguous_runs,
    is_decoding,
    plan_step,
    reading_time,
)
from rbee.worker.engine.batch.prefix import BLOCK_TOKENS, PrefixCache, chain_of, common_blocks

views = st.builds(RowView, st.just(0), st.integers(0, 900), st.integers(1, 3000), st.booleans())
many_rows = st.lists(views, max_size=12).map(
    lambda rows: [RowView(key, row.cached, row.pending, row.held) for key, row in enumerate(rows)]
)
paces = st.builds(Pace, st.floats(0.001, 0.1), st.floats(LEAST_TOKENS, MOST_TOKENS))


@given(many_rows, paces)
def test_every_row_that_decodes_gets_a_token_and_prompts_are_read_beside_them(rows: list[RowView], pace: Pace) -> None:
    plan = plan_step(rows, pace)
    ready = {row.key: row for row in rows if not row.held}
    assert set(plan.decode) == {key for key, row in ready.items() if is_decoding(row)}
    waiting = [row for row in ready.values() if not is_decoding(row)]
    assert all(1 <= part.count <= ready[part.key].pending for part in plan.read)
    assert {part.key for part in plan.read} <= {row.key for row in waiting}
    assert len({part.key for part in plan.read}) == len(plan.read)
    assert sum(part.count for part in plan.read) <= (int(pace.tokens) if plan.decode else MOST_TOKENS)
    assert (plan.reading_s is None) == (not plan.decode)
    if waiting:
        assert plan.read[0].key == waiting[0].key  # the oldest is never passed over
        cut = [part for part in plan.read if part.count < ready[part.key].pending]
        assert len(cut) <= 1


@given(many_rows, paces)
def test_whole_prompts_are_read_one_a_step_and_uncut(rows: list[RowView], pace: Pace) -> None:
    plan = plan_step(rows, pace, whole=True)
    waiting = [row for row in rows if not row.held and not is_decoding(row)]
    assert [(part.key, part.count) for part in plan.read] == [(row.key, row.pending) for row in waiting[:1]]


def test_short_prompts_pass_a_long_one_which_goes_on() -> None:
    rows = [RowView(0, 0, 2000), RowView(1, 0, 30), RowView(2, 0, 20), RowView(3, 5, 1)]
    plan = plan_step(rows, Pace(0.01, 128.0))
    assert {part.key: part.count for part in plan.read} == {0: 128 - 50, 1: 30, 2: 20}
    assert plan.decode == (3,)


def test_nothing_to_do_is_no_plan() -> None:
    assert plan_step([], Pace()) == StepPlan((), ())


def test_reading_has_the_more_of_a_step_the_more_rows_wait_than_decode() -> None:
    pace = Pace(0.01)
    assert reading_time(0, 5, pace) is None
    assert reading_time(8, 1, pace) == pytest.approx(READING_SHARE * 0.01)
    assert reading_time(4, 4, pace) == pytest.approx(READING_SHARE * 0.01)
    assert reading_time(2, 3, pace) == pytest.approx(READING_SHARE * 0.0225)
    assert reading_time(1, 500, pace) == pytest.approx(READING_SHARE * MOST_SHARE * 0.01)


@given(st.floats(0.0005, 0.01), st.floats(0.00005, 0.005), st.floats(0.002, 0.05))
def test_the_pace_settles_where_reading_takes_the_time_that_it_may(fixed: float, each: float, allowed: float) -> None:
    pace = Pace(allowed)
    for _ in range(60):
        tokens = int(pace.tokens)
        pace = pace.read(tokens, fixed + each * tokens, allowed)
    tokens = int(pace.tokens)
    took = fixed + each * tokens
    assert tokens == LEAST_TOKENS or took <= allowed * 1.35
    assert tokens >= MOST_TOKENS - 1 or fixed + each * (tokens + 1) >= allowed * 0.7


def test_what_tells_nothing_does_not_change_the_pace() -> None:
    pace = Pace(0.01, 100.0)
    assert pace.read(20, 0.001, 0.013) is pace
    assert pace.read(512, 0.5, None) is pace
    assert pace.read(20, 0.026, 0.013).tokens == pytest.approx(70)
    assert pace.decoded(0.02, alone=True).decode_s == pytest.approx(0.012)
    assert pace.decoded(0.02, alone=False).decode_s == pytest.approx(0.0102)
    assert Pace().decoded(0.02, alone=False).decode_s == 0.02


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 400)), min_size=1, max_size=12))
def test_runs_are_neighbours_and_waste_little(gaps: list[tuple[int, int]]) -> None:
    slots = [sum(gap for gap, _ in gaps[: at + 1]) for at in range(len(gaps))]
    counts = [count for _, count in gaps]
    runs = contiguous_runs(slots, counts)
    assert [index for run in runs for index in run] == list(range(len(slots)))
    for run in runs:
        members = [counts[index] for index in run]
        assert slots[run[-1]] - slots[run[0]] == len(run) - 1
        assert sum(members) >= 0.75 * max(members) * len(members)


@given(st.lists(st.integers(0, 5), max_size=200), st.lists(st.integers(0, 5), max_size=200))
def test_chains_are_equal_as_far_as_the_tokens_are(one: list[int], other: list[int]) -> None:
    same = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    assert common_blocks(chain_of(one), chain_of(other)) == same // BLOCK_TOKENS


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), max_size=30), st.integers(0, 8))
def test_the_cache_keeps_within_its_bytes_and_beginnings_longest(texts: list[tuple[int, int]], room: int) -> None:
    cache: PrefixCache[int] = PrefixCache(room * 10, 10)
    assert cache.on == (room > 0)
    for start, blocks in texts:
        chain = chain_of([start] * BLOCK_TOKENS * blocks)
        known = cache.find(chain)
        assert known == list(range(len(known)))
        if len(known) < blocks:
            cache.keep(chain, range(len(known), blocks))
        assert cache.counts.held_bytes <= room * 10
        assert len(cache.find(chain)) == min(blocks, room)
