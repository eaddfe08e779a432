"""The batch's rows say what each of them says alone, whoever comes and goes beside them."""

import resource
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.worker.batches import CPU, Small, tiny

from rbee.keeper.demo.decoder import build as build_talk
from rbee.wire.errors import InferenceError
from rbee.worker.engine.batch import host_kv
from rbee.worker.engine.batch import shared as shared_decoder
from rbee.worker.engine.batch.build import Batch
from rbee.worker.engine.batch.decoders import BatchDecoder, Chunk, Token
from rbee.worker.engine.batch.host_kv import KEPT_TOKENS, HostBlock, HostKv
from rbee.worker.engine.batch.row import ChoiceStream, Row
from rbee.worker.engine.batch.scores import DeviceScores, RowScores, Selection, best_graph, take_graph
from rbee.worker.engine.batch.shared import SharedDecoder
from rbee.worker.engine.batch.stepper import Outcome
from rbee.worker.engine.decoder import run_options
from rbee.worker.engine.generation import GenerateRequest
from rbee.worker.engine.runtime import runtime
from rbee.worker.engine.sampling import Choice, SamplingParams
from rbee.worker.engine.sessions import RunOptions, create_session

GREEDY = SamplingParams(temperature=0.0)
COMMON = tuple(int(token) for token in np.random.default_rng(3).integers(1, 256, 120))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return tiny(tmp_path_factory.mktemp("tiny"), "fp32")


@pytest.fixture(scope="session")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("talk")
    build_talk(folder, features=1536)  # the least that it takes: how fast it is matters here
    return Small.load(folder, 0)


@pytest.fixture(scope="session")
def device(shared: Small) -> Small:
    return shared.as_on_device()


@pytest.fixture
def tight(shared: Small, monkeypatch: pytest.MonkeyPatch) -> Small:
    """Buffers that begin small and give everything back, so that short texts outgrow them again and again."""
    monkeypatch.setattr(HostKv, "least_slots", 1)
    monkeypatch.setattr(HostKv, "least_capacity", 24)
    monkeypatch.setattr(host_kv, "KEPT_TOKENS", 0)
    monkeypatch.setattr(shared_decoder, "SMALLEST_CAPACITY", 16)
    return shared


@pytest.fixture(params=["shared", "tight", "device", "growing"])
def small(request: pytest.FixtureRequest) -> Small:
    found: Small = request.getfixturevalue(request.param)
    return found


def a_row(prompt: tuple[int, ...], count: int, params: SamplingParams = GREEDY) -> Row:
    return Row(GenerateRequest(prompt, count, params), ChoiceStream(lambda: None), list(prompt), frozenset())


def read(row: Row) -> list[int]:
    return row.tokens[len(row.request.prompt) :]


def a_step(batch: Batch) -> list[tuple[Row, Outcome]]:
    """Make one step; what it told."""
    came: list[tuple[Row, Outcome]] = []
    batch.stepper.step(came.extend)
    return came


def finish(batch: Batch, rows: list[Row], steps: int = 2000) -> None:
    """Step until every row has all its tokens, each reader reading at once."""
    for _ in range(steps):
        if all(row.chosen >= row.request.max_tokens for row in rows):
            return
        for row, outcome in a_step(batch):
            assert isinstance(outcome, Choice), outcome
            row.stream.taken += 1
    raise AssertionError("the batch does not come to an end")


@dataclass(frozen=True)
class Arrival:
    """After so many steps a text comes: how much of the common beginning, what of its own, how long it gets."""

    after: int
    common: int
    own: tuple[int, ...]
    tokens: int
    cancelled_after: int | None

    @property
    def prompt(self) -> tuple[int, ...]:
        return (*COMMON[: self.common], *self.own)


arrivals = st.builds(
    Arrival,
    after=st.integers(0, 6),
    common=st.sampled_from([0, 0, 10, 40, 64, 120]),
    own=st.lists(st.integers(1, 255), min_size=1, max_size=40).map(tuple),
    tokens=st.integers(1, 12),
    cancelled_after=st.none() | st.integers(0, 8),
)


