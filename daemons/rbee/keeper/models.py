"""Models on a machine, as the command sees them: asked of this machine's hive, or of a node's through the queen."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

import aiohttp
import msgspec

from rbee.keeper import session
from rbee.keeper.client import Daemon
from rbee.keeper.failure import StreamClosed
from rbee.keeper.render import say
from rbee.keeper.text import duration, printable, size
from rbee.wire.errors import ErrorBody, ProtocolError
from rbee.wire.http.client import RemoteError
from rbee.wire.model_messages import DownloadRequest, ModelProgress, ModelRow, PullRequest, Stage
from rbee.wire.sse import CONTENT_TYPE, DONE_DATA, SseDecoder

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

T = TypeVar("T")
HEADS = ("MODEL", "PROVIDER", "SIZE", "LAST USE", "STATE", "REFERENCE")
VERIFY_LIMIT_S = 3600.0
_HEAD_LIMIT_S = 90.0
_QUIET_LIMIT_S = 60.0
_TENTH = 10


@dataclass(frozen=True, slots=True)
class Place:
    """Where the models are: this machine's hive, or with ``node`` that node's hive through the queen."""

    node: str | None

    def daemon(self) -> Daemon:
        """The daemon to ask, not connected yet."""
        return session.hive() if self.node is None else session.queen()

    def path(self, rest: str) -> str:
        """The path of a hive's route ``/v1/REST`` there."""
        return f"/v1/{rest}" if self.node is None else f"/v2/hives/{self.node}/{rest}"

    async def call(
        self, method: str, rest: str, kind: type[T], *, body: object = None, timeout_s: float | None = None
    ) -> T:
        """Call a route and decode its answer."""
        async with self.daemon() as daemon:
            return await daemon.call(method, self.path(rest), kind, body=body, timeout_s=timeout_s)


async def pull(place: Place, wanted: PullRequest, screen: "PullScreen") -> ModelProgress:
    """Let a model be fetched and follow it to its end; returns its last progress.

    Raises RemoteError with the reason why it did not come, StreamClosed. Ctrl+C leaves the download going on.
    """
    body = DownloadRequest(wanted.reference) if place.node is None else wanted
    async with (
        place.daemon() as daemon,
        daemon.stream(
            "POST", place.path("models/download"), body=body, head_limit_s=_HEAD_LIMIT_S, accept=CONTENT_TYPE
        ) as response,
    ):
        try:
            async for progress in _progress(response):
                screen.show(progress)
                if progress.stage is Stage.COMPLETE:
                    return progress
        except asyncio.CancelledError:
            screen.say("the download goes on at the hive: pull again to follow it, 'rbee model rm' stops it")
            raise
    raise StreamClosed("the stream closed before the model was there: pull again, it goes on from what came")


async def _progress(response: aiohttp.ClientResponse) -> AsyncIterator[ModelProgress]:
    decoder = SseDecoder()
    while True:
        try:
            async with asyncio.timeout(_QUIET_LIMIT_S):
                chunk = await response.content.readany()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise StreamClosed("the connection broke: pull again, it goes on from what came") from error
        if not chunk:
            return
        for event in decoder.feed(chunk):
            if event.data == DONE_DATA:
                return
            try:
                if event.event == "error":
                    info = msgspec.json.decode(event.data, type=ErrorBody).error
                    raise RemoteError(info.code, 500, info.message, info.details)
                yield msgspec.json.decode(event.data, type=ModelProgress)
            except msgspec.DecodeError as error:
                raise ProtocolError(f"an event of the stream is not what it should be: {error}") from None


class PullScreen:
    """Shows a download on stderr: a bar on a terminal, else a line for each stage, each tenth and each failed try."""

    def __init__(self, *, terminal: bool, tell: Callable[[str], None] = say) -> None:
        self._terminal = terminal
        self._tell = tell
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._stage: Stage | None = None
        self._note = ""
        self._tenth = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_bar()

    def say(self, line: str) -> None:
        """A line that stays."""
        self._end_bar()
        self._tell(line)

    def show(self, progress: ModelProgress) -> None:
        """How far it is now."""
        if progress.note != self._note:
            self._note = progress.note
            if progress.note:
                self.say(f"interrupted: {progress.note}")
        if progress.stage is Stage.COMPLETE:
            self._end_bar()
        elif progress.stage is Stage.DOWNLOADING and self._terminal:
            self._draw(progress)
        else:
            self._lines(progress)

    def _lines(self, progress: ModelProgress) -> None:
        total = progress.bytes_total
        tenth = _TENTH * progress.bytes_downloaded // total if total else -1
        if progress.stage is not self._stage or (tenth > self._tenth and progress.stage is Stage.DOWNLOADING):
            self._stage, self._tenth = progress.stage, tenth
            amount = f" {size(progress.bytes_downloaded)} of {size(total)}, {rate(progress)}" if total else ""
            self.say(f"{progress.stage.value}{amount}")

    def _draw(self, progress: ModelProgress) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(binary_units=True),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(printable(progress.model), total=None, rate="")
        if self._task is not None:
            self._bar.update(
                self._task, completed=progress.bytes_downloaded, total=progress.bytes_total or None, rate=rate(progress)
            )

    def _end_bar(self) -> None:
        if self._bar is not None:
            with contextlib.suppress(BrokenPipeError):
                self._bar.stop()
            self._bar = None


def rate(progress: ModelProgress) -> str:
    """The speed, and the limit where there is one."""
    limit = "" if progress.limit_mbps is None else f" (limit {progress.limit_mbps:g})"
    return f"{progress.speed_mbps:.1f} Mbit/s{limit}"


def row(model: ModelRow, now: float) -> tuple[str, ...]:
    """One line of the table; ``now`` in seconds since the epoch."""
    states = [name for name, holds in (("in use", model.in_use), ("pinned", model.pinned)) if holds]
    used = f"{duration(max(0.0, now - model.last_used_unix))} ago"
    return (model.id, model.provider.value, size(model.size_bytes), used, ", ".join(states) or "-", model.reference)
