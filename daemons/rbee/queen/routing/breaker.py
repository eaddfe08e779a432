"""A circuit breaker for each worker: closed, open after failures, half open for one real request that tries it.

It judges HTTP alone. What the unit of a worker says comes by its hive, and wins: a new life closes the breaker.
"""

import enum
from dataclasses import dataclass

FAILURES = 5
"""Bad answers in a row that open it; a connection that fails, breaks or stalls opens it at once."""
FIRST_OPEN_S = 5.0
MOST_OPEN_S = 60.0


class BreakerState(enum.StrEnum):
    """Whether a worker gets requests: all of them, none, or one at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True)
class Breaker:
    """One worker's breaker; times are monotonic seconds."""

    state: BreakerState = BreakerState.CLOSED
    until: float = 0.0
    _failures: int = 0
    _open_s: float = FIRST_OPEN_S

    def bad_answer(self, now: float) -> bool:
        """The worker answered with an error of its own; True when that opened the breaker."""
        self._failures += 1
        if self._failures < FAILURES and self.state is not BreakerState.HALF_OPEN:
            return False
        return self.trip(now)

    def trip(self, now: float) -> bool:
        """The worker could not be reached, or broke off; True when that opened the breaker.

        A trial that fails doubles the time until the next one, up to a minute.
        """
        if self.state is BreakerState.OPEN:
            return False
        if self.state is BreakerState.HALF_OPEN:
            self._open_s = min(MOST_OPEN_S, 2 * self._open_s)
        self.state, self.until = BreakerState.OPEN, now + self._open_s
        return True

    def good_answer(self) -> bool:
        """The worker answered; True when that closed the breaker."""
        self._failures = 0
        if self.state is BreakerState.CLOSED:
            return False
        self.close()
        return True

    def half_open(self) -> bool:
        """Let one request try the worker; True when the breaker was open."""
        if self.state is not BreakerState.OPEN:
            return False
        self.state = BreakerState.HALF_OPEN
        return True

    def reassured(self) -> bool:
        """The worker's hive says again that it is well; True when a request may try it: not after a trial failed."""
        return self._open_s == FIRST_OPEN_S and self.half_open()

    def cooled(self, now: float) -> bool:
        """Whether an open breaker has been open for long enough."""
        return self.state is BreakerState.OPEN and now >= self.until

    def close(self) -> None:
        """Forget every failure."""
        self.state, self.until = BreakerState.CLOSED, 0.0
        self._failures, self._open_s = 0, FIRST_OPEN_S
