"""How many requests that are not acceptable one caller may send: whoever sends more is told to slow down."""

from collections import OrderedDict

from rbee.wire.errors import TooManyRequests

MOST_CALLERS = 4096
"""Callers that are remembered; past that, whoever sent nothing bad for the longest time is forgotten."""
RETRY_AFTER_S = 1.0


class InvalidPace:
    """``most`` such requests a second for each caller, and as many at once; acceptable ones do not count."""

    def __init__(self, most: float) -> None:
        self.most = most
        self._callers: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def refusal(self, caller: str, now: float) -> TooManyRequests | None:
        """Count one of ``caller`` (a fingerprint, a user id, an address) at ``now`` in seconds.

        Returns what to answer in place of why it is not acceptable, None within the pace.
        """
        left, then = self._callers.pop(caller, (self.most, now))
        left = min(self.most, left + (now - then) * self.most)
        allowed = left >= 1
        self._callers[caller] = (left - 1 if allowed else left, now)
        if len(self._callers) > MOST_CALLERS:
            self._callers.popitem(last=False)
        if allowed:
            return None
        return TooManyRequests(
            f"more than {self.most:g} requests a second were not acceptable: mend what sends them, then come back",
            details={"reason": "too_many_invalid", "most_per_second": self.most},
            retry_after_s=RETRY_AFTER_S,
        )
