"""Scores documents against a query with a cross-encoder: each pair is read as one, and gets one number."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rbee.wire.errors import ConfigError, InferenceError
from rbee.worker.engine.encoder import Encoder, Floats, Mask
from rbee.worker.engine.recognise import FolderFacts
from rbee.worker.engine.runner import Runner
from rbee.worker.engine.sessions import Session
from rbee.worker.engine.shared_runs import RunCounts
from rbee.worker.engine.token_batches import Budget
from rbee.worker.engine.tokenise import TextReader

LOGITS = "logits"
ACTIVATIONS = {"Sigmoid": True, "Identity": False}


@dataclass(frozen=True, slots=True)
class Ranked:
    """A score for each document, in their order, and the tokens that the encoder read."""

    scores: list[float]
    prompt_tokens: int


def has_sigmoid(facts: FolderFacts) -> bool:
    """Whether scores are sigmoids of the logits, as config.json says in either of sentence-transformers' ways.

    Where it says nothing they are: that is the library's own choice for one label. Raises ConfigError for another
    activation.
    """
    config = facts.config("config.json")
    newer = config.get("sentence_transformers")
    said = newer.get("activation_fn") if isinstance(newer, dict) else None
    said = said or config.get("sbert_ce_default_activation_function")
    if said is None:
        return True
    name = str(said).rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise ConfigError(f"config.json: the activation {name[:64]} is not served; use Sigmoid or Identity")
    return ACTIVATIONS[name]


class Ranker:
    """A cross-encoder with its tokenizer. Requests that overlap share its runs."""

    def __init__(
        self, session: Session, facts: FolderFacts, reader: TextReader, runner: Runner, budget: Budget
    ) -> None:
        self._sigmoid = has_sigmoid(facts)
        self._reader = reader
        names = [tensor.name for tensor in session.get_outputs()]
        self._encoder = Encoder(session, LOGITS if LOGITS in names else names[0], self._scores, runner, budget)

    @property
    def counts(self) -> RunCounts:
        """What was run so far."""
        return self._encoder.counts

    async def rank(self, query: str, documents: Sequence[str], *, truncate: bool | None = None) -> Ranked:
        """Score ``documents``; raises InvalidRequest for a pair that is too long.

        ``truncate`` True cuts a document's end so that its pair fits, False refuses it, None does what the model's
        files say.
        """
        letters = sum(len(query) + len(text) for text in documents)
        rows = await self._encoder.rows(letters, lambda: self._reader.pairs(query, documents, truncate))
        found = await self._encoder.floats(rows)
        return Ranked(found[:, 0].tolist(), sum(len(row.ids) for row in rows))

    def warm_up(self) -> None:
        """One real inference, in the calling thread; raises InferenceError for a model with other than one score."""
        self._encoder.run(self._reader.pairs("warm-up", ["warm-up"], None))

    def _scores(self, logits: Floats, mask: Mask) -> Floats:
        if logits.shape not in ((len(mask), 1), (len(mask),)):
            raise InferenceError(f"a cross-encoder gives one score for each pair, and this model gave {logits.shape}")
        column = logits.reshape(-1, 1)
        if not self._sigmoid:
            return column
        # of the negative magnitude alone, which cannot overflow
        small = np.exp(-np.abs(column))
        return np.where(column >= 0, 1 / (1 + small), small / (1 + small)).astype(np.float32)
