"""Server-sent events (WHATWG HTML, section 9.2): one encoder and one incremental decoder."""

from collections.abc import Iterator
from dataclasses import dataclass

from rbee.wire.errors import ProtocolError

CONTENT_TYPE = "text/event-stream"
DONE = b"data: [DONE]\n\n"
DONE_DATA = b"[DONE]"
_MOST_BUFFERED = 1 << 20


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One event: its type (``message`` where none was named), its data, and its id if any."""

    event: str
    data: bytes
    id: str | None = None


def encode(event: str | None, data: bytes, event_id: str | None = None) -> bytes:
    """One event as bytes; data of several lines becomes several data fields."""
    head = b"" if event is None else b"event: " + event.encode() + b"\n"
    if event_id is not None:
        head += b"id: " + event_id.encode() + b"\n"
    body = b"".join(b"data: " + line + b"\n" for line in data.split(b"\n"))
    return head + body + b"\n"


def comment(text: str) -> bytes:
    """A comment line: keeps a connection open, means nothing."""
    return b": " + text.encode() + b"\n\n"


class SseDecoder:
    """Turns chunks as they come into whole events.

    Raises ProtocolError when one event exceeds 1 MiB, or its name or id is not UTF-8.
    """

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[SseEvent]:
        """Yield the events that ``chunk`` completes."""
        # the join comes first: a line's end may itself be cut in two
        *blocks, self._rest = (self._rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        if len(self._rest) > _MOST_BUFFERED:
            raise ProtocolError("an event of the stream is over 1 MiB")
        for block in blocks:
            event = _parse(block)
            if event is not None:
                yield event


def _parse(block: bytes) -> SseEvent | None:
    name, data, event_id = "message", [], None
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = _text(value)
        elif field == b"id":
            event_id = _text(value)
    return SseEvent(name, b"\n".join(data), event_id) if data else None


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ProtocolError("an event's name or id is not UTF-8") from None
