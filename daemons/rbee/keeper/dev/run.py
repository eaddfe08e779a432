"""`rbee dev` from start to end: set up, demonstrate, wait, and stop everything that was started, in order."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from rbee.keeper import failure
from rbee.keeper.client import Daemon, Patience
from rbee.keeper.dev import children, folders, models, show
from rbee.keeper.lifecycle import EVENTS
from rbee.keeper.settings import Place
from rbee.wire.errors import RbeeError
from rbee.wire.sse import SseDecoder

EXIT_INTERRUPTED = 130
WORKERS = (("dev-talk", models.TALKING_MODEL), ("dev-embed", models.EMBEDDING_MODEL))
_READY_LIMIT_S = 60.0
_EVENTS_LIMIT_S = 10.0
FIRST_REPORT = "first report"
_WORKER_STOP_S, _HIVE_STOP_S, _QUEEN_STOP_S = 12.0, 10.0, 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Options:
    """``port``: the queen's, or the next free one. ``once``: end after the demonstration. ``verbose``: show logs."""

    port: int = 8080
    once: bool = False
    verbose: bool = False


class _HiveEvent(msgspec.Struct, frozen=True):
    """What is read of the queen's event ``hive``."""

    what: str


class Dev:
    """One run: owns its children, and knows how far it came."""

    def __init__(
        self, options: Options, made: folders.Folders, ports: folders.Ports, say: Callable[[str], None]
    ) -> None:
        self._options = options
        self._made = made
        self._ports = ports
        self._say = say
        self._environment = children.clean_environment(os.environ)
        self._queen = self._child("rbee-queen", "queen")
        self._hive = self._child("rbee-hive", "hive")
        self.set_up = False

    def _child(self, name: str, room: str) -> children.Child:
        return children.Child(
            name,
            children.module_argv(f"rbee.{room}.main", "--config", str(self._made.run / "config" / f"{room}.yaml")),
            self._made.logs / f"{room}.log",
            self._made.run / f"notify-{room}.sock",
            self._say if self._options.verbose else None,
        )

    async def work(self) -> None:
        """Everything up to the last line of the demonstration, then (unless ``once``) wait for a child to die.

        Raises ChildFailed when one does, and whatever error the set-up meets.
        """
        self._say(f"models: {self._made.models}")
        await models.build(self._made.models, self._environment, self._say)
        await self._begin(self._queen)
        await self._begin_hive()
        async with asyncio.TaskGroup() as group:
            watch = group.create_task(self._watch())
            await self._demonstrate()
            self.set_up = True
            if self._options.once:
                watch.cancel()

    async def _begin(self, child: children.Child) -> None:
        await child.start(self._environment)
        await child.ready(_READY_LIMIT_S)
        self._say(f"{child.name} is ready (log: {child.log})")

    async def _begin_hive(self) -> None:
        """Start the hive, and stay until the queen has its first report: from then on she can have workers started."""
        async with (
            Daemon(self._place("queen", self._made.queen_socket), Patience(), self._say) as queen,
            queen.stream("GET", EVENTS, head_limit_s=_EVENTS_LIMIT_S) as events,
        ):
            await self._begin(self._hive)
            ends = [asyncio.create_task(self._hive.death_of_child()), asyncio.create_task(_first_report(events))]
            try:
                done, _ = await asyncio.wait(ends, timeout=_READY_LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for end in ends:
                    end.cancel()
                await asyncio.gather(*ends, return_exceptions=True)
        if not done:
            raise children.ChildFailed(f"rbee-hive did not report to the queen within {_READY_LIMIT_S:g} s")
        if (death := done.pop().result()) is not None:
            raise death

    async def _watch(self) -> None:
        ends = [asyncio.create_task(child.death_of_child()) for child in (self._queen, self._hive)]
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            raise done.pop().result()
        finally:
            for end in ends:
                end.cancel()

    async def _demonstrate(self) -> None:
        async with Daemon(self._place("queen", self._made.queen_socket), Patience(), self._say) as queen:
            for worker, model in WORKERS:
                await self._spawn(queen, worker, model)
                self._say(f"worker {worker} starts with {model}")
        async with show.queen_over_tcp(self._made, self._ports, self._say) as queen:
            await show.demonstrate(queen, self._say)
        self._say(show.lines_to_go_on(self._made, self._ports))

    async def _spawn(self, queen: Daemon, worker: str, model: str) -> None:
        body = {
            "worker_id": worker,
            "model_ref": (self._made.models / model).as_uri(),
            "ephemeral": True,
            "idle_limit_s": 0,
        }
        await queen.call("POST", "/v2/workers/spawn", dict[str, Any], body=body)

    async def stop(self) -> None:
        """Stop workers by way of the hive, then the hive, then the queen; within 30 s, and whatever it takes."""
        if self._hive.running:
            await self._stop_workers()
        for child, limit in ((self._hive, _HIVE_STOP_S), (self._queen, _QUEEN_STOP_S)):
            if not await child.stop(limit):
                self._say(f"{child.name} did not end within {limit:g} s and was killed")
        left = children.end_leftovers()
        if left:
            self._say(f"{len(left)} processes were left over and were killed")

    def kill(self) -> None:
        """End the daemons at once: what a second Ctrl+C asks for."""
        self._hive.kill()
        self._queen.kill()

    async def _stop_workers(self) -> None:
        place = self._place("hive", self._made.hive_socket)
        async with Daemon(place, Patience(timeout_s=5.0, waits_s=(0.0,)), lambda _: None) as hive:
            stops = [hive.send("DELETE", f"/v1/workers/{worker}", timeout_s=_WORKER_STOP_S) for worker, _ in WORKERS]
            await asyncio.gather(*stops, return_exceptions=True)

    def _place(self, name: str, socket: Path) -> Place:
        return Place(name, f"rbee-{name}", f"http://{name}", socket)


async def _first_report(events: aiohttp.ClientResponse) -> None:
    """Wait until the queen's events tell of a hive's first report; raises StreamClosed."""
    decoder = SseDecoder()
    async for chunk in events.content.iter_any():
        for event in decoder.feed(chunk):
            if event.event == "hive" and msgspec.json.decode(event.data, type=_HiveEvent).what == FIRST_REPORT:
                return
    raise failure.StreamClosed("the queen closed her events before the hive reported: see her log")


async def run(options: Options, say: Callable[[str], None]) -> int:
    """Run `rbee dev`; returns 0 after a clean end, 1 when something failed, 130 when interrupted in the set-up."""
    children.adopt_orphans()
    stop, again = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, lambda: again.set() if stop.is_set() else stop.set())
    with folders.folders(os.environ) as made:
        ports = folders.free_ports(options.port)
        folders.write_files(made, ports)
        dev = Dev(options, made, ports, say)
        code = await _until(dev, stop)
        await _end(dev, again, say)
    return code


