"""Waits for a hive's report on the queen's events."""

import asyncio
import contextlib
import time
from dataclasses import dataclass

from rbee.keeper import session
from rbee.keeper.client import Daemon
from rbee.keeper.lifecycle import EVENTS, heard
from rbee.keeper.nodes.failures import StepFailed
from rbee.wire.nodes import Node, NodeStatus

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


def await_report(name: str, since: Since, limit_s: float, *, restarted: bool) -> Node:
    """The node once its hive reports, after ``since`` where it was ``restarted``; raises StepFailed."""
    return session.run(_await(name, since, limit_s, restarted))


async def _await(name: str, since: Since, limit_s: float, restarted: bool) -> Node:
    async with session.queen() as queen:
        try:
            async with asyncio.timeout(limit_s), queen.stream("GET", EVENTS, head_limit_s=_HEAD_LIMIT_S) as response:
                events = heard(response)
                while True:
                    node = await _look(queen, name)
                    if node.status is NodeStatus.ONLINE and (not restarted or _after(node, since)):
                        return node
                    with contextlib.suppress(TimeoutError, StopAsyncIteration):
                        async with asyncio.timeout(_LOOK_AGAIN_S):
                            await anext(events)
        except TimeoutError:
            raise StepFailed(
                f"the hive of {name} did not report within {limit_s:g} s: 'rbee node logs {name}' says why, and that "
                "the node reaches the queen's address"
            ) from None


async def _look(queen: Daemon, name: str) -> Node:
    return await queen.call("GET", f"/v2/registry/beehives/{name}", Node)


def _after(node: Node, since: Since) -> bool:
    return node.silent_s is not None and time.monotonic() - node.silent_s > since.at
