"""Waits for a hive's report on the queen's events."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from rbee.host.notify import counted
from rbee.keeper import session
from rbee.keeper.client import Daemon
from rbee.keeper.lifecycle import EVENTS, heard
from rbee.keeper.nodes.failures import StepFailed
from rbee.keeper.render import say
from rbee.wire.nodes import Node, NodeStatus

T = TypeVar("T")
_HEAD_LIMIT_S = 10.0
_LOOK_AGAIN_S = 2.0
"""A heartbeat of a hive that is known makes no event: it is looked for at this pace."""


@dataclass(frozen=True, slots=True)
class Since:
    """A moment (CLOCK_MONOTONIC, seconds)."""

    at: float

    @classmethod
    def now(cls) -> "Since":
        """This moment."""
        return cls(time.monotonic())


class _Health(msgspec.Struct, frozen=True):
    """What waiting needs of the queen's GET /health."""

    hives: int
    starting: int = 0


def await_report(name: str, since: Since, limit_s: float, *, restarted: bool) -> Node:
    """The node once its hive reports, after ``since`` where it was ``restarted``; raises StepFailed."""

    async def look(queen: Daemon) -> Node | None:
        node = await queen.call("GET", f"/v2/registry/beehives/{name}", Node)
        return node if node.status is NodeStatus.ONLINE and (not restarted or _after(node, since)) else None

    return session.run(
        _await(
            look,
            limit_s,
            f"the hive of {name} did not report within {limit_s:g} s: 'rbee node logs {name}' says why, and that "
            "the node reaches the queen's address",
        )
    )


def hives() -> int:
    """How many hives the queen has heard of."""

    async def ask() -> int:
        async with session.queen() as queen:
            return await _hives(queen)

    return session.run(ask())


def await_hives(count: int, limit_s: float) -> None:
    """Wait until the queen has heard of so many hives; raises StepFailed."""

    async def look(queen: Daemon) -> bool | None:
        return await _hives(queen) >= count or None

    session.run(
        _await(
            look,
            limit_s,
            f"this machine's hive did not report to the queen within {limit_s:g} s: see 'systemctl status rbee-hive', "
            "and queen.callback_url in /etc/rbee/hive.yaml",
        )
    )


def await_starts(limit_s: float) -> None:
    """Wait until each start of a worker that the queen began is told of by a hive, or came to nothing; say so once.

    Raises StepFailed.
    """
    told = False

    async def look(queen: Daemon) -> bool | None:
        nonlocal told
        starting = (await queen.call("GET", "/health", _Health)).starting
        if starting and not told:
            told = True
            say(f"waiting, for {limit_s:g} s at most: the queen has begun to start {counted(starting, 'worker')}")
        return starting == 0 or None

    session.run(
        _await(look, limit_s, f"the queen has starts of workers under way for {limit_s:g} s: see 'rbee worker list'")
    )


async def _hives(queen: Daemon) -> int:
    return (await queen.call("GET", "/health", _Health)).hives


async def _await(look: Callable[[Daemon], Awaitable[T | None]], limit_s: float, in_vain: str) -> T:
    """What ``look`` finds, looked for at each of the queen's events; raises StepFailed that says ``in_vain``."""
    async with session.queen() as queen:
        try:
            async with asyncio.timeout(limit_s), queen.stream("GET", EVENTS, head_limit_s=_HEAD_LIMIT_S) as response:
                news = asyncio.Event()
                ringing = asyncio.create_task(_ring(heard(response), news), name="the queen's events")
                try:
                    while (found := await look(queen)) is None:
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(_LOOK_AGAIN_S):
                                await news.wait()
                        news.clear()
                    return found
                finally:
                    ringing.cancel()
                    await asyncio.gather(ringing, return_exceptions=True)  # why the events ended is not what is asked
        except TimeoutError:
            raise StepFailed(in_vain) from None


async def _ring(events: AsyncIterator[None], news: asyncio.Event) -> None:
    """Set ``news`` at each event; where they end, what remains is the slow look."""
    async for _ in events:
        news.set()


def _after(node: Node, since: Since) -> bool:
    return node.silent_s is not None and time.monotonic() - node.silent_s > since.at
