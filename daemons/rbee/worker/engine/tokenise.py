"""Loads a model's tokenizer and reads from the model's own files how long a text may be."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rbee.wire.errors import ConfigError
from rbee.worker.engine.folder import TOKENIZER_FILE
from rbee.worker.engine.recognise import UNBOUNDED_LENGTH, FolderFacts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_LENGTH = 2048


@dataclass(frozen=True, slots=True)
class LengthRule:
    """How long an encoder's input may be, in tokens; ``truncate`` only where the model's own files say so."""

    limit: int
    truncate: bool


def load_tokenizer(folder: Path) -> "tuple[Tokenizer, int | None]":
    """The model's tokenizer without padding and truncation, and the length it declared; raises ConfigError."""
    from tokenizers import Tokenizer

    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise ConfigError(f"{TOKENIZER_FILE}: missing; this task needs the model's tokenizer: fetch the model again")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        reason = str(error).replace(str(folder), "")[:300]
        raise ConfigError(f"{TOKENIZER_FILE}: cannot be read ({reason}); fetch the model again") from None
    truncation = tokenizer.truncation
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, None if truncation is None else int(truncation["max_length"])


def length_rule(facts: FolderFacts, declared_truncation: int | None, context_length: int | None) -> LengthRule:
    """The rule for an encoder. ``declared_truncation`` is tokenizer.json's own max_length, if it has one.

    sentence_bert_config.json wins (it is what the model was evaluated with), then the tokenizer's truncation; without
    either a text over the context is refused.
    """
    sentence = facts.config("sentence_bert_config.json").get("max_seq_length")
    for value in (sentence, declared_truncation):
        if isinstance(value, int) and 0 < value < UNBOUNDED_LENGTH:
            limit = min(value, context_length) if context_length is not None else value
            return LengthRule(limit, truncate=True)
    # attention's memory grows with the square of the length: a model that names none is not without one
    return LengthRule(context_length if context_length is not None else DEFAULT_LENGTH, truncate=False)