async def _until(dev: Dev, stop: asyncio.Event) -> int:
    work = asyncio.create_task(dev.work(), name="rbee dev")
    stopping = asyncio.create_task(stop.wait(), name="signals")
    try:
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if work.done():
            await work
            return 0
        return 0 if dev.set_up else EXIT_INTERRUPTED
    except (RbeeError, BaseExceptionGroup) as error:
        for one in _errors(error):
            failure.show(one, as_json=False)
        return 1
    finally:
        for task in (work, stopping):
            task.cancel()
        await asyncio.gather(work, stopping, return_exceptions=True)


def _errors(error: BaseException) -> list[RbeeError]:
    """The errors within ``error``, groups taken apart; raises what is none of ours."""
    if isinstance(error, BaseExceptionGroup):
        return [found for inner in error.exceptions for found in _errors(inner)]
    if not isinstance(error, RbeeError):
        raise error
    return [error]


async def _end(dev: Dev, again: asyncio.Event, say: Callable[[str], None]) -> None:
    say("stopping: workers, hive, queen (Ctrl+C again ends them at once)")
    stopping = asyncio.create_task(dev.stop(), name="stop")
    hurry = asyncio.create_task(again.wait(), name="second signal")
    await asyncio.wait({stopping, hurry}, return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        dev.kill()
    await stopping
    hurry.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await hurry
    say("all ended")
