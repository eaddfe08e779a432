"""Chooses the next token of every row of a batch: greedy or drawn, under penalties, bias and grammar.

Rows are independent: a row's choice depends on its own scores, parameters and random stream, never on who shares the
batch. Each row is worked on alone, as one row of a large vocabulary fits the processor's cache and a batch of them does
not.
"""

import enum
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rbee.wire.errors import GrammarFailed, InferenceError
from rbee.worker.engine.distribution import Cut, Scores, TokenIds, best_tokens, draw, draw_from, log_total
from rbee.worker.engine.penalties import LEAST_REPETITION, MOST_REPETITION, Penalties, UsedTokens

__all__ = ["BatchSampler", "Choice", "Grammar", "Matcher", "Need", "NeedKind", "SamplingParams", "Scores"]

MOST_TOP_K = 256
"""The largest top-k for which a device's top-k is worth asking for."""
FORBIDDEN = np.float32(-3e38)
"""What a score loses by a grammar: its token then has no probability. Finite, as 0 times infinity is no number."""


class Matcher(Protocol):
    """What a grammar allows at one place of one text."""

    def allowed(self, size: int) -> NDArray[np.bool_]:
        """Which of the first ``size`` token ids may come next; raises GrammarFailed where the grammar gave up."""

    def accept(self, token: int) -> None:
        """``token`` was chosen."""


class Grammar(Protocol):
    """A compiled grammar, shared by any number of texts."""

    def matcher(self) -> Matcher:
        """The state of a new text."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one text's tokens are chosen.

    ``temperature`` 0 is greedy. ``min_p``, ``top_k`` and ``top_p`` are :class:`distribution.Cut`'s, the penalties
    :class:`penalties.Penalties`'s. ``seed`` None draws afresh. ``logit_bias`` is added to the scores of its tokens.
    ``logprobs`` is how many alternatives are told of beside each chosen token (0: the chosen one alone; None: nothing).
    An end-of-sequence token ends nothing under ``ignore_eos``, and is not chosen before ``min_tokens`` tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    logprobs: int | None = None
    ignore_eos: bool = False
    min_tokens: int = 0
    grammar: Grammar | None = None

    @property
    def cut(self) -> Cut:
        """What may be drawn."""
        return Cut(self.temperature, self.min_p, self.top_k, self.top_p)

    @property
    def penalties(self) -> Penalties:
        """What used tokens lose."""
        return Penalties(self.repetition_penalty, self.presence_penalty, self.frequency_penalty)


def default_sampling(generation_config: Mapping[str, Any]) -> SamplingParams:
    """What a model's generation_config.json asks for where a request does not say; ``do_sample`` false is greedy."""
    if generation_config.get("do_sample") is False:
        return SamplingParams(temperature=0.0)
    temperature, top_p = generation_config.get("temperature"), generation_config.get("top_p")
    top_k, min_p = generation_config.get("top_k"), generation_config.get("min_p")
    repetition = generation_config.get("repetition_penalty")
    if not isinstance(repetition, int | float) or not LEAST_REPETITION <= repetition <= MOST_REPETITION:
        repetition = 1.0
    return SamplingParams(
        temperature=float(temperature) if isinstance(temperature, int | float) and temperature >= 0 else 1.0,
        top_p=float(top_p) if isinstance(top_p, int | float) and 0 < top_p <= 1 else 1.0,
        top_k=top_k if isinstance(top_k, int) and top_k >= 0 else 0,
        min_p=float(min_p) if isinstance(min_p, int | float) and 0 <= min_p <= 1 else 0.0,
        repetition_penalty=float(repetition),
    )


