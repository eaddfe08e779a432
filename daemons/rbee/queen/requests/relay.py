"""Bytes of a worker's answer on their way to a client: whole events only, a stall limit, and a sure end."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import aiohttp

from rbee.wire.deadline import Deadline
from rbee.wire.errors import ProtocolError, RbeeError, WorkerFailed
from rbee.wire.sse import DONE

_MOST_EVENT_BYTES = 8 << 20
WHOLE_BYTES = 1 << 20
"""A body that is no stream of events, and no longer than this, is passed on in one piece."""
_BOUNDARY = b"\n\n"
DEADLINE_GRACE_S = 0.25
"""At a deadline the worker ends the request itself and says so; the queen does where no word comes for this long."""
_LOST = "connection lost"


class WholeEvents:
    """Lets whole server-sent events through and keeps the part of one back, so that a break never cuts an event."""

    def __init__(self) -> None:
        self._rest = b""
        self.ended = False
        """Whether ``[DONE]`` was among them."""

    def feed(self, chunk: bytes) -> bytes:
        """The whole events that ``chunk`` completes; raises ProtocolError for one over 8 MiB."""
        out = self._whole(chunk)
        self.ended = self.ended or DONE in out
        return out

    def _whole(self, chunk: bytes) -> bytes:
        if not self._rest and chunk.endswith(_BOUNDARY):
            return chunk
        data = self._rest + chunk
        cut = data.rfind(_BOUNDARY)
        cut = 0 if cut < 0 else cut + len(_BOUNDARY)
        self._rest = data[cut:]
        if len(self._rest) > _MOST_EVENT_BYTES:
            raise ProtocolError("an event of the worker is over 8 MiB")
        return data[:cut]


class Patience:
    """The time limit of each step of a relay: a stall limit that starts anew, and the request's deadline."""

    def __init__(self, stall_s: float, deadline: Deadline | None) -> None:
        self.stall_s = stall_s
        self.deadline = deadline

    def step_s(self) -> float:
        """Seconds that the next step may take."""
        if self.deadline is None:
            return self.stall_s
        return min(self.stall_s, self.deadline.remaining(time.time()) + DEADLINE_GRACE_S)

    def error(self, worker: str) -> RbeeError:
        """Which of the two it was that passed."""
        if self.deadline is not None and self.deadline.remaining(time.time()) <= 0.0:
            return self.deadline.passed_error()
        return stalled(worker, self.stall_s)


async def chunks(
    first: bytes, response: aiohttp.ClientResponse, patience: Patience, worker: str
) -> AsyncGenerator[bytes, None]:
    """The body as it comes, ``first`` (read before) ahead.

    Raises what ``patience`` says when the worker stalls or the deadline passes, WorkerFailed when it breaks.
    """
    loop = asyncio.get_running_loop()
    if first:
        yield first
    try:
        async with asyncio.timeout(patience.step_s()) as limit:
            async for chunk in response.content.iter_any():
                limit.reschedule(None)  # the client's own pace is no stall of the worker
                yield chunk
                limit.reschedule(loop.time() + patience.step_s())
    except TimeoutError:
        raise patience.error(worker) from None
    except aiohttp.ClientError as error:
        raise broken(worker) from error


async def whole(
    first: bytes, response: aiohttp.ClientResponse, patience: Patience, worker: str
) -> AsyncGenerator[bytes, None]:
    """A small body in one piece: until it is whole the client has none of it, and another worker can answer."""
    async with aclosing(chunks(first, response, patience, worker)) as body:
        yield b"".join([chunk async for chunk in body])


async def events(
    first: bytes, response: aiohttp.ClientResponse, patience: Patience, worker: str
) -> AsyncGenerator[bytes, None]:
    """The body as whole server-sent events, up to and with ``[DONE]``; raises as :func:`chunks`.

    A body that ends without ``[DONE]`` is broken as well.
    """
    whole = WholeEvents()
    async with aclosing(chunks(first, response, patience, worker)) as body:
        async for chunk in body:
            out = whole.feed(chunk)
            if out:
                yield out
    if not whole.ended:
        raise broken(worker)


def stalled(worker: str, stall_s: float) -> WorkerFailed:
    """The error of a request whose worker fell silent."""
    return WorkerFailed(
        f"the worker sent nothing for {stall_s:g} s: the request was cancelled; ask again",
        details={"worker": worker, "reason": "stalled"},
        retry_after_s=1,
    )


def broken(worker: str) -> WorkerFailed:
    """The error of a request whose worker went away after it had begun to answer."""
    return WorkerFailed(
        "the worker went away while it answered: what came so far is all there is; ask again",
        details={"worker": worker, "reason": _LOST},
        retry_after_s=1,
    )


def is_broken(error: RbeeError) -> bool:
    """Whether the error is one of :func:`broken`: the worker went away, as opposed to fell silent."""
    return error.details.get("reason") == _LOST
