"""What rows take from the prefix cache and leave in it."""

from collections.abc import Sequence
from typing import Any

from rbee.worker.engine.batch.decoders import BatchDecoder
from rbee.worker.engine.batch.prefix import BLOCK_TOKENS, PrefixCache, chain_of, common_blocks
from rbee.worker.engine.batch.row import Row


class PrefixReuse:
    """Moves blocks between a decoder's rows and the prefix cache; does nothing where the cache is off.

    It is off for a decoder whose results depend on what is computed together: what was computed for another prompt
    is not what this one would get.
    """

    def __init__(self, decoder: BatchDecoder[Any], prefixes: PrefixCache[Any]) -> None:
        self._decoder = decoder
        self._prefixes = prefixes
        self._on = prefixes.on and not decoder.whole_prompts

    def begin(self, row: Row) -> None:
        """A row enters with an empty cache."""
        row.chain = chain_of(row.tokens) if self._on else ()
        row.saved, row.looked_up = 0, False

    def waits(self, row: Row, earlier: Sequence[Row]) -> bool:
        """Whether an earlier row is reading what this one begins with: it takes that over instead of reading it too."""
        if row.cached or not row.chain:
            return False
        reading = [other for other in earlier if other.pending > 1 and not other.stream.held]
        shared = max((common_blocks(row.chain, other.chain) for other in reading), default=0)
        return not all(key in self._prefixes for key in row.chain[:shared])

    def take(self, row: Row) -> None:
        """Before a row's first reading: begin its cache with what is known of its prompt."""
        if row.looked_up or not self._on:
            return
        row.looked_up = True
        # the last token is always computed: its scores are what the first choice is made from
        blocks = self._prefixes.find(row.chain[: (len(row.tokens) - 1) // BLOCK_TOKENS])
        self._prefixes.count(len(blocks))
        if blocks:
            self._decoder.load(row.key, blocks)
            row.saved = len(blocks)
            row.cached = len(blocks) * BLOCK_TOKENS

    def keep(self, row: Row) -> None:
        """Keep the blocks that a row has filled since the last time."""
        while row.saved < len(row.chain) and (row.saved + 1) * BLOCK_TOKENS <= row.cached:
            key, start = row.chain[row.saved], row.saved * BLOCK_TOKENS
            if key not in self._prefixes:
                self._prefixes.add(key, self._decoder.save(row.key, start, start + BLOCK_TOKENS))
            row.saved += 1

    def finish(self, row: Row) -> None:
        """A row has ended: the next turn of its conversation begins with its prompt and its answer."""
        if self._on:
            row.chain = chain_of(row.tokens[: row.cached])
            self.keep(row)
