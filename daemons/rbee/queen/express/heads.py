"""Heads of HTTP/1.1 messages, read strictly (RFC 9112): what is not of the plainest form is not read here at all."""

import re
from dataclasses import dataclass

MOST_HEAD = 16 << 10
"""Bytes of a head."""
END = b"\r\n\r\n"
_FIELD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ \t]*[^\x00-\x08\x0a-\x1f\x7f]*\r\n"
_REQUEST = re.compile(rb"([A-Z]+) (/[!-~]*) HTTP/1\.1\r\n((?:" + _FIELD + rb")*)\r\n")
_STATUS = re.compile(rb"HTTP/1\.1 ([1-5][0-9][0-9])(?: [\t -~\x80-\xff]*)?\r\n((?:" + _FIELD + rb")*)\r\n")
_KEPT = frozenset(
    {
        b"authorization", b"accept", b"content-type", b"content-length", b"connection", b"x-correlation-id",
        b"x-request-id", b"retry-after", b"inference-header-content-length", b"transfer-encoding",
    }
)  # fmt: skip
_ODD = frozenset({b"expect", b"upgrade", b"content-encoding", b"trailer", b"x-request-deadline", b"prefer", b"origin"})
_OURS = b"x-rbee-"
_MOST_DIGITS = 12


@dataclass(slots=True)
class Head:
    """The head of a message: ``size`` in bytes, the fields that matter by lower-case name, and whether any is odd.

    ``length`` is that of the body, None where the head does not give it; ``odd`` is a request that wants more than to
    be passed on (a deadline, a preference, a body that is coded).
    """

    size: int
    fields: dict[bytes, bytes]
    length: int | None
    odd: bool

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection stays open after the message."""
        return self.fields.get(b"connection", b"keep-alive").lower() == b"keep-alive"

    @property
    def chunked(self) -> bool:
        """Whether the body comes in chunks."""
        return b"transfer-encoding" in self.fields


@dataclass(slots=True)
class RequestHead(Head):
    """The head of a request."""

    method: bytes
    target: bytes


@dataclass(slots=True)
class AnswerHead(Head):
    """The head of an answer."""

    status: int


def read_request(data: bytes) -> RequestHead | None:
    """The head at the beginning of ``data``; None where it is not whole, or not of the plainest form."""
    found = _REQUEST.match(data)
    if found is None:
        return None
    fields = _fields(found[3])
    if fields is None:
        return None
    kept, length, odd = fields
    if b"transfer-encoding" in kept and length is not None:
        return None
    return RequestHead(found.end(), kept, length, odd, found[1], found[2])


def read_answer(data: bytes) -> AnswerHead | None:
    """The head at the beginning of ``data`` that ends in it; None where it is not of the plainest form."""
    found = _STATUS.match(data)
    if found is None:
        return None
    fields = _fields(found[2])
    if fields is None:
        return None
    kept, length, odd = fields
    coding = kept.get(b"transfer-encoding")
    if coding is not None and (coding.lower() != b"chunked" or length is not None):
        return None
    return AnswerHead(found.end(), kept, length, odd, int(found[1]))


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
