"""The choice of tokens: against a plain reference, alone and in a batch."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rbee.wire.errors import InferenceError
from rbee.worker.engine.distribution import Cut, best_tokens, draw, draw_from, log_total
from rbee.worker.engine.sampling import BatchSampler, Choice, Need, NeedKind, SamplingParams

SCORES = np.array([1.0, 3.0, 2.0, -1.0, 2.5], np.float32)
GREEDY = SamplingParams(temperature=0.0)


def reference(scores: NDArray[np.float32], cut: Cut) -> NDArray[np.float64]:
    """Probabilities by the book: sorted, in double precision."""
    scaled = scores.astype(np.float64) / cut.temperature
    weights = np.exp(scaled - scaled.max())
    weights[weights < cut.min_p] = 0.0
    order = np.lexsort((np.arange(len(scores)), -scores))
    if 0 < cut.top_k < len(scores):
        weights[order[cut.top_k :]] = 0.0
    if cut.top_p < 1.0:
        mass = weights[order].cumsum()
        weights[order[np.searchsorted(mass, cut.top_p * mass[-1]) + 1 :]] = 0.0
    return weights / weights.sum()


def chances(count: int) -> Iterator[float]:
    return ((at + 0.5) / count for at in range(count))


def drawn(scores: NDArray[np.float32], cut: Cut, count: int = 500) -> NDArray[np.float64]:
    """How often each token comes out over chances spread evenly: the distribution itself, to within the spacing."""
    best = float(scores.max())
    found = [draw(scores, best, cut, chance) for chance in chances(count)]
    return np.bincount(found, minlength=len(scores)) / count


def choices(sampler: BatchSampler, key: object, rows: Sequence[NDArray[np.float32]]) -> list[int]:
    found = []
    for row in rows:
        (choice,) = sampler.choose([key], row[None])
        assert isinstance(choice, Choice)
        found.append(choice.token_id)
    return found


CUTS = st.builds(
    Cut,
    temperature=st.sampled_from([0.3, 1.0, 2.5]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    top_k=st.sampled_from([0, 1, 3, 40]),
    top_p=st.sampled_from([1e-9, 0.5, 0.9, 1.0]),
)


@given(CUTS, st.integers(2, 300), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_draws_follow_the_reference(cut: Cut, size: int, seed: int) -> None:
    scores = np.random.default_rng(seed).normal(0, 3, size).astype(np.float32)
    expected = reference(scores, cut)
    found = drawn(scores, cut)
    assert np.abs(found - expected).max() <= 2 / 500
    assert not found[expected == 0].any()


@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 8.0])
@pytest.mark.parametrize("top_p", [0.3, 0.9, 0.999])
def test_a_wide_nucleus_has_the_mass_it_must(spread: float, top_p: float) -> None:
    """Large enough for the way that sorts the boundary alone."""
    scores = np.random.default_rng(7).normal(0, spread, 20_000).astype(np.float32)
    expected = reference(scores, Cut(top_p=top_p))
    found = drawn(scores, Cut(top_p=top_p), 300)
    # single precision may put the border a little elsewhere
    assert found[expected == 0].sum() <= 0.01
    best = expected > np.median(expected[expected > 0])
    assert found[best].sum() == pytest.approx(expected[best].sum(), abs=0.1)


@pytest.mark.parametrize("top_p", [5e-324, 1e-9, 0.5, 1 - 1e-9, float(np.nextafter(1.0, 0.0))])
@pytest.mark.parametrize("spread", [0.0, 1e-6, 30.0])
def test_a_nucleus_of_any_size_gives_a_token(top_p: float, spread: float) -> None:
    scores = np.random.default_rng(2).normal(0, spread, 5000).astype(np.float32)
    found = [draw(scores, float(scores.max()), Cut(top_p=top_p), chance) for chance in (0.0, 0.5, 1 - 1e-16)]
    assert all(0 <= token < 5000 for token in found)
    if top_p < 1e-6:
        assert set(found) == {int(scores.argmax())}


def test_a_large_vocabulary_is_drawn_from_as_a_small_one() -> None:
    scores = np.random.default_rng(3).normal(0, 4, 70_001).astype(np.float32)
    best, cut = float(scores.max()), Cut()
    mass = np.exp(scores.astype(np.float64) - best).cumsum()
    same = [
        draw(scores, best, cut, chance) == np.searchsorted(mass, chance * mass[-1], side="right")
        for chance in chances(200)
    ]
    assert sum(same) >= 198


def test_no_token_without_mass_is_drawn_at_the_edges() -> None:
    scores = np.full(5000, -np.inf, np.float32)
    scores[[3, 4000]] = 1.0
    for cut in (Cut(), Cut(top_p=0.99), Cut(top_k=10), Cut(min_p=0.1)):
        assert draw(scores, 1.0, cut, 0.0) == 3
        assert draw(scores, 1.0, cut, float(np.nextafter(1.0, 0.0))) == 4000


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=400), st.integers(1, 50))
def test_the_best_tokens_are_those_of_a_full_sort(values: list[int], count: int) -> None:
    scores = np.array(values, np.float32)
    expected = np.argsort(-scores, kind="stable")[:count]
    assert best_tokens(scores, count).tolist() == expected.tolist()
    assert best_tokens(np.full(900, -3e38, np.float32), 3).tolist() == [0, 1, 2]
    wide = np.tile(scores, 40)
    assert best_tokens(wide, 3).tolist() == np.argsort(-wide, kind="stable")[:3].tolist()


def test_the_best_tokens_alone_give_the_same_draw() -> None:
    scores = np.random.default_rng(5).normal(0, 2, 3000).astype(np.float32)
    cut = Cut(0.8, 0.01, 20, 0.9)
    ids, best = best_tokens(scores, 64), float(scores.max())
    for chance in chances(200):
        assert draw(scores, best, cut, chance) == draw_from(ids, scores[ids], best, cut, chance)


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.5]),
    top_p=st.sampled_from([0.8, 1.0]),
    top_k=st.sampled_from([0, 5]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 99),
    logit_bias=st.sampled_from([(), ((3, 5.0), (4, -100.0))]),
    logprobs=st.sampled_from([None, 0, 3]),
    min_tokens=st.sampled_from([0, 3]),
)


@given(st.lists(PARAMS, min_size=1, max_size=5), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_row_chooses_the_same_alone_and_in_a_batch(params: list[SamplingParams], seed: int) -> None:
    scores = np.random.default_rng(seed).normal(0, 2, (4, len(params), 1500)).astype(np.float32)
    before = scores.copy()
    together = BatchSampler(frozenset({7}))
    for key, each in enumerate(params):
        together.add(key, each, (1, 2, 3))
    steps = [together.choose(range(len(params)), step) for step in scores]
    for key, each in enumerate(params):
        alone = BatchSampler(frozenset({7}))
        alone.add("alone", each, (1, 2, 3))
        assert [alone.choose(["alone"], step[key][None])[0] for step in scores] == [step[key] for step in steps]
    assert (scores == before).all()


def test_a_seed_gives_the_same_choices_and_another_does_not() -> None:
    def text(seed: int | None) -> list[int]:
        sampler = BatchSampler()
        sampler.add(0, SamplingParams(temperature=5.0, seed=seed), ())
        return choices(sampler, 0, [SCORES] * 50)

    assert text(42) == text(42) != text(43)
    assert text(None) != text(None)


def test_temperature_zero_is_greedy() -> None:
    sampler = BatchSampler()
    sampler.add(0, GREEDY, ())
    assert choices(sampler, 0, [SCORES] * 3) == [1, 1, 1]


def test_penalties_lower_what_was_used_and_the_prompt_only_by_repetition() -> None:
    def text(**given: float) -> list[int]:
        sampler = BatchSampler()
        sampler.add(0, dataclasses.replace(GREEDY, **given), (1,))
        return choices(sampler, 0, [SCORES] * 4)

    assert text(repetition_penalty=1.6) == [4, 2, 1, 1]
    assert text(presence_penalty=0.7) == [1, 4, 1, 1]
    assert text(frequency_penalty=0.7) == [1, 4, 1, 2]
    assert text(repetition_penalty=0.5) == [1, 1, 1, 1]


def test_bias_forbids_and_forces() -> None:
    sampler = BatchSampler()
    sampler.add(0, dataclasses.replace(GREEDY, logit_bias=((1, -100.0),)), ())
    sampler.add(1, dataclasses.replace(GREEDY, logit_bias=((3, 100.0),)), ())
    both = sampler.choose([0, 1], np.stack([SCORES, SCORES]))
    assert both == [Choice(4), Choice(3)]


def test_tokens_that_the_model_does_not_score_are_passed_over() -> None:
    sampler = BatchSampler(frozenset({1, 9}))
    params = dataclasses.replace(GREEDY, logit_bias=((9, 5.0),), min_tokens=1, repetition_penalty=2.0)
    sampler.add(0, params, (4, 9))
    assert choices(sampler, 0, [SCORES]) == [2]


def test_the_end_is_held_back_until_enough_tokens_are_there() -> None:
    sampler = BatchSampler(frozenset({1}))
    sampler.add(0, dataclasses.replace(GREEDY, min_tokens=2), ())
    assert choices(sampler, 0, [SCORES] * 3) == [4, 4, 1]


def test_log_probabilities_are_the_models_own() -> None:
    sampler = BatchSampler()
    sampler.add(0, SamplingParams(temperature=9.0, logprobs=2, seed=1, logit_bias=((0, 50.0),)), ())
    (choice,) = sampler.choose([0], SCORES[None])
    expected = SCORES - np.log(np.exp(SCORES.astype(np.float64)).sum())
    assert isinstance(choice, Choice)
    assert choice.token_id == 0
    assert choice.logprob == pytest.approx(expected[0], abs=1e-6)
    assert [token for token, _ in choice.top] == [1, 4]
    assert [value for _, value in choice.top] == pytest.approx(expected[[1, 4]], abs=1e-6)
    assert log_total(SCORES, 3.0) == pytest.approx(np.log(np.exp(SCORES).sum()), abs=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_not_numbers_fails_alone(bad: float) -> None:
    sampler = BatchSampler()
    rows = np.stack([SCORES, SCORES, SCORES])
    rows[1, 2] = bad
    for key in range(3):
        sampler.add(key, dataclasses.replace(GREEDY, logprobs=0 if key == 2 else None), ())
    first, second, third = sampler.choose([0, 1, 2], rows)
    assert isinstance(first, Choice)
    assert isinstance(third, Choice)
    assert isinstance(second, InferenceError)
    assert "not numbers" in str(second)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_whose_scores_overflow_under_its_penalties_fails_alone(temperature: float) -> None:
    sampler = BatchSampler()
    sampler.add(0, dataclasses.replace(GREEDY, temperature=temperature, repetition_penalty=1e-39), (1,))
    sampler.add(1, GREEDY, ())
    failed, chosen = sampler.choose([0, 1], np.stack([SCORES, SCORES]))
    assert isinstance(failed, InferenceError)
    assert failed.details == {"reason": "not_finite"}
    assert chosen == Choice(1)


def test_a_row_without_any_token_left_is_an_error() -> None:
    sampler = BatchSampler()
    sampler.add(0, GREEDY, ())
    (nothing,) = sampler.choose([0], np.full((1, 5), -np.inf, np.float32))
    assert isinstance(nothing, InferenceError)


def test_rows_say_how_much_of_their_scores_they_need() -> None:
    sampler = BatchSampler(frozenset({1}))
    for key, params in enumerate(
        [
            GREEDY,
            SamplingParams(top_k=40),
            SamplingParams(top_k=9000),
            dataclasses.replace(GREEDY, logprobs=0),
            dataclasses.replace(GREEDY, min_tokens=1),
        ]
    ):
        sampler.add(key, params, ())
    assert sampler.need([0]) == Need(NeedKind.ARGMAX)
    assert sampler.need([0, 1]) == Need(NeedKind.TOP_K, 40)
    assert [sampler.need([0, key]).kind for key in (2, 3, 4)] == [NeedKind.SCORES] * 3
    sampler.choose([4], SCORES[None])
    assert sampler.need([4]) == Need(NeedKind.ARGMAX)


def test_the_devices_best_tokens_choose_as_all_scores_do() -> None:
    scores = np.random.default_rng(11).normal(0, 2, (2, 800)).astype(np.float32)
    ids = np.stack([best_tokens(row, 40) for row in scores])
    values = np.take_along_axis(scores, ids, axis=1)
    whole, few = BatchSampler(), BatchSampler()
    for sampler in (whole, few):
        sampler.add(0, GREEDY, ())
        sampler.add(1, SamplingParams(top_k=40, top_p=0.9, seed=4), ())
    for _ in range(20):
        assert whole.choose([0, 1], scores) == few.choose_from([0, 1], ids, values)
    values[0, 0] = np.nan
    assert isinstance(few.choose_from([0, 1], ids, values)[0], InferenceError)


def test_a_removed_row_is_forgotten() -> None:
    sampler = BatchSampler()
    sampler.add(0, GREEDY, ())
    sampler.remove(0)
    sampler.remove(0)
    with pytest.raises(KeyError):
        sampler.choose([0], SCORES[None])
    assert sampler.choose([], SCORES[None][:0]) == []
