"""Reads texts as an encoder's tokens: its tokenizer, and how long a text may be by the model's own files."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rbee.wire.errors import ConfigError, InvalidRequest
from rbee.worker.engine.folder import TOKENIZER_FILE
from rbee.worker.engine.recognise import UNBOUNDED_LENGTH, FolderFacts

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

DEFAULT_LENGTH = 2048
PARALLELISM = "TOKENIZERS_PARALLELISM"
CHUNK = 64
"""Texts that are read in one call: the library makes Python's objects of them with the interpreter held."""


@dataclass(frozen=True, slots=True)
class LengthRule:
    """How long an encoder's input may be, in tokens; ``truncate`` only where the model's own files say so."""

    limit: int
    truncate: bool


def load_tokenizer(folder: Path) -> "tuple[Tokenizer, int | None]":
    """The model's tokenizer without padding and truncation, and the length it declared; raises ConfigError."""
    # a thread reads each request's texts; threads of the library's own would take the model's cores
    os.environ.setdefault(PARALLELISM, "false")
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


def vocabulary_size(tokenizer: "Tokenizer") -> int:
    """The highest token id and one more, added tokens included: there may be fewer tokens, with gaps between ids."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1


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


class TokenRow(NamedTuple):
    """One text, or one pair of texts, as an encoder reads it; ``types`` None is a single text, all zeros."""

    ids: Sequence[int]
    types: Sequence[int] | None = None


class TextReader:
    """An encoder's tokenizer with its rule of length. Reading is for a thread: the library lets the loop go on."""

    def __init__(self, tokenizer: "Tokenizer", rule: LengthRule) -> None:
        self._tokenizer = tokenizer
        self._rule = rule
        self._vocabulary = vocabulary_size(tokenizer)

    def rows(self, texts: Sequence[str | Sequence[int]], truncate: bool | None) -> list[TokenRow]:
        """The tokens of each of ``texts`` (strings or token ids).

        ``truncate`` True cuts the end of one that is too long, False refuses it, None does what the model's files say.
        Raises InvalidRequest for one that is too long, empty, or has an id outside the vocabulary.
        """
        cut = self._rule.truncate if truncate is None else truncate
        strings = [text for text in texts if isinstance(text, str)]
        encoded = iter(self._encoded(strings, cut))
        rows = [
            next(encoded) if isinstance(text, str) else self._given(text, index, cut)
            for index, text in enumerate(texts)
        ]
        for index, row in enumerate(rows):
            self._check(row, index, "input")
        return [TokenRow(row) for row in rows]

    def pairs(self, query: str, documents: Sequence[str], truncate: bool | None) -> list[TokenRow]:
        """``query`` with each of ``documents`` as the tokenizer joins two texts; ``truncate`` cuts a document's end.

        Raises InvalidRequest for a pair that is too long, and for a query that leaves a document no room.
        """
        cut = self._rule.truncate if truncate is None else truncate
        asked = self._tokenizer.encode(query, add_special_tokens=False)
        room = self._rule.limit - self._tokenizer.num_special_tokens_to_add(True) - len(asked.ids)
        if not asked.ids or room < 1:
            raise InvalidRequest(
                f"the query has {len(asked.ids)} tokens and the model reads {self._rule.limit} with a document's: "
                "it wants at least one, and to leave a document room",
                details={"tokens": len(asked.ids), "limit": self._rule.limit},
                param="query",
            )
        rows: list[TokenRow] = []
        for first in range(0, len(documents), CHUNK):
            chunk = documents[first : first + CHUNK]
            rows.extend(
                TokenRow(found.ids, found.type_ids)
                for found in self._tokenizer.encode_batch_fast([(query, text) for text in chunk])
            )
        for index, row in enumerate(rows):
            if len(row.ids) > self._rule.limit and cut:
                rows[index] = self._cut_pair(asked, documents[index], room)
            else:
                self._check(row.ids, index, "documents")
        return rows

    def _cut_pair(self, asked: "Encoding", document: str, room: int) -> TokenRow:
        read = self._tokenizer.encode(document, add_special_tokens=False)
        read.truncate(room)
        found = self._tokenizer.post_process(asked, read)
        return TokenRow(found.ids, found.type_ids)

    def _encoded(self, texts: Sequence[str], cut: bool) -> list[list[int]]:
        rows: list[list[int]] = []
        for first in range(0, len(texts), CHUNK):
            chunk = texts[first : first + CHUNK]
            rows.extend(found.ids for found in self._tokenizer.encode_batch_fast(chunk))
        limit = self._rule.limit
        return [self._cut(texts[at]) if cut and len(row) > limit else row for at, row in enumerate(rows)]

    def _cut(self, text: str) -> list[int]:
        special = self._tokenizer.num_special_tokens_to_add(False)
        bare = self._tokenizer.encode(text, add_special_tokens=False)
        bare.truncate(max(0, self._rule.limit - special))
        return list(self._tokenizer.post_process(bare).ids)

    def _given(self, ids: Sequence[int], index: int, cut: bool) -> list[int]:
        if any(not 0 <= token < self._vocabulary for token in ids):
            raise InvalidRequest(f"input {index} has a token id outside the vocabulary", param="input")
        return list(ids[: self._rule.limit] if cut else ids)

    def _check(self, row: Sequence[int], index: int, field: str) -> None:
        if not row:
            raise InvalidRequest(f"{field} {index} is empty: send at least one token", param=field)
        limit = self._rule.limit
        if len(row) > limit:
            raise InvalidRequest(
                f"{field} {index} has {len(row)} tokens and the model reads {limit}: shorten it, or ask to truncate",
                details={"tokens": len(row), "limit": limit},
                param=field,
            )
