"""Where a prompt's beginning is remembered to be, and what a request is estimated to cost: from bytes alone."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.queen.admission.work import estimate
from rbee.queen.routing.affinity import LENGTHS, MOST_HOLDERS, Affinity, Holder, beginnings
from rbee.queen.routing.decision import Key

A, B = (Key("bee", "a"), "life-a"), (Key("bee", "b"), "life-b")


def turn(*contents: str, **more: object) -> bytes:
    messages = [{"role": "user", "content": content} for content in contents]
    return json.dumps({"model": "talk", **more, "messages": messages, "stream": True}).encode()


@given(st.text(min_size=300, max_size=3000), st.text(max_size=500))
def test_the_next_turn_of_a_conversation_shares_its_beginnings(past: str, next_turn: str) -> None:
    before, after = beginnings("m", turn(past)), beginnings("m", turn(past, "answer", next_turn))
    shared = [one for one in before[1:] if one in after]
    assert len(shared) >= len(before) - 1  # the longest one may reach into what stood behind the messages
    assert len(before) >= 1


def test_other_models_and_other_prompts_share_nothing() -> None:
    one = beginnings("m", turn("x" * 600))
    assert not set(one) & set(beginnings("other", turn("x" * 600)))
    assert not set(one) & set(beginnings("m", turn("y" * 600)))


@pytest.mark.parametrize("body", [b"", b"{}", b'{"input": "' + b"x" * 900 + b'"}', turn("short")])
def test_short_prompts_and_bodies_without_one_are_not_remembered(body: bytes) -> None:
    assert beginnings("m", body) == ()


def test_no_more_is_looked_at_than_the_longest_length() -> None:
    assert len(beginnings("m", turn("x" * 1_000_000))) == len(LENGTHS)


def test_the_longest_beginning_and_the_latest_holder_come_first() -> None:
    table = Affinity(100)
    table.remember((3, 2, 1), A)
    table.remember((9, 2, 1), B)
    assert list(table.holders((3, 2, 1))) == [A, B, A, B, A]
    assert list(table.holders((8, 2))) == [B, A]
    assert list(table.holders((7,))) == []


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), max_size=200), st.integers(1, 20))
def test_the_table_is_bounded_and_forgets_what_was_not_used(entries: list[tuple[int, int]], most: int) -> None:
    table = Affinity(most)
    for hashed, worker in entries:
        holder: Holder = (Key("bee", f"w{worker}"), "life")
        table.remember((hashed,), holder)
        held = list(table.holders((hashed,)))
        assert held[0] == holder
        assert len(held) == len(set(held)) <= MOST_HOLDERS
        assert len(table) <= most


@pytest.mark.parametrize(
    ("body", "least", "most"),
    [
        (b"", 1, 1),
        (b'{"input": "' + b"x" * 4000 + b'"}', 1000, 1010),
        (turn("hello"), 256, 260),
        (turn("hello", max_tokens=7), 7, 12),
        (turn("hello", max_completion_tokens=2000), 2000, 2010),
        (turn("hello", max_tokens=999_999), 32_768, 32_780),
        (turn("x" * 40_000, max_tokens=10), 1000, 1020),
    ],
)
def test_the_cost_of_a_request(body: bytes, least: float, most: float) -> None:
    assert least <= estimate(body) <= most