class Choice(NamedTuple):
    """The chosen token. With ``logprobs`` asked for: its log probability and the best tokens' (best first).

    They are the model's own: before temperature, penalties, bias and grammar.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class NeedKind(enum.IntEnum):
    """How much of a row of scores a choice needs."""

    ARGMAX = 0
    TOP_K = 1
    SCORES = 2


@dataclass(frozen=True, slots=True)
class Need:
    """What rows need of their scores: the best token, the ``k`` best ones with their scores, or all of them."""

    kind: NeedKind
    k: int = 1


_ARGMAX, _SCORES = Need(NeedKind.ARGMAX), Need(NeedKind.SCORES)


class _Row:
    """One text's own stream of choices."""

    def __init__(self, params: SamplingParams, prompt: Sequence[int], eos_ids: NDArray[np.int64]) -> None:
        self._params = params
        self._cut = params.cut
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        self._used = UsedTokens(params.penalties, prompt) if params.penalties else None
        self._bias_ids = np.array([token for token, _ in params.logit_bias], np.int64)
        self._bias = np.array([value for _, value in params.logit_bias], np.float32)
        self._eos_ids = eos_ids
        self._early = params.min_tokens
        self._matcher = params.grammar.matcher() if params.grammar is not None else None

    @property
    def need(self) -> Need:
        if self._adjusts or self._params.logprobs is not None:
            return _SCORES
        if self._params.temperature == 0.0:
            return _ARGMAX
        if 0 < self._params.top_k <= MOST_TOP_K:
            return Need(NeedKind.TOP_K, self._params.top_k)
        return _SCORES

    @property
    def _adjusts(self) -> bool:
        adjusted = self._used is not None or self._matcher is not None or len(self._bias) > 0
        return adjusted or (self._early > 0 and len(self._eos_ids) > 0)

    def choose(self, scores: Scores, best_id: int, best: float) -> Choice:
        params = self._params
        adjusted = self._adjusted(scores) if self._adjusts else scores
        if adjusted is not scores:
            best_id = int(adjusted.argmax())
        token = best_id
        if params.temperature != 0.0:
            token = draw(adjusted, float(adjusted[best_id]), self._cut, self._random.random())
        self._accept(token)
        if params.logprobs is None:
            return Choice(token)
        total = log_total(scores, best)
        top = tuple((int(each), float(scores[each]) - total) for each in best_tokens(scores, params.logprobs))
        return Choice(token, float(scores[token]) - total, top)

    def choose_from(self, ids: TokenIds, scores: Scores) -> Choice:
        token = int(ids[0])
        if self._params.temperature != 0.0:
            token = draw_from(ids, scores, float(scores[0]), self._cut, self._random.random())
        self._accept(token)
        return Choice(token)

    def _adjusted(self, scores: Scores) -> Scores:
        adjusted = scores.copy()
        if self._used is not None:
            self._used.apply(adjusted)
        known = self._bias_ids < len(adjusted)  # a tokenizer may know more tokens than the model scores
        adjusted[self._bias_ids[known]] += self._bias[known]
        if self._early > 0:
            adjusted[self._eos_ids[self._eos_ids < len(adjusted)]] = -np.inf
        if self._matcher is not None:
            # arithmetic on the whole row: picking out what is forbidden costs ten times as much
            with np.errstate(over="ignore"):
                adjusted += (~self._matcher.allowed(len(adjusted))).astype(np.float32) * FORBIDDEN
        best = adjusted.max()
        if np.isnan(best) or best == np.inf:
            raise _not_numbers()
        if best <= FORBIDDEN / 2:
            raise GrammarFailed("no token is left that the request's grammar and bias allow: loosen them")
        return adjusted

    def _accept(self, token: int) -> None:
        self._early -= 1
        if self._used is not None:
            self._used.add(token)
        if self._matcher is not None:
            self._matcher.accept(token)


class BatchSampler:
    """The rows that are being generated, by a key of the caller's. Belongs to one thread at a time.

    ``eos_ids`` are the model's end-of-sequence tokens, which ``min_tokens`` holds back.
    """

    def __init__(self, eos_ids: frozenset[int] = frozenset()) -> None:
        self._eos_ids = np.array(sorted(eos_ids), np.int64)
        self._rows: dict[Hashable, _Row] = {}

    def add(self, key: Hashable, params: SamplingParams, prompt_ids: Sequence[int]) -> None:
        """A text begins."""
        self._rows[key] = _Row(params, prompt_ids, self._eos_ids)

    def remove(self, key: Hashable) -> None:
        """A text has ended; an unknown key is no error."""
        self._rows.pop(key, None)

    def need(self, keys: Sequence[Hashable]) -> Need:
        """What a step of these rows together needs.

        ARGMAX and TOP_K(k) may be computed on the device and go to :meth:`choose_from` (ARGMAX with k = 1);
        SCORES go to :meth:`choose`. It may change from step to step.
        """
        if len(keys) == 1:
            return self._rows[keys[0]].need
        needs = [self._rows[key].need for key in keys]
        kind = max((need.kind for need in needs), default=NeedKind.ARGMAX)
        return Need(kind, max((need.k for need in needs), default=1))

    def choose(self, keys: Sequence[Hashable], scores: Scores) -> list[Choice | InferenceError]:
        """The next token of each row from ``scores`` (rows, vocabulary), which are not changed.

        A row whose scores are not numbers, or whose grammar allows nothing, has its error in its place: the row fails
        alone.
        """
        return [self._choice(self._rows[key], row) for key, row in zip(keys, scores, strict=True)]

    def choose_from(
        self, keys: Sequence[Hashable], token_ids: NDArray[np.int64], scores: Scores
    ) -> list[Choice | InferenceError]:
        """The same from the best tokens alone: ids and scores (rows, k), best first, k at least what was needed."""
        return [
            self._rows[key].choose_from(ids, row) if np.isfinite(row[0]) else _not_numbers()
            for key, ids, row in zip(keys, token_ids, scores, strict=True)
        ]

    def _choice(self, row: _Row, scores: Scores) -> Choice | InferenceError:
        best_id = int(scores.argmax())  # of a row with a NaN, the NaN
        best = float(scores[best_id])
        if not math.isfinite(best):
            return _not_numbers()
        try:
            return row.choose(scores, best_id, best)
        except InferenceError as error:
            return error


def _not_numbers() -> InferenceError:
    return InferenceError(
        "the model's scores are not numbers (NaN or infinite): its weights or their precision do not fit this prompt",
        details={"reason": "not_finite"},
    )
