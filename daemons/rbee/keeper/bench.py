"""Measures a text model as its clients see it: tokens a second, time to first token, time between tokens."""

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from rbee.keeper.client import Daemon
from rbee.keeper.failure import InferenceStalled, StreamClosed
from rbee.keeper.stream import error_of, events
from rbee.wire.errors import ConnectionTimeout, ProtocolError, RbeeError
from rbee.wire.http.client import RemoteError

COMPLETIONS = "/v1/completions"
_WORDS = (
    "the",
    "bees",
    "of",
    "a",
    "hive",
    "fly",
    "out",
    "to",
    "flowers",
    "and",
    "bring",
    "home",
    "what",
    "they",
    "find",
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What each request asks for, and how long a level may take in seconds."""

    model: str
    max_tokens: int
    prompt_words: int
    time_limit_s: float

    def body(self, number: int) -> dict[str, Any]:
        """The request of that number: its prompt begins like no other one, so that no prefix is shared."""
        words = [f"{number}:", *(_WORDS[at % len(_WORDS)] for at in range(self.prompt_words - 1))]
        return {
            "model": self.model,
            "prompt": " ".join(words),
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one answer."""

    prompt_tokens: int
    completion_tokens: int


class Text(msgspec.Struct, frozen=True):
    """The choice of a chunk."""

    text: str = ""


class Chunk(msgspec.Struct, frozen=True):
    """One event of a streamed completion."""

    choices: list[Text] = []
    usage: Usage | None = None
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer: seconds to its first text, seconds between its pieces of text, and its token counts."""

    first_s: float
    gaps_s: tuple[float, ...]
    usage: Usage


@dataclass(slots=True)
class Level:
    """What so many clients at once measured. ``unfinished`` requests ran into the time limit."""

    clients: int
    requests: int
    seconds: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    failure: RbeeError | None = None

    @property
    def failed(self) -> int:
        """Requests that ended in an error."""
        return self.failures.total()

    @property
    def unfinished(self) -> int:
        """Requests that the time limit cut off, or never let begin."""
        return self.requests - len(self.samples) - self.failed

    @property
    def tokens_per_s(self) -> float:
        """Tokens of whole answers a second, over all clients."""
        made = sum(sample.usage.completion_tokens for sample in self.samples)
        return made / self.seconds if self.seconds > 0 else 0.0

    def first_s(self, share: float) -> float | None:
        """A quantile of the time to the first token."""
        return quantile([sample.first_s for sample in self.samples], share)

    def gap_s(self, share: float) -> float | None:
        """A quantile of the time between tokens, over all answers."""
        return quantile([gap for sample in self.samples for gap in sample.gaps_s], share)


def quantile(values: Sequence[float], share: float) -> float | None:
    """The nearest-rank quantile: a value that was measured; None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


async def ask(daemon: Daemon, body: dict[str, Any], limit_s: float) -> Sample:
    """One streamed request; raises what the stream raises, and StreamClosed where it ends without its token counts."""
    started = time.monotonic()
    moments: list[float] = []
    usage: Usage | None = None
    async with daemon.stream("POST", COMPLETIONS, body=body, head_limit_s=limit_s) as response:
        async for event in events(response, limit_s):
            chunk = _chunk(event.data)
            if chunk.error is not None:
                raise error_of({"error": chunk.error})
            if any(choice.text for choice in chunk.choices):
                moments.append(time.monotonic())
            usage = chunk.usage or usage
    if usage is None:
        raise StreamClosed("the stream closed before the end of the answer: try again")
    first = moments[0] if moments else time.monotonic()
    gaps = tuple(after - before for before, after in itertools.pairwise(moments))
    return Sample(first - started, gaps, usage)


async def measure(daemon: Daemon, plan: Plan, clients: int, numbers: Iterator[int], requests: int) -> Level:
    """``requests`` requests by ``clients`` clients, each beginning its next one when it has its answer.

    Ends at the plan's time limit, whatever is still under way.
    """
    level = Level(clients, requests)
    left = iter(range(requests))

    async def client() -> None:
        for _ in left:
            try:
                level.samples.append(await ask(daemon, plan.body(next(numbers)), plan.time_limit_s))
            except (RemoteError, StreamClosed, InferenceStalled, ProtocolError, ConnectionTimeout) as error:
                level.failures[error.code] += 1
                level.failure = error

    started = time.monotonic()
    try:
        async with asyncio.timeout(plan.time_limit_s), asyncio.TaskGroup() as group:
            for _ in range(min(clients, requests)):
                group.create_task(client())
    except TimeoutError:
        pass  # what was measured so far counts; the level tells how many requests are missing
    level.seconds = time.monotonic() - started
    return level


def _chunk(data: bytes) -> Chunk:
    try:
        return msgspec.json.decode(data, type=Chunk)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"an event of the stream is not what it should be: {error}") from None
