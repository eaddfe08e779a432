"""Shared buffers of keys and values in the host's memory: one for each tensor of the cache, a row a slot."""

import mmap
from collections.abc import Mapping, Sequence
from math import prod
from typing import TypeAlias

import numpy as np

from rbee.worker.engine.batch.prefix import BLOCK_TOKENS
from rbee.worker.engine.decoder import CachePair
from rbee.worker.engine.sessions import Array, Binding, numpy_type

HostBlock: TypeAlias = tuple[Array, ...]
"""Some tokens' keys and values of one row, a tensor (heads, tokens, head size) for each pair of the cache."""

SMALLEST_CAPACITY = 256
"""Tokens: rows are counted, and what shows their lengths is made, in powers of two times so many."""
KEPT_TOKENS = SMALLEST_CAPACITY
"""Memory for so many tokens, which are counted anyway, stays with a slot whose row has ended, for the next one."""


def _may_have(size: int) -> bool:
    """Whether the kernel gives so much memory that is not filled: vm.overcommit_memory may forbid it."""
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError:
        return False
    return True


def cut(values: Sequence[Array]) -> list[HostBlock]:
    """Tensors (heads, tokens, head size) of some whole blocks, as copies of a block each."""
    starts = range(0, values[0].shape[1], BLOCK_TOKENS)
    return [tuple(value[:, start : start + BLOCK_TOKENS].copy() for value in values) for start in starts]


class HostKv:
    """Buffers (slots, heads, capacity, head size) that a decoder reads and writes in place."""

    least_slots, least_capacity = 8, 2048

    def __init__(self, pairs: Sequence[CachePair]) -> None:
        self._pairs = pairs
        if not _may_have(self.least_slots * self.least_capacity * sum(pair.token_bytes for pair in pairs)):
            self.least_slots, self.least_capacity = 1, SMALLEST_CAPACITY
        self._pages: list[mmap.mmap] = []
        self._buffers = [self._empty(pair, 0, 0) for pair in pairs]

    def resize(self, slots: int, capacity: int, held: Mapping[int, int]) -> None:
        """Take new sizes; ``held`` tells how many tokens of which slots go along."""
        self._pages = []
        for index, pair in enumerate(self._pairs):  # one by one: both sizes of one tensor are there at once, not of all
            before, after = self._buffers[index], self._empty(pair, slots, capacity)
            for slot, length in held.items():
                after[slot, :, :length] = before[slot, :, :length]
            self._buffers[index] = after

    def free(self, slot: int, length: int) -> None:
        """Give back the memory of a slot whose ``length`` tokens are not needed any more, where they were many."""
        if length <= KEPT_TOKENS:
            return
        for buffer, pages in zip(self._buffers, self._pages, strict=True):
            size = buffer[slot].nbytes
            start = -(-slot * size // mmap.PAGESIZE) * mmap.PAGESIZE
            stop = (slot + 1) * size // mmap.PAGESIZE * mmap.PAGESIZE
            if start < stop:
                pages.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def _empty(self, pair: CachePair, slots: int, capacity: int) -> Array:
        _, heads, _, size = pair.empty_shape
        shape, element = (slots, heads, capacity, size), numpy_type(pair.element)
        if not slots:
            return np.zeros(shape, element)
        # small pages: what a row does not fill then takes no memory, and costs no time when the buffers grow
        pages = mmap.mmap(-1, prod(shape) * element.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.madvise(mmap.MADV_NOHUGEPAGE)
        self._pages.append(pages)
        return np.frombuffer(pages, element).reshape(shape)

    def bind(self, binding: Binding, slot: int, count: int) -> None:
        """Bind past and present of ``count`` slots from ``slot`` on to their place in the buffers."""
        for pair, buffer in zip(self._pairs, self._buffers, strict=True):
            rows = buffer[slot : slot + count]
            where = ("cpu", 0, rows.dtype, rows.shape, rows.ctypes.data)
            binding.bind_input(pair.past, *where)
            binding.bind_output(pair.present, *where)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy ``length`` tokens of one slot to another."""
        for buffer in self._buffers:
            buffer[target, :, :length] = buffer[source, :, :length]

    def save(self, slot: int, start: int, stop: int) -> list[HostBlock]:
        """A copy of the tokens ``start`` to ``stop`` of a slot, cut into blocks."""
        return cut([buffer[slot, :, start:stop] for buffer in self._buffers])

    def load(self, slot: int, blocks: Sequence[HostBlock]) -> None:
        """Write blocks, one after the other, to the beginning of a slot."""
        for index, buffer in enumerate(self._buffers):
            at = 0
            for block in blocks:
                part = block[index]
                buffer[slot, :, at : at + part.shape[1]] = part
                at += part.shape[1]
