"""The OpenAI routes of the queen, as this command uses them: a streamed chat, and embeddings."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from rbee.keeper.client import Daemon
from rbee.keeper.failure import StreamClosed
from rbee.keeper.stream import error_of, events
from rbee.wire.errors import ProtocolError

CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation."""

    role: str
    content: str


class Delta(msgspec.Struct, frozen=True):
    """The piece of an answer in one chunk."""

    content: str | None = None


class Choice(msgspec.Struct, frozen=True):
    """The first (and only) alternative of a chunk."""

    delta: Delta = Delta()
    finish_reason: str | None = None


class Chunk(msgspec.Struct, frozen=True):
    """One event of a streamed chat."""

    choices: list[Choice] = []
    error: dict[str, Any] | None = None


class Embedding(msgspec.Struct, frozen=True):
    """One text's vector."""

    index: int
    embedding: list[float]


class Embeddings(msgspec.Struct, frozen=True):
    """The answer of /v1/embeddings."""

    data: list[Embedding]
    model: str = ""


async def chat(
    daemon: Daemon, body: dict[str, Any], text: Callable[[str], None], stall_limit_s: float
) -> tuple[str, int]:
    """Stream one chat answer into ``text``; returns the whole of it and the number of chunks that carried text.

    Raises StreamClosed when the stream ends without a finish_reason, RemoteError for an error event.
    """
    pieces: list[str] = []
    finished = False
    async with daemon.stream("POST", CHAT, body=body | {"stream": True}, head_limit_s=stall_limit_s) as response:
        async for event in events(response, stall_limit_s):
            chunk = _chunk(event.data)
            if chunk.error is not None:
                raise error_of({"error": chunk.error})
            for choice in chunk.choices:
                if choice.delta.content:
                    pieces.append(choice.delta.content)
                    text(choice.delta.content)
                finished = finished or choice.finish_reason is not None
    if not finished:
        raise StreamClosed(f"the stream closed before the end of the answer, after {len(pieces)} pieces: try again")
    return "".join(pieces), len(pieces)


async def embed(daemon: Daemon, model: str, texts: Sequence[str], timeout_s: float) -> list[list[float]]:
    """The vectors of ``texts``, in their order."""
    answer = await daemon.call(
        "POST", EMBEDDINGS, Embeddings, body={"model": model, "input": list(texts)}, timeout_s=timeout_s
    )
    if len(answer.data) != len(texts):
        raise ProtocolError(f"{len(texts)} texts were sent and {len(answer.data)} vectors came back")
    return [row.embedding for row in sorted(answer.data, key=lambda row: row.index)]


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """How alike two vectors are: 1 the same direction, 0 nothing in common."""
    lengths = math.hypot(*one) * math.hypot(*other)
    return sum(a * b for a, b in zip(one, other, strict=True)) / lengths if lengths else 0.0


def _chunk(data: bytes) -> Chunk:
    try:
        return msgspec.json.decode(data, type=Chunk)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"an event of the stream is not what it should be: {error}") from None
