"""What the event loop has for the batch's thread: rows that come and go. The thread sleeps while there is nothing."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from rbee.worker.engine.batch.row import Row


@dataclass(slots=True)
class News:
    """What came since the last look, in order."""

    submitted: list[Row] = field(default_factory=list)
    cancelled: list[Row] = field(default_factory=list)
    closed: bool = False


_NOTHING = News()


class Mailbox:
    """Bounded by its senders: a row is submitted by a request that holds a slot, and cancelled once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._news = News()

    def submit(self, row: Row) -> bool:
        """A row begins; False where the mailbox is closed."""
        with self._changed:
            if self._news.closed:
                return False
            self._news.submitted.append(row)
            self._changed.notify()
            return True

    def cancel(self, row: Row) -> None:
        """A row is not wanted any more."""
        with self._changed:
            if not self._news.closed:
                self._news.cancelled.append(row)
                self._changed.notify()

    def wake(self) -> None:
        """Look again whether there is work."""
        with self._changed:
            self._changed.notify()

    def close(self) -> list[Row]:
        """Take nothing more in; returns the rows that were submitted and not taken."""
        with self._changed:
            self._news.closed = True
            self._changed.notify()
            return self._news.submitted

    def take(self, has_work: Callable[[], bool]) -> News:
        """What came; where that is nothing and ``has_work`` says no, sleep until something does."""
        if not self._came() and has_work():
            return _NOTHING  # as between most steps: what comes in this moment is taken at the next look
        with self._changed:
            self._changed.wait_for(lambda: self._came() or has_work())
            news, self._news = self._news, News(closed=self._news.closed)
            return news

    def _came(self) -> bool:
        return bool(self._news.submitted or self._news.cancelled or self._news.closed)


def post(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Run ``call`` in the event loop's thread."""
    with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody is there to be told
        loop.call_soon_threadsafe(call)
