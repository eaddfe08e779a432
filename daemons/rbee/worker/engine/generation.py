"""What goes into a generator and what comes out: a request for a text, and its pieces and its end."""

import enum
from dataclasses import dataclass
from typing import NamedTuple

from rbee.worker.engine.sampling import SamplingParams
from rbee.worker.engine.tokens import TokenText


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


class Piece(NamedTuple):
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
