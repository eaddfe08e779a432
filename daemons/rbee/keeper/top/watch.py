"""Keeps the picture true: the queen's events as they come, and her figures at a bounded pace."""

import asyncio
import time
from collections.abc import Callable

import aiohttp
import msgspec

from rbee.keeper.client import Daemon
from rbee.keeper.lifecycle import EVENTS
from rbee.keeper.top.figures import read_metrics
from rbee.keeper.top.picture import Fleet, Look, QueenFacts, with_workers
from rbee.keeper.workers import HealthList, all_workers
from rbee.wire.errors import ProtocolError, RbeeError
from rbee.wire.machines import HiveList
from rbee.wire.messages import WorkerReport
from rbee.wire.sse import SseDecoder, SseEvent

_AGAIN_S = 1.0
_LIMIT_S = 10.0
_HEALTH_LIMIT_S = 15.0
"""The queen asks each worker, for some seconds at most."""
_QUIET_LIMIT_S = 60.0
"""The queen writes a comment every 15 s into a stream that has nothing to say."""


class WorkerEvent(msgspec.Struct, frozen=True):
    """What is read of the event ``worker``."""

    report: WorkerReport
    removed: bool


async def look(queen: Daemon) -> Look:
    """One round of questions; raises what the queen raises."""
    facts, hives, health, text = await asyncio.gather(
        queen.call("GET", "/health", QueenFacts),
        queen.call("GET", "/v2/hives", HiveList),
        queen.call("GET", "/v2/workers/health", HealthList, timeout_s=_HEALTH_LIMIT_S),
        _metrics(queen),
    )
    return Look(facts, hives.hives, with_workers(read_metrics(text, time.monotonic()), health.workers))


async def _metrics(queen: Daemon) -> str:
    async with queen.stream("GET", "/metrics", head_limit_s=_LIMIT_S) as response, asyncio.timeout(_LIMIT_S):
        return await response.text()


async def keep_figures(queen: Daemon, fleet: Fleet, changed: Callable[[], None], every_s: float) -> None:
    """Ask again every ``every_s`` seconds, for as long as this runs; a queen that is away becomes ``problem``."""
    while True:
        try:
            fleet.looked(await look(queen))
        except (RbeeError, TimeoutError, aiohttp.ClientError) as error:
            fleet.problem = _plain(error)
        changed()
        await asyncio.sleep(every_s)


async def follow(queen: Daemon, fleet: Fleet, changed: Callable[[], None]) -> None:
    """Take workers from the queen's events, for as long as this runs; the whole list anew after each break."""
    while True:
        try:
            async with queen.stream("GET", EVENTS, head_limit_s=_LIMIT_S) as response:
                await _take_all(queen, fleet)
                changed()
                await _read(response, fleet, changed)
        except (RbeeError, TimeoutError, aiohttp.ClientError) as error:
            fleet.problem = _plain(error)
            changed()
        await asyncio.sleep(_AGAIN_S)


async def _take_all(queen: Daemon, fleet: Fleet) -> None:
    fleet.workers.clear()
    for report in await all_workers(queen):
        fleet.told(report, removed=False)


async def _read(response: aiohttp.ClientResponse, fleet: Fleet, changed: Callable[[], None]) -> None:
    decoder = SseDecoder()
    while True:
        async with asyncio.timeout(_QUIET_LIMIT_S):
            chunk = await response.content.readany()
        if not chunk:
            return
        for event in decoder.feed(chunk):
            _take(event, fleet)
        changed()


def _take(event: SseEvent, fleet: Fleet) -> None:
    if event.event != "worker":
        return
    try:
        found = msgspec.json.decode(event.data, type=WorkerEvent)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"an event of the queen is not what it should be: {error}") from None
    fleet.told(found.report, removed=found.removed)


def _plain(error: Exception) -> str:
    return error.message if isinstance(error, RbeeError) else "the queen does not answer"
