"""What systemd hears while the model loads."""

import time

from rbee.host.notify import Notifier
from rbee.wire.messages import Progress
from rbee.worker.progress import describe

EXTEND_INTERVAL_S = 1.0
EXTEND_MARGIN_S = 10.0


class LoadingNotice:
    """Tells systemd how loading goes: STATUS=, and more time for as long as there is progress."""

    def __init__(self, notifier: Notifier, stall_s: float) -> None:
        self._notifier = notifier
        self._stall_s = stall_s
        self._extended_at = float("-inf")

    def __call__(self, stage: Progress) -> None:
        self._notifier.status(f"loading: {describe(stage)}")
        now = time.monotonic()
        if now - self._extended_at >= EXTEND_INTERVAL_S:
            self._extended_at = now
            # the worker itself ends a stall first, with its reason; systemd's limit stands behind it
            self._notifier.extend_timeout(self._stall_s + EXTEND_MARGIN_S)
