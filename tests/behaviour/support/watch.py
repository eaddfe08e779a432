"""The queen's stream of events, read as it comes and kept."""

import contextlib
import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tests.behaviour.support.http import Http, Stream


@dataclass(frozen=True)
class Seen:
    """A worker's row as an event told it; ``at`` is when it came (monotonic seconds)."""

    at: float
    row: dict[str, Any]
    removed: bool

    @property
    def worker(self) -> str:
        return str(self.row["worker_id"])

    @property
    def state(self) -> str:
        return "removed" if self.removed else str(self.row["state"])


class Watch:
    """Listens to /v2/events of a queen from the moment it is made; a context manager."""

    def __init__(self, queen: Http) -> None:
        self.seen: list[Seen] = []
        self._news = threading.Condition()
        self._ended = False
        self._stream: Stream = queen.stream("GET", "/v2/events")
        assert self._stream.status == 200
        self._events = iter(self._stream)
        assert next(self._events).name == "hello"
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            for event in self._events:
                if event.name == "worker":
                    with self._news:
                        self.seen.append(Seen(event.at, event.json["report"], event.json["removed"]))
                        self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def wait(self, fits: Callable[[Seen], bool], what: str, limit_s: float = 30.0) -> Seen:
        """The first event that fits, awaited where it has not come yet."""
        end = time.monotonic() + limit_s
        at = 0
        with self._news:
            while True:
                for seen in self.seen[at:]:
                    at += 1
                    if fits(seen):
                        return seen
                left = end - time.monotonic()
                assert left > 0, f"no event within {limit_s:g} s: {what}; seen: {self.told()}"
                assert not self._ended, f"the stream of events ended before: {what}; seen: {self.told()}"
                self._news.wait(left)

    def wait_state(self, worker: str, state: str, limit_s: float = 30.0) -> Seen:
        """The first event of that worker in that state."""
        return self.wait(lambda seen: (seen.worker, seen.state) == (worker, state), f"{worker} is {state}", limit_s)

    def states(self, worker: str) -> list[str]:
        """The worker's states in order, repetitions left out."""
        found: list[str] = []
        for seen in list(self.seen):
            if seen.worker == worker and (not found or found[-1] != seen.state):
                found.append(seen.state)
        return found

    def told(self) -> list[tuple[str, str, str]]:
        """Everything so far, for a failure's message."""
        return [(seen.worker, seen.state, str(seen.row["reason"])) for seen in list(self.seen)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stream.break_off()
        self._thread.join(5)
        self._stream.__exit__()
