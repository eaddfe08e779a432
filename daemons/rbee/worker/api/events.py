"""Writing events to one reader, who may be slow but not for ever."""

import asyncio

from aiohttp import web

from rbee.wire.errors import InferenceCancelled
from rbee.wire.http.server import SseStream

SLOW_READER_LIMIT_S = 60.0
LAST_WORDS_LIMIT_S = 5.0


class BoundedStream:
    """An SSE stream whose every write has a time limit; what is not read waits in the socket, not in memory.

    ``send`` raises InferenceCancelled when the reader took nothing for ``limit_s`` seconds; its connection is cut, as
    an orderly close would wait for the reader as well.
    """

    def __init__(self, stream: SseStream, limit_s: float = SLOW_READER_LIMIT_S) -> None:
        self._stream = stream
        self._limit_s = limit_s
        self._cut = False

    @classmethod
    async def open(cls, request: web.Request, headers: dict[str, str]) -> "BoundedStream":
        """Send the head of the answer."""
        return cls(await SseStream.open(request, headers))

    @property
    def response(self) -> web.StreamResponse:
        """The answer that the handler returns."""
        return self._stream.response

    async def send(self, event: str | None, data: object) -> None:
        """Write one event and wait until the reader's buffer has room."""
        try:
            async with asyncio.timeout(self._limit_s):
                await self._stream.send(event, data)
        except TimeoutError:
            self._end()
            raise InferenceCancelled(
                f"the reader took nothing for {self._limit_s:g} s, so the request was cancelled"
            ) from None

    async def finish(self, *events: tuple[str | None, object]) -> None:
        """Write the last events and [DONE]; a reader that takes none of it is cut off."""
        if self._cut:
            return
        try:
            async with asyncio.timeout(LAST_WORDS_LIMIT_S):
                for event, data in events:
                    await self._stream.send(event, data)
                await self._stream.done()
        except TimeoutError:
            self._end()

    def _end(self) -> None:
        self._cut = True
        self._stream.abort()
