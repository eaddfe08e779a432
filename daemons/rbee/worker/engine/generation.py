"""What a generator is to the rest of the worker: a request in, a stream of pieces of text out.

The routes know these types alone, so that the loop behind them can change (one request at a time, batched) freely.
"""

import enum
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from rbee.worker.engine.sampling import SamplingParams
from rbee.worker.engine.tokens import TokenText

if TYPE_CHECKING:
    from rbee.worker.engine.text_model import TextModel

T = TypeVar("T")


class FinishReason(enum.StrEnum):
    """Why a text ended: the model or a stop string ended it, or a length was reached."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One text to generate: the prompt's token ids (at least one), and when and how to choose and stop.

    ``keep_special`` leaves the special tokens' text in what goes out: a parser needs their marks.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams
    stop: tuple[str, ...] = ()
    keep_special: bool = False


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """A token, its text and bytes, and the natural logarithm of its probability."""

    token_id: int
    spelt: TokenText
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token and the best tokens of its place, best first (as many as were asked for)."""

    chosen: ScoredToken
    top: tuple[ScoredToken, ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """New text (never empty), the token that completed it, and how many tokens there are so far.

    ``logprobs``, where they were asked for, are those of the tokens since the last piece: one or more.
    """

    text: str
    token_id: int
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Finished:
    """The last item of every stream that was not cancelled; ``tokens`` leaves the end-of-sequence token out.

    ``logprobs`` are those of tokens after the last piece, which have no text.
    """

    reason: FinishReason
    tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


class Generator(Protocol):
    """Generates text. Cancelling the task that reads a stream stops it within one step."""

    @property
    def text(self) -> "TextModel":
        """Tokenizer, template, context length and defaults of the model."""

    async def prepare(self, work: "Callable[[TextModel], T]") -> T:
        """Run what takes time (tokenising, compiling a grammar) off the loop, and await it."""

    def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece | Finished, None]:
        """Generate; the next step is computed when the reader asks for it, so a slow reader slows it down.

        Raises InferenceError where the model fails on this text.
        """
