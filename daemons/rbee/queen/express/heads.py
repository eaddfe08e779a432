"""Heads of HTTP/1.1 messages, read strictly (RFC 9112): what is not of the plainest form is not read here at all."""

import functools
import re
from dataclasses import dataclass

MOST_HEAD = 16 << 10
"""Bytes of a head."""
_MOST_REMEMBERED = 2048
"""Bytes of a head that is remembered: a client, and a worker, sends the same one again and again."""
END = b"\r\n\r\n"
CODING = "latin-1"
"""Of heads: each byte is a character."""
_FIELD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ \t]*[^\x00-\x08\x0a-\x1f\x7f]*\r\n"
_REQUEST = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.1\r\n((?:" + _FIELD + rb")*)\r\n")
_STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t -~\x80-\xff]*)?\r\n((?:" + _FIELD + rb")*)\r\n")
_KEPT = frozenset(
    {
        b"authorization", b"accept", b"content-type", b"content-length", b"connection", b"x-correlation-id",
        b"x-request-id", b"retry-after", b"inference-header-content-length", b"transfer-encoding",
    }
)  # fmt: skip
_ODD = frozenset({b"expect", b"upgrade", b"content-encoding", b"trailer", b"x-request-deadline", b"prefer", b"origin"})
_OURS = b"x-rbee-"
_TO_WORKER = ((b"content-type", b"Content-Type"), (b"accept", b"Accept"),
              (b"inference-header-content-length", b"Inference-Header-Content-Length"))  # fmt: skip
_TO_CLIENT = ((b"content-type", b"Content-Type"), (b"x-request-id", b"X-Request-Id"), (b"retry-after", b"Retry-After"),
              (b"inference-header-content-length", b"Inference-Header-Content-Length"))  # fmt: skip
_EVENTS = b"text/event-stream"
_EVENT_LINES = "Cache-Control: no-store\r\nX-Accel-Buffering: no\r\n"
"""As every stream of events has them."""
_MOST_DIGITS = 12


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a message: ``size`` in bytes, and the fields that matter by lower-case name.

    ``length`` is that of the body, None where the head does not give it; ``odd`` is a request that wants more than to
    be passed on (a deadline, a preference, a body that is coded); ``passed_on`` are the lines that go on as they came,
    as ISO-8859-1, which keeps every byte.
    """

    size: int
    fields: dict[bytes, bytes]
    length: int | None
    odd: bool
    passed_on: str
    keeps_alive: bool
    """Whether the connection stays open after the message."""
    chunked: bool
    """Whether the body comes in chunks."""


@dataclass(frozen=True, slots=True)
class RequestHead(Head):
    """The head of a request."""

    method: bytes
    target: bytes


@dataclass(frozen=True, slots=True)
class AnswerHead(Head):
    """The head of an answer; ``events`` is one whose body is a stream of events."""

    status: int
    events: bool


def read_request(data: bytes) -> RequestHead | None:
    """The head at the beginning of ``data``; None where it is not whole, or not of the plainest form."""
    size = data.find(END) + len(END)
    if size < len(END) or size > MOST_HEAD:
        return None
    return _request(data[:size]) if size <= _MOST_REMEMBERED else _request.__wrapped__(data[:size])


@functools.lru_cache(maxsize=1024)
def _request(data: bytes) -> RequestHead | None:
    found = _REQUEST.fullmatch(data)
    fields = None if found is None else _fields(found[3])
    if found is None or fields is None:
        return None
    kept, length, odd = fields
    chunked = b"transfer-encoding" in kept
    if chunked and length is not None:
        return None
    passed_on = _lines(kept, _TO_WORKER)
    return RequestHead(len(data), kept, length, odd, passed_on, _keeps_alive(kept), chunked, found[1], found[2])


def read_answer(data: bytes) -> AnswerHead | None:
    """The head at the beginning of ``data``, which holds all of it; None where it is not of the plainest form."""
    size = data.find(END) + len(END)
    return _answer(data[:size]) if size <= _MOST_REMEMBERED else _answer.__wrapped__(data[:size])


@functools.lru_cache(maxsize=256)
def _answer(data: bytes) -> AnswerHead | None:
    found = _STATUS.fullmatch(data)
    fields = None if found is None else _fields(found[3])
    if found is None or fields is None:
        return None
    kept, length, odd = fields
    coding = kept.get(b"transfer-encoding")
    if coding is not None and (coding.lower() != b"chunked" or length is not None):
        return None
    events = kept.get(b"content-type", b"").startswith(_EVENTS)
    passed_on = _lines(kept, _TO_CLIENT) + (_EVENT_LINES if events else "")
    alive, status = found[1] == b"1" and _keeps_alive(kept), int(found[2])
    return AnswerHead(len(data), kept, length, odd, passed_on, alive, coding is not None, status, events)


def _keeps_alive(fields: dict[bytes, bytes]) -> bool:
    return fields.get(b"connection", b"keep-alive").lower() == b"keep-alive"


def _lines(fields: dict[bytes, bytes], wanted: tuple[tuple[bytes, bytes], ...]) -> str:
    lines = b"".join(b"%b: %b\r\n" % (title, fields[name]) for name, title in wanted if name in fields)
    return lines.decode(CODING)


def _fields(lines: bytes) -> tuple[dict[bytes, bytes], int | None, bool] | None:
    """The fields that matter, the body's length, and whether a field is odd; None where one comes twice."""
    kept: dict[bytes, bytes] = {}
    odd = False
    for line in lines.split(b"\r\n"):
        name, _, value = line.partition(b":")
        name = name.lower()
        if name in _KEPT:
            if name in kept:
                return None
            kept[name] = value.strip(b" \t")
        elif name in _ODD or name.startswith(_OURS):
            odd = True
    length = kept.get(b"content-length")
    if length is None:
        return kept, None, odd
    if not length.isdigit() or len(length) > _MOST_DIGITS:
        return None
    return kept, int(length), odd
