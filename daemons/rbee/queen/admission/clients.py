"""What each client may do: requests a minute and at once, its priority and its share, by its token's name."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rbee.queen.admission.fair import Priority
from rbee.queen.config import ClientLimits
from rbee.wire.errors import TooManyRequests

EVERYBODY = "*"
MOST_REMEMBERED = 4096
_NO_LIMITS = ClientLimits()


@dataclass(slots=True)
class Bucket:
    """A token bucket: ``rate`` a second flow in, at most ``size`` are held. Times are monotonic seconds."""

    rate: float
    size: float
    level: float
    at: float

    def take(self, now: float) -> float:
        """Take one; returns 0, or the seconds until there is one."""
        self.level = min(self.size, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level >= 1.0:
            self.level -= 1.0
            return 0.0
        return (1.0 - self.level) / self.rate


@dataclass(slots=True)
class _Client:
    running: int = 0
    bucket: Bucket | None = None


class Clients:
    """The clients that have requests here, or had some lately, against the limits of the configuration."""

    def __init__(self, limits: Mapping[str, ClientLimits]) -> None:
        self._limits = dict(limits)
        self._clients: dict[str, _Client] = {}

    def configure(self, limits: Mapping[str, ClientLimits]) -> None:
        """Put other limits in force; what runs goes on."""
        self._limits = dict(limits)
        for client in self._clients.values():
            client.bucket = None

    def limits(self, name: str) -> ClientLimits:
        """The limits of a client: its own, else those of everybody, else none."""
        return self._limits.get(name) or self._limits.get(EVERYBODY) or _NO_LIMITS

    def priority(self, name: str, asked: Priority) -> Priority:
        """The priority of a request: what it asks for, as far as its client may."""
        return Priority.BATCH if self.limits(name).priority == Priority.BATCH.value else asked

    def enter(self, name: str, now: float, *, again: bool = False) -> None:
        """Count a request that comes; raises TooManyRequests. ``again``: it was counted before and is placed anew."""
        client = self._clients.get(name)
        if client is None:
            client = self._remember(name)
        if self._limits and not again:
            self._check(name, client, now)
        client.running += 1

    def leave(self, name: str) -> None:
        """Count a request that ended."""
        client = self._clients[name]
        client.running -= 1
        if not client.running and client.bucket is None:
            del self._clients[name]

    def _check(self, name: str, client: _Client, now: float) -> None:
        limits = self.limits(name)
        if limits.concurrent is not None and client.running >= limits.concurrent:
            raise TooManyRequests(
                f"this token may have {limits.concurrent} requests at once: wait for one of them to end",
                details={"limit": "concurrent", "allowed": limits.concurrent},
                retry_after_s=1,
            )
        if limits.requests_per_minute is None:
            return
        if client.bucket is None:
            size = float(limits.burst or max(1, math.ceil(limits.requests_per_minute / 60)))
            client.bucket = Bucket(limits.requests_per_minute / 60, size, size, now)
        wait_s = client.bucket.take(now)
        if wait_s:
            raise TooManyRequests(
                f"this token may send {limits.requests_per_minute:g} requests a minute: come back later",
                details={"limit": "requests_per_minute", "allowed": limits.requests_per_minute},
                retry_after_s=math.ceil(wait_s),
            )

    def _remember(self, name: str) -> _Client:
        if len(self._clients) >= MOST_REMEMBERED:
            idle = [known for known, client in self._clients.items() if not client.running]
            for known in idle[: len(idle) // 2 + 1]:
                del self._clients[known]
        client = self._clients[name] = _Client()
        return client
