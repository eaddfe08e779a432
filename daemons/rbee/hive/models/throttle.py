"""Holds all downloads of this machine to one bandwidth."""

import asyncio
from collections.abc import Callable

BITS = 8
MEGA = 1_000_000
_BURST_S = 0.25


class Throttle:
    """A token bucket of bytes; ``limit_mbps`` is in megabits per second, None lets everything through.

    ``clock`` gives seconds. What exceeds the bucket is owed, and who took it waits until it is paid back.
    """

    def __init__(self, limit_mbps: float | None, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._at = clock()
        self._level = 0.0
        self.limit_mbps = limit_mbps

    def wait_of(self, size: int) -> float:
        """Take ``size`` bytes and return the seconds to wait before taking more."""
        if self.limit_mbps is None:
            return 0.0
        rate = self.limit_mbps * MEGA / BITS
        now = self._clock()
        self._level = min(rate * _BURST_S, self._level + (now - self._at) * rate) - size
        self._at = now
        return max(0.0, -self._level / rate)

    async def take(self, size: int) -> None:
        """Take ``size`` bytes, and wait as long as the limit asks for."""
        wait = self.wait_of(size)
        if wait > 0.0:
            await asyncio.sleep(wait)