async def test_rows_that_come_and_go_say_what_they_say_alone(small: Small) -> None:
    alone = cache(small.alone)

    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.lists(arrivals, min_size=1, max_size=7), st.integers(1, 4), st.booleans(), st.sampled_from([None, 60, 300])
    )
    def holds(coming: list[Arrival], rows: int, prefixes: bool, memory_tokens: int | None) -> None:
        limit = None if memory_tokens is None else small.batch().decoder.size(1, memory_tokens)
        batch = small.batch(rows=rows, kv_bytes=limit, prefix_mb=int(prefixes))
        texts = [(each, a_row(each.prompt, each.tokens)) for each in coming]
        for step in range(9):
            for each, row in texts:
                if each.after == step:
                    batch.stepper.submit(row)
                if each.cancelled_after == step:
                    batch.stepper.drop(row)
            a_step(batch)
        kept = [row for each, row in texts if each.cancelled_after is None or each.cancelled_after < each.after]
        finish(batch, kept)
        for row in kept:
            assert read(row) == alone(row.request.prompt, row.request.max_tokens)
        cut = [row for _, row in texts if row not in kept]
        for row in cut:
            assert read(row) == alone(row.request.prompt, row.request.max_tokens)[: row.chosen]
        assert not batch.stepper.rows
        assert not batch.stepper.has_work()

    holds()


@pytest.mark.parametrize("precision", ["fp16", "int4"])
async def test_other_precisions_decode_together_as_alone(tmp_path: Path, precision: str) -> None:
    small = tiny(tmp_path, precision)
    batch = small.batch(prefix_mb=0)
    rows = [a_row(COMMON[start : start + length], 8) for start, length in ((0, 5), (7, 40), (20, 1))]
    alone = []
    for row in rows:
        by_itself = a_row(row.request.prompt, 8)
        other = small.batch(prefix_mb=0)
        other.stepper.submit(by_itself)
        finish(other, [by_itself])
        alone.append(read(by_itself))
        batch.stepper.submit(row)
    finish(batch, rows)
    assert [read(row) for row in rows] == alone


async def test_a_seed_says_the_same_alone_and_among_others(small: Small) -> None:
    def drawn(seed: int) -> Row:
        return a_row(COMMON[:20], 10, SamplingParams(temperature=1.5, top_p=0.9, seed=seed))

    lone = drawn(5)
    batch = small.batch()
    batch.stepper.submit(lone)
    finish(batch, [lone])
    among = [drawn(seed) for seed in (1, 5, 9)]
    for row in among:
        batch.stepper.submit(row)
    finish(batch, among)
    assert read(among[1]) == read(lone)
    assert read(among[0]) != read(lone)


async def test_a_known_beginning_is_not_read_again(small: Small) -> None:
    batch = small.batch()
    first, second = a_row((*COMMON, 3), 2), a_row((*COMMON, 4, 5), 2)
    batch.stepper.submit(first)
    finish(batch, [first])
    batch.stepper.submit(second)
    finish(batch, [second])
    counts = batch.prefixes.counts
    assert (counts.hits, counts.misses, counts.reused_tokens) == (1, 1, 96)
    assert counts.held_bytes > 0
    assert read(second) == small.alone((*COMMON, 4, 5), 2)


async def test_twins_read_their_prompt_once(small: Small) -> None:
    batch = small.batch()
    twins = [a_row((*COMMON, 3), 3) for _ in range(4)]
    for row in twins:
        batch.stepper.submit(row)
    finish(batch, twins)
    assert batch.prefixes.counts.reused_tokens == 3 * 96
    assert all(read(row) == small.alone((*COMMON, 3), 3) for row in twins)


async def test_the_prefix_cache_stays_within_its_bytes(small: Small) -> None:
    batch = small.batch(prefix_mb=1)
    for start in range(1, 40):
        row = a_row(tuple((start * 7 + at * start) % 255 + 1 for at in range(70)), 1)
        batch.stepper.submit(row)
        finish(batch, [row])
    assert 0 < batch.prefixes.counts.held_bytes <= 1 << 20


