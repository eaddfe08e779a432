"""Starting and stopping workers by way of the queen, waiting on her events until it is done."""

import asyncio
import contextlib
import datetime
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp
import msgspec

from rbee.keeper.client import Daemon
from rbee.keeper.failure import StreamClosed
from rbee.keeper.render import Screen
from rbee.keeper.text import duration
from rbee.keeper.workers import all_workers, one_worker
from rbee.wire.errors import LoadingTimeout, RbeeError, WorkerFailed
from rbee.wire.messages import ShutdownRequest, SpawnRequest, WorkerReport, WorkerState
from rbee.wire.shortage import reported
from rbee.wire.sse import SseDecoder

EVENTS = "/v2/events"
_QUIET_LIMIT_S = 300.0
_HEAD_LIMIT_S = 10.0
_ORDER_LIMIT_S = 45.0
"""The queen tries a hive three times for 10 s each before she says that it cannot be reached."""
_MOST_LINE = 1 << 20
_DATED = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")


class Record(msgspec.Struct, frozen=True):
    """What the command shows of one record of a worker's log."""

    time_unix: float
    message: str


Judge = Callable[[WorkerReport | None], bool]


async def spawn(daemon: Daemon, request: SpawnRequest, *, wait: bool) -> dict[str, str]:
    """Start a worker and, with ``wait``, stay until it is ready, its progress shown.

    Raises WorkerFailed or LoadingTimeout with the reason, the time it took, and where its log is.
    """
    async with daemon:
        return await _spawn(daemon, request, wait=wait)


async def stop(daemon: Daemon, worker_id: str, hive_id: str | None, *, wait: bool) -> dict[str, str]:
    """Drain and stop a worker and, with ``wait``, stay until it has ended."""
    async with daemon:
        worker = await one_worker(daemon, worker_id, hive_id)
        return await _stop(daemon, worker, wait=wait)


async def restart(daemon: Daemon, worker_id: str, hive_id: str | None, *, wait: bool) -> dict[str, str]:
    """Stop a worker, wait until it has ended, and start it again."""
    async with daemon:
        worker = await one_worker(daemon, worker_id, hive_id)
        if not worker.state.ended:
            await _stop(daemon, worker, wait=True)
        return await _spawn(daemon, SpawnRequest(worker_id=worker_id, hive_id=worker.hive_id), wait=wait)


async def begin_anew(daemon: Daemon, worker_id: str, hive_id: str, order: Callable[[], Awaitable[None]]) -> bool:
    """Stay until another life of a worker, which ``order`` begins, takes requests; its progress is shown.

    False, and nothing is ordered, for one that has ended. Raises WorkerFailed or LoadingTimeout where the other life
    fails, and what ``order`` raises.
    """
    async with daemon:
        worker = await one_worker(daemon, worker_id, hive_id)
        if worker.state.ended:
            return False
        before = worker.invocation_id
        began = asyncio.get_running_loop().time()

        def settled(worker: WorkerReport | None) -> bool:
            if worker is None or worker.invocation_id == before:
                return False
            if worker.state is WorkerState.FAILED:
                raise _failure(worker, asyncio.get_running_loop().time() - began)
            return worker.state.ready

        with Screen() as screen:
            await _until(daemon, worker_id, hive_id, order, settled, screen)
    return True


async def _spawn(daemon: Daemon, request: SpawnRequest, *, wait: bool) -> dict[str, str]:
    before = _life(await _find(daemon, request.worker_id, request.hive_id))

    async def act() -> None:
        await daemon.call("POST", "/v2/workers/spawn", dict[str, Any], body=request, timeout_s=_ORDER_LIMIT_S)

    if not wait:
        await act()
        return {"worker_id": request.worker_id, "state": WorkerState.LOADING.value}
    began = asyncio.get_running_loop().time()

    def settled(worker: WorkerReport | None) -> bool:
        if worker is None:
            return False
        if worker.state is WorkerState.FAILED and _life(worker) != before:
            raise _failure(worker, asyncio.get_running_loop().time() - began)
        return worker.state.ready

    with Screen() as screen:
        worker = await _until(daemon, request.worker_id, request.hive_id, act, settled, screen)
    return {"worker_id": request.worker_id, "state": worker.state.value if worker else "unknown"}


