"""What a generator is to the rest of the worker: a request in, a stream of pieces of text out.

The routes know these types alone, so that the loop behind them can change (one request at a time, batched) freely.
"""

import enum
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from rbee.worker.engine.sampling import SamplingParams


class FinishReason(enum.StrEnum):
    """Why a text ended: the model or a stop string ended it, or a length was reached."""

    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One text to generate: the prompt's token ids (at least one), and when and how to choose and stop."""

    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Piece:
    """New text (never empty), the token that completed it, and how many tokens there are so far."""

    text: str
    token_id: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Finished:
    """The last item of every stream that was not cancelled; ``tokens`` leaves the end-of-sequence token out."""

    reason: FinishReason
    tokens: int


class Generator(Protocol):
    """Generates text. Cancelling the task that reads a stream stops it within one step."""

    @property
    def default_sampling(self) -> SamplingParams:
        """How tokens are chosen where a request does not say."""
        ...

    @property
    def context_length(self) -> int:
        """Tokens that prompt and completion may have together."""

    async def encode(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """Token ids of a prompt; raises InvalidRequest where it is empty, too long, or outside the vocabulary."""

    async def encode_messages(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Token ids of a conversation by the model's chat template; raises InvalidRequest."""

    def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece | Finished, None]:
        """Generate; the next step is computed when the reader asks for it, so a slow reader slows it down."""
