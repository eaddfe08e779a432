"""Turns texts into vectors: tokenise, pad, run the encoder, pool, normalise, as the model's own files say."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rbee.wire.errors import ConfigError, InvalidRequest
from rbee.worker.engine.recognise import FolderFacts
from rbee.worker.engine.sessions import Array, Runner, RunOptions, Session, run_session
from rbee.worker.engine.tokenise import LengthRule

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Vectors = NDArray[np.float32]
BATCH_TOKENS = 8192
HIDDEN_OUTPUTS = ("last_hidden_state", "token_embeddings", "hidden_states")
SENTENCE_OUTPUT = "sentence_embedding"


class Pooling(enum.StrEnum):
    """How token vectors become one: their mean, the first token's, or the last token's."""

    MEAN = "mean"
    CLS = "cls"
    LAST = "last"


@dataclass(frozen=True, slots=True)
class PoolingRule:
    """What sentence-transformers' files say: the pooling, and whether vectors get length 1."""

    pooling: Pooling
    normalise: bool


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors in the order of the texts, and the tokens that the encoder read."""

    vectors: Vectors
    prompt_tokens: int


def pooling_rule(facts: FolderFacts) -> PoolingRule:
    """Read 1_Pooling/config.json and modules.json; without them: mean, length 1. Raises ConfigError for other modes."""
    config = facts.config("1_Pooling/config.json")
    chosen = {
        "pooling_mode_cls_token": Pooling.CLS,
        "pooling_mode_mean_tokens": Pooling.MEAN,
        "pooling_mode_lasttoken": Pooling.LAST,
    }
    on = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    unknown = [name for name in on if name not in chosen]
    if unknown or len(on) > 1:
        raise ConfigError(f"1_Pooling/config.json: pooling {', '.join(on)} is not served; use mean, cls or last token")
    pooling = chosen[on[0]] if on else Pooling.MEAN
    if "modules.json" not in facts.files:
        return PoolingRule(pooling, normalise=True)
    modules = facts.config("modules.json").get("modules", [])
    kinds = [str(module.get("type", "")) for module in modules if isinstance(module, dict)]
    return PoolingRule(pooling, normalise=any(kind.endswith("Normalize") for kind in kinds))


def pool(hidden: Vectors, mask: NDArray[np.int64], rule: PoolingRule) -> Vectors:
    """Pool ``hidden`` (texts, tokens, size) over the tokens that ``mask`` (texts, tokens) marks; right-padded."""
    if rule.pooling is Pooling.CLS:
        vectors = hidden[:, 0]
    elif rule.pooling is Pooling.LAST:
        last = np.maximum(mask.sum(axis=1) - 1, 0)
        vectors = hidden[np.arange(len(hidden)), last]
    else:
        weights = mask[:, :, None].astype(np.float32)
        vectors = np.asarray((hidden * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9))
    return normalised(vectors) if rule.normalise else vectors


def normalised(vectors: Vectors) -> Vectors:
    """Each row divided by its length."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return result


def plan_batches(lengths: Sequence[int], budget: int = BATCH_TOKENS) -> list[list[int]]:
    """Group text indices, longest first, so that rows times longest stays within ``budget`` tokens."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        longest = lengths[batches[-1][0]] if batches else 0
        if batches and (len(batches[-1]) + 1) * longest <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


class Embedder:
    """An encoder with its tokenizer. Calls may overlap; each runs its batches in order."""

    def __init__(
        self, session: Session, tokenizer: "Tokenizer", facts: FolderFacts, length: LengthRule, runner: Runner
    ) -> None:
        self._session = session
        self._tokenizer = tokenizer
        self._length = length
        self._runner = runner
        self._rule = pooling_rule(facts)
        self._inputs = [tensor.name for tensor in session.get_inputs()]
        self._output = _output_of(session)

    async def embed(self, texts: Sequence[str] | Sequence[Sequence[int]]) -> Embedded:
        """Embed ``texts`` (strings or token ids); raises InvalidRequest for a text that is too long or empty."""
        rows = await self._runner.step(lambda _: self._rows(texts))
        vectors: list[Vectors | None] = [None] * len(rows)
        for batch in plan_batches([len(row) for row in rows]):
            found = await self._runner.step(partial(self._run, [rows[index] for index in batch]))
            for index, vector in zip(batch, found, strict=True):
                vectors[index] = vector
        return Embedded(np.stack([each for each in vectors if each is not None]), sum(map(len, rows)))

    def warm_up(self) -> None:
        """One real inference, in the calling thread."""
        self._run(self._rows(["warm-up"]), None)

    def _rows(self, texts: Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
        rows = [self._encode(text) if isinstance(text, str) else list(text) for text in texts]
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        return [self._checked(row, index, size) for index, row in enumerate(rows)]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        limit = self._length.limit
        if len(ids) <= limit or not self._length.truncate:
            return ids
        special = self._tokenizer.num_special_tokens_to_add(False)
        bare = self._tokenizer.encode(text, add_special_tokens=False)
        bare.truncate(limit - special)
        return list(self._tokenizer.post_process(bare).ids)

    def _checked(self, row: list[int], index: int, vocabulary: int) -> list[int]:
        if not row:
            raise InvalidRequest(f"input {index} is empty: send at least one token", param="input")
        if any(not 0 <= token < vocabulary for token in row):
            raise InvalidRequest(f"input {index} has a token id outside the vocabulary", param="input")
        limit = self._length.limit
        if len(row) > limit:
            raise InvalidRequest(
                f"input {index} has {len(row)} tokens and the model reads {limit}: shorten it",
                details={"tokens": len(row), "limit": limit},
                param="input",
            )
        return row

    def _run(self, rows: Sequence[Sequence[int]], options: RunOptions | None) -> Vectors:
        width = max(len(row) for row in rows)
        ids = np.zeros((len(rows), width), np.int64)
        mask = np.zeros((len(rows), width), np.int64)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
            mask[at, : len(row)] = 1
        known = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        feeds: dict[str, Array] = {name: known[name] for name in self._inputs}
        (found,) = run_session(self._session, [self._output], feeds, options)
        found = found.astype(np.float32, copy=False)
        if found.ndim == 2:
            return normalised(found) if self._rule.normalise else found
        return pool(found, mask, self._rule)


def _output_of(session: Session) -> str:
    names = [tensor.name for tensor in session.get_outputs()]
    unknown = {tensor.name for tensor in session.get_inputs()} - {"input_ids", "attention_mask", "token_type_ids"}
    if unknown:
        raise ConfigError(f"the encoder wants inputs that embedding cannot give: {', '.join(sorted(unknown))}")
    for name in (SENTENCE_OUTPUT, *HIDDEN_OUTPUTS):
        if name in names:
            return name
    return str(names[0])
