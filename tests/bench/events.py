"""The queen's events as a client hears them, kept with both clocks' stamps."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tests.behaviour.support.http import Http
from tests.machines.testbed import Machine

READY = ("idle", "busy")


@dataclass(frozen=True, slots=True)
class Seen:
    """One change of a worker: the queen's CLOCK_MONOTONIC when her row had it, and the client's when it heard (us)."""

    worker: str
    state: str
    invocation_id: str
    stored_us: int
    heard_us: int


class EventFeed:
    """Listens to GET /v2/events for the length of a block."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._socket: socket.socket | None = None
        self._seen: list[Seen] = []
        self._news = threading.Condition()
        self._ended = ""
        self._open = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="events", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._open.wait(10), "the queen did not open /v2/events within 10 s"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)

    def _connect(self, limit_s: float) -> socket.socket:
        self._socket = self._machine.connect("/run/rbee/queen.sock", limit_s)
        return self._socket

    def _listen(self) -> None:
        try:
            with Http(self._connect, timeout_s=60).stream("GET", "/v2/events") as stream:
                assert stream.status == 200, f"/v2/events answered {stream.status}: {stream.read()!r}"
                self._open.set()
                for event in stream:
                    if event.name == "worker":
                        self._take(event.data, event.at)
                    assert event.name != "dropped", "the bench did not keep up with the queen's events"
            self._end("the queen ended the stream")
        except (AssertionError, OSError, http.client.HTTPException) as error:
            self._end(str(error))

    def _take(self, data: bytes, heard: float) -> None:
        event = json.loads(data)
        report = event["report"]
        seen = Seen(
            report["worker_id"], report["state"], report["invocation_id"], event["monotonic_us"], int(heard * 1e6)
        )
        with self._news:
            self._seen.append(seen)
            self._news.notify_all()

    def _end(self, why: str) -> None:
        with self._news:
            self._ended = why
            self._news.notify_all()

    def now(self) -> int:
        """A place in the feed: what comes later has a higher one."""
        with self._news:
            return len(self._seen)

    def wait(self, after: int, wanted: Callable[[Seen], bool], what: str, limit_s: float = 60.0) -> Seen:
        """The first change after a place that is as wanted; fails after ``limit_s``."""
        end = time.monotonic() + limit_s
        with self._news:
            while True:
                for seen in self._seen[after:]:
                    if wanted(seen):
                        return seen
                after = len(self._seen)
                assert not self._ended, f"no more events while waiting for {what}: {self._ended}"
                assert self._news.wait(end - time.monotonic()), f"no event within {limit_s:g} s: {what}"
