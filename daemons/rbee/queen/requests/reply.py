"""The answer to one client on its way out: not begun, begun, or ended; a client that reads nothing is let go."""

import time
from typing import Protocol

from aiohttp import web

from rbee.queen.requests.dispatch import Refused, Upstream
from rbee.queen.requests.explain import NO_WORKER, Trail
from rbee.wire.http.middleware import STARTED, STREAM
from rbee.wire.http.openapi import CORRELATED
from rbee.wire.http.server import while_it_reads

_PASSED_ON = ("Content-Type", "Content-Length", "Inference-Header-Content-Length", "X-Request-Id")

TRAIL = web.RequestKey("trail", Trail)
"""Key of a request for a model under which its trail stands."""
CARRIED = CORRELATED | {
    "X-Rbee-Worker": "the worker that answered, or was asked last: HIVE/WORKER, or none",
    "X-Rbee-Queue-Ms": "how long the request waited for a worker until the head of the answer left",
    "X-Rbee-Overhead-Ms": "the queen's own part of the time until then",
}
"""Headers that every answer carries, and what they say."""
WORKER_HEADER, QUEUE_HEADER, OVERHEAD_HEADER = "X-Rbee-Worker", "X-Rbee-Queue-Ms", "X-Rbee-Overhead-Ms"


async def name_times(request: web.Request, response: web.StreamResponse) -> None:
    """on_response_prepare signal: say on every answer which worker gave it, and where its time went (ms)."""
    trail = request.get(TRAIL)
    if trail is not None:
        worker, queue_ms, overhead_ms = trail.headers()
    else:
        worker, queue_ms = NO_WORKER, "0.0"
        overhead_ms = f"{(time.perf_counter() - request.get(STARTED, time.perf_counter())) * 1000:.3f}"
    headers = response.headers
    headers[WORKER_HEADER], headers[QUEUE_HEADER], headers[OVERHEAD_HEADER] = worker, queue_ms, overhead_ms


class Sink(Protocol):
    """Where the events of a request go: a client's connection, or a task's buffer."""

    @property
    def begun(self) -> bool:
        """Whether an error has to be told as an event, because the answer's status is out."""

    async def begin(self, upstream: Upstream | None) -> None:
        """Send the head of the answer: like ``upstream``'s, or that of a stream of events."""

    async def write(self, chunk: bytes) -> None:
        """Send bytes; waits while the other side is slow."""

    async def end(self) -> None:
        """The answer is whole."""

    def abort(self) -> None:
        """The answer cannot be made whole, and no event can say so: break the connection."""


class Reply:
    """A :class:`Sink` that is a client's connection."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self.response: web.StreamResponse | None = None

    @property
    def begun(self) -> bool:
        """Whether the status line is out."""
        return self.response is not None

    async def begin(self, upstream: Upstream | None) -> None:
        """Send the head; see :class:`Sink`."""
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Content-Type": "text/event-stream"}
        status = 200
        if upstream is not None:
            status = upstream.response.status
            came = upstream.response.headers
            headers = {name: came[name] for name in _PASSED_ON if name in came}
            if upstream.is_events:
                headers |= {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(self._request)
        self.response = response
        self._request[STREAM] = response

    async def write(self, chunk: bytes) -> None:
        """Send bytes; raises ConnectionResetError when the client took none for 60 s."""
        await while_it_reads(self._request, self._begun().write(chunk))

    async def end(self) -> None:
        """Close the answer; raises as :meth:`write`."""
        await while_it_reads(self._request, self._begun().write_eof())

    def abort(self) -> None:
        """Break the connection."""
        if self._request.transport is not None:
            self._request.transport.abort()

    def _begun(self) -> web.StreamResponse:
        if self.response is None:
            raise ConnectionResetError("the answer has not begun")
        return self.response


def refused(answer: Refused) -> web.Response:
    """A worker's refusal as the client's answer: status and body unchanged."""
    headers = {"Content-Type": answer.content_type}
    if answer.retry_after is not None:
        headers["Retry-After"] = answer.retry_after
    return web.Response(status=answer.status, body=answer.body, headers=headers)
