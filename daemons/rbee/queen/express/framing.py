"""Where the body of an answer ends (RFC 9112, section 6): by its length, by chunks, or by the end of the connection."""

from typing import Protocol

from rbee.queen.express.heads import AnswerHead

_MOST_SIZE_LINE = 1024
_MOST_TRAILER = 16 << 10
_NO_BODY = (204, 304)


class BadFraming(ValueError):
    """The bytes are not what the head announced."""


class Body(Protocol):
    """Takes the bytes after a head as they come."""

    done: bool
    """Whether the body is whole."""

    def feed(self, data: bytes) -> bytes:
        """What ``data`` holds of the body; raises BadFraming, also for bytes after its end."""

    def eof(self) -> bool:
        """The connection ended: whether the body is whole now."""


class Sized:
    """A body of a known length."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> bytes:
        """See :class:`Body`."""
        self._left -= len(data)
        if self._left < 0:
            raise BadFraming
        self.done = self._left == 0
        return data

    def eof(self) -> bool:
        """See :class:`Body`."""
        return self.done


class UntilEnd:
    """A body that lasts as long as its connection."""

    done = False

    def feed(self, data: bytes) -> bytes:
        """See :class:`Body`."""
        return data

    def eof(self) -> bool:
        """See :class:`Body`."""
        self.done = True
        return True


class Chunked:
    """A body in chunks; their extensions and the trailer are let go."""

    def __init__(self) -> None:
        self.done = False
        self._rest = b""
        self._left = 0  # bytes of the chunk under way
        self._line_end = False  # whether the line end behind a chunk is still to come
        self._trailer = False

    def feed(self, data: bytes) -> bytes:
        """See :class:`Body`."""
        data = self._rest + data if self._rest else data
        out: list[bytes] = []
        at = 0
        while not self._trailer and at < len(data):
            if self._left:
                piece = data[at : at + self._left]
                out.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._line_end = self._left == 0
                continue
            step = self._next_chunk(data, at)
            if step == at:
                break
            at = step
        self._rest = data[at:]
        if self._trailer:
            self._end()
        return out[0] if len(out) == 1 else b"".join(out)

    def _next_chunk(self, data: bytes, at: int) -> int:
        """Read the lines between two chunks; returns where the next one begins, ``at`` where they are not whole."""
        start = at
        if self._line_end:
            if len(data) - at < 2:
                return at
            if data[at : at + 2] != b"\r\n":
                raise BadFraming
            start += 2
        end = data.find(b"\r\n", start, start + _MOST_SIZE_LINE)
        if end < 0:
            if len(data) - start >= _MOST_SIZE_LINE:
                raise BadFraming
            return at
        self._left = _size(data[start:end])
        self._line_end = False
        self._trailer = self._left == 0
        return end + 2

    def _end(self) -> None:
        """The last chunk came: the body is whole once the empty line behind the trailer is here."""
        if self._rest.startswith(b"\r\n"):
            size = 2
        else:
            found = self._rest.find(b"\r\n\r\n")
            if found < 0:
                if len(self._rest) > _MOST_TRAILER:
                    raise BadFraming
                return
            size = found + 4
        if len(self._rest) > size:
            raise BadFraming
        self.done = True

    def eof(self) -> bool:
        """See :class:`Body`."""
        return self.done


def _size(line: bytes) -> int:
    digits = line.partition(b";")[0].strip(b" \t")
    if not digits or len(digits) > 8 or digits.strip(b"0123456789abcdefABCDEF"):
        raise BadFraming
    return int(digits, 16)


def bodiless(head: AnswerHead) -> bool:
    """Whether an answer of that status has no body, whatever its head says."""
    return head.status in _NO_BODY


def body_of(head: AnswerHead) -> Body:
    """The framing that a head announces."""
    if bodiless(head):
        return Sized(0)
    if head.chunked:
        return Chunked()
    return UntilEnd() if head.length is None else Sized(head.length)


def chunk(payload: bytes) -> bytes:
    """``payload`` as one chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


LAST_CHUNK = b"0\r\n\r\n"