async def _stop(daemon: Daemon, worker: WorkerReport, *, wait: bool) -> dict[str, str]:
    async def act() -> None:
        body = ShutdownRequest(worker_id=worker.worker_id, hive_id=worker.hive_id)
        await daemon.call("POST", "/v2/workers/shutdown", dict[str, Any], body=body, timeout_s=_ORDER_LIMIT_S)

    if not wait:
        await act()
        return {"worker_id": worker.worker_id, "state": WorkerState.DRAINING.value}
    with Screen() as screen:
        await _until(
            daemon,
            worker.worker_id,
            worker.hive_id,
            act,
            lambda found: found is None or found.state.ended,
            screen,
        )
    return {"worker_id": worker.worker_id, "state": WorkerState.STOPPED.value}


async def _until(
    daemon: Daemon,
    worker_id: str,
    hive_id: str | None,
    act: Callable[[], Awaitable[None]],
    settled: Judge,
    screen: Screen,
) -> WorkerReport | None:
    """Listen, act, then look at the worker after each event until ``settled`` says so."""
    async with daemon.stream("GET", EVENTS, head_limit_s=_HEAD_LIMIT_S) as response:
        await act()
        worker = await _find(daemon, worker_id, hive_id)
        news = heard(response)
        quiet_since = asyncio.get_running_loop().time()
        while not settled(worker):
            limit = quiet_since + _QUIET_LIMIT_S
            if not await _next(news, limit):
                raise _quiet(worker_id)
            found = await _find(daemon, worker_id, hive_id)
            if found != worker:
                quiet_since = asyncio.get_running_loop().time()
            worker = found
            if worker is not None and worker.state is WorkerState.LOADING and worker.progress is not None:
                screen.progress("loading", msgspec.to_builtins(worker.progress))
        return worker


async def _next(news: AsyncIterator[None], limit: float) -> bool:
    try:
        async with asyncio.timeout_at(limit):
            await anext(news)
    except TimeoutError:
        return False
    except StopAsyncIteration:
        raise StreamClosed("the queen closed her events: look at her with 'systemctl status rbee-queen'") from None
    return True


async def heard(response: aiohttp.ClientResponse) -> AsyncIterator[None]:
    """Yield once for each chunk that carried an event; what it says is read from the list."""
    decoder = SseDecoder()
    with contextlib.suppress(aiohttp.ClientError):
        async for chunk in response.content.iter_any():
            if any(True for _ in decoder.feed(chunk)):
                yield


async def _find(daemon: Daemon, worker_id: str, hive_id: str | None) -> WorkerReport | None:
    for worker in await all_workers(daemon, hive_id):
        if worker.worker_id == worker_id:
            return worker
    return None


def _life(worker: WorkerReport | None) -> tuple[str, float] | None:
    return (worker.invocation_id, worker.since_unix) if worker else None


def _failure(worker: WorkerReport, elapsed_s: float) -> RbeeError:
    details = {"worker_id": worker.worker_id, "elapsed_s": round(elapsed_s, 1)}
    why = worker.reason or worker.result or "it gave no reason"
    if why == LoadingTimeout.code or worker.result == "timeout":
        return LoadingTimeout(
            f"worker {worker.worker_id} made no progress with loading and was ended after {duration(elapsed_s)}"
            f" (last: {worker.status_text or 'nothing said'})",
            details=details,
        )
    short = reported(worker)
    if short is not None:
        last = f" (its last log line: {worker.last_log})" if worker.last_log else ""
        return type(short)(f"{short.message}, after {duration(elapsed_s)}{last}", details=details | short.details)
    said = f": {worker.status_text}" if worker.status_text else ""
    return WorkerFailed(f"worker {worker.worker_id} failed after {duration(elapsed_s)}: {why}{said}", details=details)


def _quiet(worker_id: str) -> LoadingTimeout:
    return LoadingTimeout(
        f"worker {worker_id} showed no change for {duration(_QUIET_LIMIT_S)}: it is left as it is",
        details={"worker_id": worker_id, "elapsed_s": _QUIET_LIMIT_S},
    )


async def log_lines(response: aiohttp.ClientResponse) -> AsyncIterator[str]:
    """The lines of a log as they come: of server-sent events their data, of plain text the lines themselves."""
    if response.content_type == "text/event-stream":
        decoder = SseDecoder()
        async for chunk in response.content.iter_any():
            for event in decoder.feed(chunk):
                yield _line(event.data)
        return
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        rest = rest[-_MOST_LINE:]
        for line in lines:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


def _line(data: bytes) -> str:
    """One record of a log as a line: when and what; anything but a record as it is."""
    with contextlib.suppress(msgspec.DecodeError):
        record = msgspec.json.decode(data, type=Record)
        if _DATED.match(record.message):
            return record.message
        moment = datetime.datetime.fromtimestamp(record.time_unix, tz=datetime.UTC).astimezone()
        return f"{moment.strftime('%Y-%m-%d %H:%M:%S')} {record.message}"
    return data.decode(errors="replace")
