"""Everything that changes in the queen, to everyone who listens: bounded queues, and a slow listener is let go."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from rbee.wire.sse import encode

QUEUE_LIMIT = 1024
MOST_LISTENERS = 64


class TooSlow(msgspec.Struct, frozen=True):
    """The last event that a listener gets who did not keep up."""

    reason: str = "this listener did not keep up: connect again and read /v2/workers/list for the whole picture"


class Listener:
    """One subscription: encoded events in order, ended by the hub when it falls behind."""

    def __init__(self, limit: int) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(limit)
        self.dropped = False

    def offer(self, event: bytes) -> bool:
        """Queue an event; False when the listener fell behind and is ended with a ``dropped`` event."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            self._end_as_dropped()
            return False
        return True

    def end(self) -> None:
        """Let the listener go: its next event is the last."""
        if self._queue.full():
            self._queue.get_nowait()
        self._queue.put_nowait(None)

    def _end_as_dropped(self) -> None:
        self.dropped = True
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(encode("dropped", msgspec.json.encode(TooSlow())))
        self._queue.put_nowait(None)

    async def next(self) -> bytes | None:
        """The next event as SSE bytes, or None after the last one."""
        return await self._queue.get()


class EventHub:
    """Hands each event to every listener; costs nothing while nobody listens."""

    def __init__(self, limit: int = QUEUE_LIMIT) -> None:
        self._limit = max(2, limit)  # room for the dropped event and the end
        self._listeners: set[Listener] = set()

    @property
    def listened(self) -> bool:
        """Whether anybody listens: what an event says need not be gathered when not."""
        return bool(self._listeners)

    @property
    def full(self) -> bool:
        """Whether no further listener is taken."""
        return len(self._listeners) >= MOST_LISTENERS

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """Subscribe for the length of the block."""
        listener = Listener(self._limit)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)

    def publish(self, event: str, data: object) -> None:
        """Send an event to all; the call never waits."""
        if not self._listeners:
            return
        encoded = encode(event, msgspec.json.encode(data))
        for listener in [one for one in self._listeners if not one.offer(encoded)]:
            self._listeners.discard(listener)

    def close(self) -> None:
        """Let every listener go."""
        for listener in self._listeners:
            listener.end()
        self._listeners.clear()
