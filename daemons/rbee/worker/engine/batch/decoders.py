"""What the loop asks of a decoder that holds the caches of many rows, whatever kind of graph it runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from rbee.worker.engine.batch.host_kv import HostBlock
from rbee.worker.engine.batch.scores import RowScores
from rbee.worker.engine.sessions import RunOptions


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of a row's prompt; ``start`` tokens of it are in the cache."""

    key: int
    start: int
    tokens: Sequence[int]


class Token(NamedTuple):
    """A decoding row's last token; ``start`` tokens are in the cache before it."""

    key: int
    start: int
    token: int


class BatchDecoder(Protocol):
    """Rows by key, each with its cache. Belongs to one thread. A run that fails raises InferenceError."""

    whole_prompts: bool
    """Whether results depend on what is computed together: each prompt then is read in one piece, each row alone."""
    token_bytes: int
    """Bytes of keys and values of one token."""
    most_tokens: int
    """Prompt tokens that one step may read."""

    def size(self, rows: int, tokens: int) -> int:
        """Bytes that the caches take with so many rows of at most ``tokens`` tokens."""

    def open(self, key: int, tokens: int) -> None:
        """A row begins with an empty cache; as many ``tokens`` will be read into it."""

    def close(self, key: int) -> None:
        """A row is over; an unknown key is no error."""

    def read(self, chunks: Sequence[Chunk], options: RunOptions) -> RowScores:
        """Read parts of prompts into the caches: the scores after the last token of each."""

    def step(self, tokens: Sequence[Token], options: RunOptions) -> RowScores:
        """One token of each row: the scores after it."""

    def save(self, key: int, start: int, stop: int) -> list[HostBlock]:
        """A copy of the keys and values of a row's tokens ``start`` to ``stop``, which are whole blocks."""

    def load(self, key: int, blocks: Sequence[HostBlock]) -> None:
        """Begin a row's cache with these blocks."""
