"""Heads and bodies of HTTP/1.1 as the straight way reads them: the plain ones exactly, the others not at all."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.queen.express.framing import BadFraming, Body, Chunked, Sized, UntilEnd, body_of, chunk
from rbee.queen.express.heads import read_answer, read_request

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: q\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n"


def with_line(line: bytes) -> bytes:
    return HEAD[:-2] + line + b"\r\n\r\n"


def test_a_plain_head_is_read() -> None:
    head = read_request(HEAD + b"{}")
    assert head is not None
    assert (head.size, head.length, head.odd, head.keeps_alive) == (len(HEAD), 2, False, True)
    assert (head.method, head.target) == (b"POST", b"/v1/chat/completions")
    assert head.fields[b"content-type"] == b"application/json"


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Length: 3", b"Content-Length : 2", b" folded: x", b"Transfer-Encoding: chunked", b"a\x00b: c",
        b"Content-Length: +2", b"Authorization: a\r\nAuthorization: b", b"bare: \rx", b"no colon", b"x: a\nb",
    ],
)  # fmt: skip
def test_what_is_not_plain_is_not_read(line: bytes) -> None:
    assert read_request(with_line(line)) is None


@pytest.mark.parametrize("end", range(len(HEAD)))
def test_a_part_of_a_head_is_not_read(end: int) -> None:
    assert read_request(HEAD[:end]) is None


@pytest.mark.parametrize(
    "line", [b"Expect: 100-continue", b"X-Request-Deadline: 1", b"Prefer: x", b"Origin: y", b"X-Rbee-Priority: batch"]
)
def test_what_wants_more_than_passing_on_is_odd(line: bytes) -> None:
    head = read_request(with_line(line))
    assert head is not None and head.odd


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
    ],
)
def test_answers_that_are_not_plain(data: bytes) -> None:
    assert read_answer(data) is None


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"Content-Length: 5\r\n", Sized),
        (b"Transfer-Encoding: Chunked\r\n", Chunked),
        (b"", UntilEnd),
    ],
)
def test_the_framing_follows_the_head(head: bytes, kind: type[Body]) -> None:
    found = read_answer(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n")
    assert found is not None
    assert isinstance(body_of(found), kind)


def test_an_older_server_is_understood_and_its_connection_is_not_kept() -> None:
    older = read_answer(b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    newer = read_answer(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    assert older is not None and newer is not None
    assert (older.length, older.keeps_alive, newer.keeps_alive) == (2, False, True)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    starts = [0, *ends[:-1]]
    return [data[start:end] for start, end in zip(starts, ends, strict=True) if end > start]


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 400), max_size=20), st.booleans()
)
def test_chunks_are_put_together_however_they_are_cut(payloads: list[bytes], cuts: list[int], trailer: bool) -> None:
    data = b"".join(map(chunk, payloads)) + b"0;x=y\r\n" + (b"A: b\r\n" if trailer else b"") + b"\r\n"
    body = Chunked()
    out = b""
    for piece in pieces(data, cuts):
        assert not body.done
        out += body.feed(piece)
    assert body.done
    assert out == b"".join(payloads)


@given(st.binary(max_size=200), st.lists(st.integers(0, 200), max_size=8))
def test_bad_chunks_are_refused_or_wait_for_more(data: bytes, cuts: list[int]) -> None:
    body = Chunked()
    try:
        for piece in pieces(data, cuts):
            body.feed(piece)
            if body.done:
                return
    except BadFraming:
        return
    assert not body.done


@pytest.mark.parametrize("data", [b"5\r\nabcdeXX", b"g\r\n", b"-1\r\n", b"0\r\n\r\nmore", b"\r\n", b"fffffffff\r\n"])
def test_chunks_that_are_none(data: bytes) -> None:
    with pytest.raises(BadFraming):
        Chunked().feed(data)


def test_more_than_was_announced_is_refused() -> None:
    with pytest.raises(BadFraming):
        Sized(2).feed(b"abc")
