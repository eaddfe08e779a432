"""Reads the typed events of an inference as they come: text, progress, the end, and every way that it can go wrong."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from rbee.keeper.failure import InferenceStalled, StreamClosed
from rbee.wire.errors import ErrorInfo, ProtocolError
from rbee.wire.http.client import RemoteError
from rbee.wire.sse import DONE_DATA, SseDecoder, SseEvent

Data = dict[str, Any]


@dataclass(slots=True)
class Answer:
    """What came so far: the text, how many tokens of how many, the ids to cancel by, who answers, the closing facts."""

    wanted: int | None = None
    text: list[str] = field(default_factory=list)
    tokens: int = 0
    ids: Data = field(default_factory=dict)
    metrics: Data = field(default_factory=dict)
    end: Data | None = None
    worker: str = ""

    @property
    def count(self) -> str:
        """Tokens as n/N, or n where the limit is not known."""
        return f"{self.tokens}/{self.wanted}" if self.wanted else str(self.tokens)


@dataclass(frozen=True, slots=True)
class View:
    """Where events go: ``text`` gets pieces of the answer, ``progress`` each event before it, ``say`` lines."""

    text: Callable[[str], None]
    progress: Callable[[str, Data], None]
    say: Callable[[str], None]


async def events(response: aiohttp.ClientResponse, stall_limit_s: float) -> AsyncIterator[SseEvent]:
    """Yield the events of a stream until [DONE] or its end.

    Raises InferenceStalled when no event (comments do not count) came for ``stall_limit_s``, and StreamClosed when
    the connection broke.
    """
    decoder = SseDecoder()
    loop = asyncio.get_running_loop()
    quiet_since = loop.time()
    while True:
        try:
            async with asyncio.timeout_at(quiet_since + stall_limit_s):
                chunk = await response.content.readany()
        except TimeoutError as error:
            if loop.time() < quiet_since + stall_limit_s:
                raise StreamClosed("the network dropped in the middle of the answer: try again") from error
            raise InferenceStalled(
                f"nothing came for {stall_limit_s:g} s: the request is cancelled; try again, or allow more with"
                " --stall-limit"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise StreamClosed("the connection broke in the middle of the answer: try again") from error
        if not chunk:
            return
        for event in decoder.feed(chunk):
            quiet_since = loop.time()
            if event.data == DONE_DATA:
                return
            yield event


async def consume(response: aiohttp.ClientResponse, answer: Answer, view: View, stall_limit_s: float) -> None:
    """Follow one inference to its end event, filling ``answer`` as it goes.

    Raises RemoteError for an error event, StreamClosed when there was no end, InferenceStalled, ProtocolError.
    """
    async for event in events(response, stall_limit_s):
        data = _decode(event)
        answer.ids |= {key: data[key] for key in ("task_id", "request_id", "inference_id") if key in data}
        if event.event == "token":
            answer.tokens += 1
            piece = text_of(data)
            answer.text.append(piece)
            view.text(piece)
        elif event.event == "error":
            raise error_of(data)
        elif event.event == "end":
            answer.end = data
        elif event.event == "metrics":
            answer.metrics = data
        else:
            if event.event == "placing":
                answer.worker = f"{data.get('hive_id')}/{data.get('worker_id')}"
            view.progress(event.event, data)
    if answer.end is None:
        raise StreamClosed(f"the stream closed before the end of the answer, after {answer.count} tokens: try again")


def text_of(data: Data) -> str:
    """The piece of text in a token event."""
    piece = data.get("text", data.get("t", data.get("token", "")))
    return piece if isinstance(piece, str) else ""


def error_of(data: Data) -> RemoteError:
    """The error that an error event carries, with or without the envelope."""
    try:
        info = msgspec.convert(data.get("error", data), ErrorInfo)
    except msgspec.ValidationError:
        return RemoteError("INFERENCE_FAILED", 500, "the inference failed and gave no reason", {})
    return RemoteError(info.code, 500, info.message, info.details)


def keep_partial(answer: Answer, folder: Path, name: str) -> Path | None:
    """Write what came of the answer to ``folder/name.txt`` (0600) and return its path; None when nothing came."""
    if not answer.text:
        return None
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{name}.txt"
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123
        file.write("".join(answer.text))
    return path


def _decode(event: SseEvent) -> Data:
    try:
        return msgspec.json.decode(event.data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"an event of the stream is not what it should be: {error}") from None
