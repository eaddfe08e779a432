"""What rows take from the prefix cache and leave in it."""

import logging
from collections.abc import Callable, Sequence
from itertools import takewhile

from rbee.wire.errors import InferenceError
from rbee.worker.engine.batch.decoders import BatchDecoder
from rbee.worker.engine.batch.host_kv import HostBlock
from rbee.worker.engine.batch.prefix import BLOCK_TOKENS, PrefixCache, chain_of, common_blocks
from rbee.worker.engine.batch.row import Row

LOGGER = logging.getLogger(__name__)


class PrefixReuse:
    """Moves blocks between a decoder's rows and the prefix cache; does nothing where the cache is off.

    It is off for a decoder whose results depend on what is computed together: what was computed for another prompt
    is not what this one would get.
    """

    def __init__(self, decoder: BatchDecoder, prefixes: PrefixCache[HostBlock]) -> None:
        self._decoder = decoder
        self._prefixes = prefixes
        self._on = prefixes.on and not decoder.whole_prompts

    def begin(self, row: Row) -> None:
        """A row enters with an empty cache."""
        row.chain = chain_of(row.tokens) if self._on else ()
        row.saved, row.looked_up = 0, False

    def waits(self, row: Row, rows: Sequence[Row]) -> bool:
        """Whether one of the ``rows`` before this one reads what it begins with: then it takes that over."""
        if row.cached or not row.chain:
            return False
        earlier = takewhile(lambda other: other is not row, rows)
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
        if blocks and self._possible(lambda: self._decoder.load(row.key, blocks)):
            row.saved = len(blocks)
            row.cached = len(blocks) * BLOCK_TOKENS

    def keep(self, row: Row) -> None:
        """Keep the blocks that a row has filled since the last time."""
        filled = min(len(row.chain), row.cached // BLOCK_TOKENS)
        while row.saved < filled and row.chain[row.saved] in self._prefixes:
            row.saved += 1
        if row.saved >= filled:
            return
        start, row.saved = row.saved, filled
        self._possible(lambda: self._save(row, start))

    def _save(self, row: Row, start: int) -> None:
        """Keep a row's blocks from number ``start`` on."""
        blocks = self._decoder.save(row.key, start * BLOCK_TOKENS, row.saved * BLOCK_TOKENS)
        self._prefixes.keep(row.chain[: row.saved], blocks)

    @staticmethod
    def _possible(work: Callable[[], None]) -> bool:
        """Whether ``work`` could be done: a device without memory for it costs time, and no row its text."""
        try:
            work()
        except InferenceError:
            LOGGER.warning("a prompt's keys and values could not be kept or taken over", exc_info=True)
            return False
        return True

    def finish(self, row: Row) -> None:
        """A row has ended: the next turn of its conversation begins with its prompt and its answer."""
        if self._on:
            row.chain = chain_of(row.tokens[: row.cached])
            self.keep(row)
