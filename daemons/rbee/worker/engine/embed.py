"""Turns texts into vectors: read, run the encoder, pool, normalise, as the model's own files say."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rbee.wire.errors import ConfigError, InvalidRequest
from rbee.worker.engine.encoder import Encoder, Floats, Mask
from rbee.worker.engine.recognise import FolderFacts
from rbee.worker.engine.runner import Runner
from rbee.worker.engine.sessions import Session
from rbee.worker.engine.shared_runs import RunCounts
from rbee.worker.engine.token_batches import Budget
from rbee.worker.engine.tokenise import TextReader

HIDDEN_OUTPUTS = ("last_hidden_state", "token_embeddings", "hidden_states")
SENTENCE_OUTPUT = "sentence_embedding"
MODULES = ("Transformer", "Pooling", "Normalize")
"""The modules of sentence-transformers that are served; any other would change the vectors."""


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

    vectors: Floats
    prompt_tokens: int


def pooling_rule(facts: FolderFacts) -> PoolingRule:
    """Read 1_Pooling/config.json and modules.json; without them: mean, length 1.

    Raises ConfigError for another way of pooling, and for a further module that the ONNX file does not have in it.
    """
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
    foreign = [kind for kind in kinds if not kind.endswith(MODULES)]
    if foreign and SENTENCE_OUTPUT not in facts.graph.output_names:
        raise ConfigError(
            f"modules.json: {foreign[0][:100]} is not served; export the whole model, with an output {SENTENCE_OUTPUT}"
        )
    return PoolingRule(pooling, normalise=any(kind.endswith("Normalize") for kind in kinds))


def pool(hidden: Floats, mask: Mask, rule: PoolingRule) -> Floats:
    """Pool ``hidden`` (texts, tokens, size) over the tokens that ``mask`` (texts, tokens) marks; right-padded.

    What the model pooled itself (texts, size) stays as it is.
    """
    if hidden.ndim == 2:
        vectors = hidden
    elif rule.pooling is Pooling.CLS:
        vectors = hidden[:, 0]
    elif rule.pooling is Pooling.LAST:
        last = np.maximum(mask.sum(axis=1) - 1, 0)
        vectors = hidden[np.arange(len(hidden)), last]
    else:
        weights = mask[:, :, None].astype(np.float32)
        vectors = np.asarray((hidden * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9))
    return normalised(vectors) if rule.normalise else vectors


def normalised(vectors: Floats) -> Floats:
    """Each row divided by its length."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: Floats = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return result


class Embedder:
    """An encoder with its tokenizer. Requests that overlap share its runs."""

    def __init__(
        self, session: Session, facts: FolderFacts, reader: TextReader, runner: Runner, budget: Budget
    ) -> None:
        self._rule = rule = pooling_rule(facts)
        self._reader = reader
        self._encoder = Encoder(
            session, _output_of(session), lambda hidden, mask: pool(hidden, mask, rule), runner, budget
        )
        self._size: int | None = None

    @property
    def counts(self) -> RunCounts:
        """What was run so far."""
        return self._encoder.counts

    async def embed(
        self,
        texts: Sequence[str | Sequence[int]],
        *,
        dimensions: int | None = None,
        truncate: bool | None = None,
    ) -> Embedded:
        """Embed ``texts`` (strings or token ids); raises InvalidRequest for a text that is too long or empty.

        ``dimensions`` keeps each vector's first ones (Kusupati et al. 2022, "Matryoshka Representation Learning"), of
        length 1 again where the model's are. ``truncate`` None is what the model's own files say.
        """
        if dimensions is not None and self._size is not None and dimensions > self._size:
            raise InvalidRequest(
                f"dimensions is {dimensions} and the model's vectors have {self._size}: ask for no more",
                details={"dimensions": dimensions, "limit": self._size},
                param="dimensions",
            )
        rows = await self._encoder.rows(sum(map(len, texts)), lambda: self._reader.rows(texts, truncate))
        vectors = await self._encoder.floats(rows)
        if dimensions is not None:
            vectors = vectors[:, :dimensions]
            vectors = normalised(vectors) if self._rule.normalise else vectors
        return Embedded(vectors, sum(len(row.ids) for row in rows))

    def warm_up(self) -> None:
        """One real inference, in the calling thread; it tells how long the model's vectors are."""
        found = self._encoder.run(self._reader.rows(["warm-up"], None))
        self._size = found.shape[-1]


def _output_of(session: Session) -> str:
    names = [tensor.name for tensor in session.get_outputs()]
    for name in (SENTENCE_OUTPUT, *HIDDEN_OUTPUTS):
        if name in names:
            return name
    return str(names[0])
