"""Who was let in and who was refused, as entries of an audit log; a flood of refusals is counted, not written out."""

import asyncio
import time
from collections import Counter

from rbee.host.audit.entries import SYSTEM, EventType
from rbee.host.audit.log import AuditLog
from rbee.wire.auth import Identity

BURST = 50
"""Refusals that are written one by one before the pace holds."""
ONE_EVERY_S = 10.0
SUMMARY_S = 60.0
NOBODY = "anonymous"
"""The actor of a request without a token."""


class AuditedCallers:
    """What the authentication of a server tells: implements wire.http.middleware.CallerWatch.

    Refusals beyond 50, and then one in ten seconds, are summed up once a minute by their reason: whoever floods a
    daemon writes 4 MB a day, and cannot drive older entries out.
    """

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit
        self._allowed = float(BURST)
        self._at = time.monotonic()
        self._held_back: Counter[str] = Counter()
        self._summary: asyncio.TimerHandle | None = None

    def let_in(self, identity: Identity, correlation_id: str | None = None) -> None:
        """A caller showed who it is."""
        if self._audit.everything:
            self._audit.record(
                EventType.AUTH_SUCCESS, identity.name, fingerprint=identity.name, role=identity.role.value,
                client=identity.client or None, correlation_id=correlation_id,
            )  # fmt: skip

    def refused(self, reason: str, who: str | None, route: str, peer: str | None) -> None:
        """A caller was refused: ``who`` is a fingerprint or ``uid:N``, None where it showed nothing."""
        if self._paced(time.monotonic()):
            self._audit.record(
                EventType.AUTH_FAILURE, who or NOBODY, fingerprint=who, reason=reason, route=route, peer=peer
            )
            return
        self._held_back[reason] += 1
        if self._summary is None:
            self._summary = asyncio.get_running_loop().call_later(SUMMARY_S, self.sum_up)

    def sum_up(self) -> None:
        """Write how many refusals were not written one by one."""
        if self._summary is not None:
            self._summary.cancel()
            self._summary = None
        for reason, requests in self._held_back.items():
            self._audit.record(EventType.AUTH_FAILURE, SYSTEM, reason=reason, requests=requests)
        self._held_back.clear()

    def _paced(self, now: float) -> bool:
        self._allowed = min(float(BURST), self._allowed + (now - self._at) / ONE_EVERY_S)
        self._at = now
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True
