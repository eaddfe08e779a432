"""sd_notify (sd_notify(3)): what a service tells systemd of itself."""

import os
import time

import sdnotify

NOTIFY_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_STATUS_INTERVAL_S = 1.0
_MOST_STATUS = 400


class Notifier:
    """Speaks to the service manager that started this process; silent where there is none.

    The variables are taken out of the environment so that no child speaks in our name.
    """

    def __init__(self, notifier: sdnotify.SystemdNotifier | None, watchdog_usec: int) -> None:
        self._notifier = notifier
        self._watchdog_usec = watchdog_usec
        self._last_status = ""
        self._last_status_at = 0.0

    @classmethod
    def from_environment(cls) -> "Notifier":
        """The notifier of this process, its variables removed from the environment."""
        present = "NOTIFY_SOCKET" in os.environ
        notifier = sdnotify.SystemdNotifier() if present else None
        usec = os.environ.get("WATCHDOG_USEC", "0")
        ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        for name in NOTIFY_VARIABLES:
            os.environ.pop(name, None)
        return cls(notifier, int(usec) if ours and usec.isdigit() else 0)

    @property
    def watchdog_interval_s(self) -> float | None:
        """How often WATCHDOG=1 is due: half of what systemd allows, None where it asks for nothing."""
        return self._watchdog_usec / 2e6 if self._watchdog_usec else None

    def ready(self, status: str) -> None:
        """READY=1 with a status line."""
        self._last_status = _ascii(status)
        self._send(f"READY=1\nSTATUS={self._last_status}")

    def status(self, text: str, *, force: bool = False) -> None:
        """STATUS=: at most once a second, and only when it changed, unless ``force``."""
        text = _ascii(text)
        now = time.monotonic()
        if not force and (text == self._last_status or now - self._last_status_at < _STATUS_INTERVAL_S):
            return
        self._last_status, self._last_status_at = text, now
        self._send(f"STATUS={text}", may_drop=True)

    def stopping(self, status: str) -> None:
        """STOPPING=1: the drain begins."""
        self._send(f"STOPPING=1\nSTATUS={_ascii(status)}")

    def reloading(self) -> None:
        """RELOADING=1 with the clock that newer releases of systemd ask for; ends with :meth:`ready`."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def watchdog(self) -> None:
        """WATCHDOG=1: the serving loop is alive."""
        self._send("WATCHDOG=1", may_drop=True)

    def extend_timeout(self, seconds: float) -> None:
        """EXTEND_TIMEOUT_USEC=: starting or stopping makes progress and may take ``seconds`` more from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def close(self) -> None:
        """Close the socket; nothing is said from then on."""
        if self._notifier is not None and self._notifier.socket is not None:
            self._notifier.socket.close()
        self._notifier = None

    def _send(self, message: str, *, may_drop: bool = False) -> None:
        if self._notifier is None:
            return
        if self._notifier.socket is not None:
            # a manager that does not read for a while must not stop the serving loop: the next of the kind goes through
            self._notifier.socket.setblocking(not may_drop)
        self._notifier.notify(message)


def _ascii(text: str) -> str:
    # the library encodes latin-1 and swallows what does not fit: a line that is not ASCII would vanish
    return text.replace("\n", " ").encode("ascii", "replace").decode()[:_MOST_STATUS]


def counted(number: int, noun: str) -> str:
    """``1 worker``, ``2 workers``: for the texts of STATUS=."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