async def test_a_row_whose_reader_is_far_behind_waits_and_the_others_go_on(
    small: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rbee.worker.engine.batch.row.MOST_UNREAD", 12)
    batch = small.batch()
    slow, quick = a_row(COMMON[:8], 20), a_row(COMMON[:9], 20)
    for row in (slow, quick):
        batch.stepper.submit(row)
    while quick.chosen < quick.request.max_tokens:
        for row, _ in a_step(batch):
            if row is quick:
                row.stream.taken += 1
    assert slow.chosen == 12
    assert not batch.stepper.has_work()
    slow.stream.taken += 6
    assert batch.stepper.has_work()
    slow.stream.taken = slow.chosen
    finish(batch, [slow])
    assert read(slow) == small.alone(COMMON[:8], slow.request.max_tokens)


async def test_nobody_waits_for_prompts_or_copies_of_others(shared: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = shared.batch(rows=2)
    first, second = a_row(COMMON[:40], 3), a_row(COMMON[40:80], 1)
    happened: list[str] = []
    names = {first.key: "first", second.key: "second"}
    real_read, real_save = batch.decoder.read, batch.decoder.save

    def reads(chunks: list[Chunk], options: RunOptions) -> RowScores:
        happened.append(f"read {' '.join(names[chunk.key] for chunk in chunks)}")
        return real_read(chunks, options)

    def saves(key: int, start: int, stop: int) -> list[HostBlock]:
        happened.append(f"save {names[key]}")
        return real_save(key, start, stop)

    monkeypatch.setattr(batch.decoder, "read", reads)
    monkeypatch.setattr(batch.decoder, "save", saves)
    for row in (first, second):
        batch.stepper.submit(row)
        while row.chosen == 0:
            batch.stepper.step(lambda came: happened.extend(f"tell {names[row.key]}" for row, _ in came))
    assert happened[:3] == ["read first", "tell first", "save first"]
    assert happened[3:5] == ["tell first", "read second"]
    last = len(happened) - happened[::-1].index("read second")  # its prompt may be cut, as another text decodes
    assert happened[last] == "tell second"


async def test_more_rows_than_slots_wait_their_turn(small: Small) -> None:
    batch = small.batch(rows=2)
    rows = [a_row(COMMON[start : start + 6], 5) for start in range(5)]
    for row in rows:
        batch.stepper.submit(row)
    most = 0
    while any(row.chosen < 5 for row in rows):
        a_step(batch)
        most = max(most, sum(row.cached > 0 and row.chosen < 5 for row in rows))
    assert most == 2
    assert [read(row) for row in rows] == [small.alone(row.request.prompt, 5) for row in rows]


async def test_one_row_at_fault_fails_alone(shared: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = shared.batch()
    rows = [a_row(COMMON[start : start + 6], 4) for start in range(3)]
    step = batch.decoder.step

    def refuses(tokens: list[Token], options: object) -> object:
        if any(token.key == rows[1].key for token in tokens):
            raise InferenceError("this row cannot be computed")
        return step(tokens, options)  # type: ignore[arg-type]

    monkeypatch.setattr(batch.decoder, "step", refuses)
    for row in rows:
        batch.stepper.submit(row)
    failed = []
    for _ in range(8):
        failed += [row for row, outcome in a_step(batch) if isinstance(outcome, InferenceError)]
    assert failed == [rows[1]]
    assert [read(row) for row in (rows[0], rows[2])] == [shared.alone(row.request.prompt, 4) for row in rows[::2]]


async def test_a_stream_hands_over_its_failure_after_what_came_before() -> None:
    woken: list[bool] = []
    stream = ChoiceStream(lambda: woken.append(True))
    stream.put(Choice(5))
    stream.fail(InferenceError("over"))
    assert await stream.next() == Choice(5)
    with pytest.raises(InferenceError, match="over"):
        await stream.next()
    assert not woken
    stream.held = True
    stream.put(Choice(6))
    assert await stream.next() == Choice(6)
    assert woken == [True]


@pytest.mark.parametrize("place", ["shared", "device"])
async def test_rows_move_into_free_slots(request: pytest.FixtureRequest, shared: Small, place: str) -> None:
    decoder, options = request.getfixturevalue(place).batch(rows=8).decoder, run_options()
    texts = {key: COMMON[key : key + 4 + key] for key in range(6)}
    for key in texts:
        decoder.open(key, 1)
    decoder.read([Chunk(key, 0, tokens) for key, tokens in texts.items()], options)
    for key in (0, 2, 4):
        decoder.close(key)
    kept = {key: texts[key] for key in (1, 3, 5)}
    scores = decoder.step([Token(key, len(tokens), 9) for key, tokens in kept.items()], options)
    assert [int(row.argmax()) for row in scores.whole()] == [
        shared.alone((*tokens, 9), 1)[0] for tokens in kept.values()
    ]


async def test_rows_grow_in_the_hosts_memory_without_being_moved(
    shared: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder, options = shared.batch(rows=4, context=1024).decoder, run_options()
    assert isinstance(decoder, SharedDecoder)
    short, long = COMMON[:5], tuple((7 * place) % 200 for place in range(300))
    decoder.open(0, len(long))
    decoder.open(1, len(short))
    monkeypatch.setattr(decoder._kv, "resize", None)  # it would fail
    decoder.read([Chunk(1, 0, short)], options)
    assert best_after(decoder, Token(1, 5, 9)) == shared.alone((*short, 9), 1)
    for start in (0, 260):  # the other row, in the slot below, is longer than what the steps showed before
        decoder.read([Chunk(0, start, long[start : start + 260])], options)
        decoder.step([Token(1, 5, 9)], options)
    assert best_after(decoder, Token(0, 300, 9)) == shared.alone((*long, 9), 1)
    assert best_after(decoder, Token(1, 6, 11)) == shared.alone((*short, 9, 11), 1)


def best_after(decoder: BatchDecoder, token: Token) -> list[int]:
    """The best token after one row's step."""
    return decoder.step([token], run_options()).whole().argmax(axis=1).tolist()


@pytest.mark.parametrize("length", [KEPT_TOKENS, KEPT_TOKENS + 1])
def test_a_slot_gives_the_memory_of_many_tokens_back(shared: Small, length: int) -> None:
    kv = HostKv(shared.layout.pairs)
    kv.resize(2, 512, {})
    for buffer in kv._buffers:
        buffer[:] = 1
    kv.free(1, length)
    for buffer in kv._buffers:
        assert (buffer[0] == 1).all()
        assert (buffer[1] == (length <= KEPT_TOKENS)).all()  # memory that was given back reads as zeros


def test_buffers_begin_small_where_the_kernel_gives_no_memory_that_is_not_filled(shared: Small) -> None:
    large = [replace(pair, empty_shape=(1, 64, 0, 1024)) for pair in shared.layout.pairs]
    limits = resource.getrlimit(resource.RLIMIT_AS)
    has_now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has_now + (1 << 30), limits[1]))
    try:
        kv = HostKv(large)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert (kv.least_slots, kv.least_capacity) == (1, 256)
    assert (HostKv.least_slots, HostKv(shared.layout.pairs).least_slots) == (8, 8)


async def test_the_best_of_scores_on_a_device_and_what_is_no_number() -> None:
    selection = Selection(create_session(take_graph("float16"), CPU), create_session(best_graph(), CPU), "cpu", 0)
    values = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    values[2, 7] = np.nan
    place = runtime().OrtValue.ortvalue_from_numpy(values)
    scores = DeviceScores(selection, (place,), (0, 1, 2))
    best = scores.of([1, 2]).best(3)
    ids, found = best
    assert ids[0].tolist() == np.argsort(-values[1])[:3].tolist()
    assert found[0].tolist() == sorted(values[1], reverse=True)[:3]
    assert np.isnan(found[1, 0])
    assert np.array_equal(scores.of([2, 0]).whole(), values[[2, 0]], equal_nan=True)
