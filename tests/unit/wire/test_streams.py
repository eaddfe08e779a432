"""Server-sent events, deadlines and backoff: pure, and total over what may come."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.wire import backoff, deadline, sse
from rbee.wire.errors import InvalidRequest, ProtocolError

EVENTS = st.tuples(
    st.sampled_from([None, "token", "end"]),
    st.text(max_size=40).map(lambda text: text.replace("\r", "")).map(str.encode).filter(bool),
    st.none() | st.integers(0, 99).map(str),
)


@given(st.lists(EVENTS, max_size=8), st.integers(1, 17))
def test_events_come_back_whole_however_the_bytes_are_cut(
    events: list[tuple[str | None, bytes, str | None]], size: int
) -> None:
    stream = b": comment\n\n" + b"".join(sse.encode(name, data, event_id) for name, data, event_id in events)
    decoder = sse.SseDecoder()
    seen = [event for at in range(0, len(stream), size) for event in decoder.feed(stream[at : at + size])]
    assert [(event.event, event.data, event.id) for event in seen] == [
        (name or "message", data, event_id) for name, data, event_id in events
    ]


def test_an_event_without_end_is_refused() -> None:
    decoder = sse.SseDecoder()
    with pytest.raises(ProtocolError):
        list(decoder.feed(b"data: " + b"x" * (1 << 21)))


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
def test_lines_may_end_in_return_and_newline_wherever_the_bytes_are_cut(size: int) -> None:
    stream = b"event: token\r\ndata: one\r\n\r\ndata: two\r\n\r\n"
    decoder = sse.SseDecoder()
    seen = [event for at in range(0, len(stream), size) for event in decoder.feed(stream[at : at + size])]
    assert [(event.event, event.data) for event in seen] == [("token", b"one"), ("message", b"two")]


def test_an_event_whose_name_is_no_text_is_refused() -> None:
    with pytest.raises(ProtocolError):
        list(sse.SseDecoder().feed(b"event: \xff\ndata: x\n\n"))


@pytest.mark.parametrize(
    ("header", "at"),
    [
        ("1700000000500", 1700000000.5),
        ("2023-11-14T22:13:20+00:00", 1700000000.0),
        ("2023-11-14T22:13:20Z", 1700000000.0),
    ],
)
def test_deadlines_are_read_in_both_forms_and_kept_as_they_came(header: str, at: float) -> None:
    found = deadline.parse_deadline(header)
    assert (found.at_unix, found.raw) == (at, header)
    assert found.remaining(at - 3) == pytest.approx(3)
    assert found.remaining(at + 3) == 0
    assert found.passed_error().details["deadline"] == header


@pytest.mark.parametrize(
    "header",
    [
        "",
        "soon",
        "2023-11-14T22:13:20",
        "-5",
        "1" * 40,
        "12.5",
        "2023-11-14\u00e922:13:20Z",
        "2023-11-14\udce922:13:20Z",
    ],
)
def test_deadlines_in_no_form_are_refused(header: str) -> None:
    with pytest.raises(InvalidRequest):
        deadline.parse_deadline(header)


def test_waits_grow_by_the_factor_within_the_jitter_and_the_bound() -> None:
    dice = random.Random(7)  # noqa: S311
    waits = list(backoff.delays(6, 0.2, 2.0, 0.25, dice.random, most_s=2.0))
    for wait, base in zip(waits, [0.2, 0.4, 0.8, 1.6, 2.0, 2.0], strict=True):
        assert base * 0.75 <= wait <= base * 1.25
