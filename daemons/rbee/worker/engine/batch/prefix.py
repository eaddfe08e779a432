"""The prefix cache: keys and values of blocks of tokens that prompts begin with, bounded in bytes, oldest out first.

A block's key covers every token before it as well, so that a chain of keys stands for one prefix. A use of a prefix
touches its blocks from the last to the first: what is thrown out first is the far end of a prefix, never its middle.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

BLOCK_TOKENS = 32
"""Tokens of a block: small, because what does not fill one is computed again."""
KEY_BYTES = 16

Block = TypeVar("Block")
Chain = tuple[bytes, ...]


@dataclass(slots=True)
class PrefixCounts:
    """What the cache has done: prompts that found something, tokens they did not compute again, bytes held."""

    hits: int = 0
    misses: int = 0
    reused_tokens: int = 0
    held_bytes: int = 0


def chain_of(tokens: Sequence[int]) -> Chain:
    """The keys of the full blocks that ``tokens`` begin with."""
    data = np.asarray(tokens, np.int64)
    keys, before = [], b""
    for start in range(0, len(data) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        block = data[start : start + BLOCK_TOKENS].tobytes()
        before = hashlib.blake2b(before + block, digest_size=KEY_BYTES).digest()
        keys.append(before)
    return tuple(keys)


def common_blocks(one: Chain, other: Chain) -> int:
    """How many blocks two prompts begin with in common."""
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return index
    return min(len(one), len(other))


class PrefixCache(Generic[Block]):
    """Blocks by key. All blocks have the same size of ``block_bytes``; ``limit_bytes`` 0 keeps none."""

    def __init__(self, limit_bytes: int, block_bytes: int) -> None:
        self._most = limit_bytes // block_bytes if block_bytes else 0
        self._block_bytes = block_bytes
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self.counts = PrefixCounts()

    @property
    def on(self) -> bool:
        """Whether anything can be kept at all."""
        return self._most > 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._blocks

    def find(self, chain: Sequence[bytes]) -> list[Block]:
        """The blocks of the longest known prefix of ``chain``, from its start."""
        known = 0
        while known < len(chain) and chain[known] in self._blocks:
            known += 1
        self._touch(chain[:known])
        return [self._blocks[key] for key in chain[:known]]

    def count(self, blocks: int) -> None:
        """Note that a prompt was looked up and found so many blocks."""
        self.counts.hits += blocks > 0
        self.counts.misses += blocks == 0
        self.counts.reused_tokens += blocks * BLOCK_TOKENS

    def keep(self, chain: Sequence[bytes], blocks: Sequence[Block]) -> None:
        """Keep the last ``blocks`` of ``chain``, in place of those that were not used for longest."""
        self._blocks.update(zip(chain[-len(blocks) :], blocks, strict=True))
        self._touch(chain)
        while len(self._blocks) > self._most:
            self._blocks.popitem(last=False)
        self.counts.held_bytes = len(self._blocks) * self._block_bytes

    def _touch(self, chain: Sequence[bytes]) -> None:
        for key in reversed(chain):
            if key in self._blocks:
                self._blocks.move_to_end(key)
