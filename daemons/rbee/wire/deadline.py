"""Deadlines: computed once at the edge, forwarded unchanged, never extended."""

import datetime
import math
from dataclasses import dataclass

from rbee.wire.errors import InvalidRequest, RequestTimeout

DEADLINE_HEADER = "X-Request-Deadline"


@dataclass(frozen=True, slots=True)
class Deadline:
    """A point in time after which nobody waits for the answer; ``raw`` is what goes on in the header."""

    at_unix: float
    raw: str

    def remaining(self, now: float) -> float:
        """Seconds left at ``now`` (seconds since the epoch), 0 when it has passed."""
        return max(0.0, self.at_unix - now)

    def passed_error(self) -> RequestTimeout:
        """The error of a request whose deadline passed."""
        return RequestTimeout(
            "the deadline of the request passed before it could be answered: allow more time, or ask for less",
            details={"deadline": self.raw},
        )


def after(seconds: float, now: float) -> Deadline:
    """The deadline ``seconds`` after ``now``, written as epoch milliseconds."""
    at = now + seconds
    return Deadline(at, str(math.floor(at * 1000)))


def parse_deadline(header: str) -> Deadline:
    """Read ``X-Request-Deadline``: ISO-8601 with an offset, or epoch milliseconds; raises InvalidRequest."""
    text = header.strip()
    if not text.isascii():  # it goes on as a header: the parser below lets any character stand before the time
        raise _unreadable()
    if text.isdigit() and len(text) <= 16:
        return Deadline(int(text) / 1000, text)
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise _unreadable() from None
    if moment.tzinfo is None:
        raise _unreadable()
    return Deadline(moment.timestamp(), text)


def _unreadable() -> InvalidRequest:
    return InvalidRequest(
        f"{DEADLINE_HEADER} is neither ISO-8601 with an offset nor epoch milliseconds",
        details={"header": DEADLINE_HEADER},
    )
