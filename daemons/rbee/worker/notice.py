"""What systemd hears while the model loads."""

import asyncio
import time

from rbee.host.notify import Notifier
from rbee.wire.messages import Progress
from rbee.worker.progress import describe

EXTEND_INTERVAL_S = 1.0
EXTEND_MARGIN_S = 10.0
STATUS_INTERVAL_S = 1.0


class LoadingNotice:
    """Tells systemd how loading goes: STATUS=, and more time for as long as there is progress.

    The line is sent at most once a second, the latest one never withheld for longer: a stage that lasts is shown.
    """

    def __init__(self, notifier: Notifier, stall_s: float) -> None:
        self._notifier = notifier
        self._stall_s = stall_s
        self._extended_at = float("-inf")
        self._line = ""
        self._told = ""
        self._next: asyncio.TimerHandle | None = None

    def __call__(self, stage: Progress) -> None:
        self._line = f"loading: {describe(stage)}"
        if self._next is None:
            self._tell()
        now = time.monotonic()
        if now - self._extended_at >= EXTEND_INTERVAL_S:
            self._extended_at = now
            # the worker itself ends a stall first, with its reason; systemd's limit stands behind it
            self._notifier.extend_timeout(self._stall_s + EXTEND_MARGIN_S)

    def end(self) -> None:
        """Loading is over: the line is somebody else's from here on."""
        if self._next is not None:
            self._next.cancel()

    def _tell(self) -> None:
        self._next = None
        if self._line != self._told:
            self._told = self._line
            self._notifier.status(self._line, force=True)
            self._next = asyncio.get_running_loop().call_later(STATUS_INTERVAL_S, self._tell)
