"""Decoders with GroupQueryAttention: all rows' keys and values lie in shared buffers that are updated in place.

A decoding step runs the slots from 0 to the highest that decodes. Slots between them that do not decode are computed
too: what they write lies behind their last token, where the next one overwrites it. Rows move into free slots so that
there are few of those.
"""

from collections.abc import Sequence

import numpy as np

from rbee.worker.engine.batch.decoders import Chunk, Token
from rbee.worker.engine.batch.host_kv import HostBlock, HostKv
from rbee.worker.engine.batch.plan import MOST_TOKENS, contiguous_runs
from rbee.worker.engine.decoder import DecoderLayout
from rbee.worker.engine.sampling import Scores
from rbee.worker.engine.sessions import Array, Binding, RunOptions, Session, numpy_type, run_bound

SMALLEST_CAPACITY = 256
MOST_SCORES_BYTES = 256 << 20


def rounded(need: int, least: int, most: int) -> int:
    """``need`` rounded up to a power of two times ``least``, at most ``most``: buffers grow seldom."""
    size = least
    while size < need:
        size *= 2
    return max(need, min(size, most))


class SharedDecoder:
    """Implements BatchDecoder on buffers of ``slots`` rows of at most ``context`` tokens."""

    def __init__(self, session: Session, layout: DecoderLayout, vocabulary: int, slots: int, context: int) -> None:
        self._session = session
        self._layout = layout
        self._vocabulary = vocabulary
        self._most_slots = slots
        self._context = context
        self._kv = HostKv(layout.pairs)
        self._slots: list[int | None] = []
        self._lengths: list[int] = []
        self._capacity = 0
        self._bindings: dict[tuple[int, int], Binding] = {}
        self._scores_type = numpy_type(layout.scores_element)
        self._read_scores = np.empty(0, self._scores_type)
        self._inputs = _StepInputs(layout, 0, 0)
        self._step_scores = np.empty((0, 1, vocabulary), self._scores_type)
        self.whole_prompts = layout.scales_by_content
        self.token_bytes = layout.token_bytes
        self.most_tokens = max(1, min(MOST_TOKENS, MOST_SCORES_BYTES // (vocabulary * self._scores_type.itemsize)))

    def size(self, rows: int, tokens: int) -> int:
        """See BatchDecoder."""
        slots, capacity = rounded(rows, 1, self._most_slots), rounded(tokens + 1, SMALLEST_CAPACITY, self._context)
        return slots * capacity * self.token_bytes

    def open(self, key: int) -> None:
        """See BatchDecoder."""
        if None not in self._slots:
            self._resize(len(self._slots) + 1, max(self._lengths, default=0) + 1)
        slot = self._slots.index(None)
        self._slots[slot], self._lengths[slot] = key, 0

    def close(self, key: int) -> None:
        """See BatchDecoder."""
        if key in self._slots:
            slot = self._slots.index(key)
            self._slots[slot], self._lengths[slot] = None, 0

    def read(self, chunks: Sequence[Chunk], options: RunOptions) -> Scores:
        """See BatchDecoder. First chunks of neighbours are read together; one that goes on is read alone."""
        self._reserve(max(chunk.start + len(chunk.tokens) for chunk in chunks))
        slots = [self._slots.index(chunk.key) for chunk in chunks]
        scores = np.empty((len(chunks), self._vocabulary), np.float32)
        first = sorted((i for i, chunk in enumerate(chunks) if chunk.start == 0), key=lambda i: slots[i])
        for run in contiguous_runs([slots[i] for i in first], [len(chunks[i].tokens) for i in first]):
            members = [first[at] for at in run]
            scores[members] = self._read(slots[members[0]], [chunks[i] for i in members], options)
        for i, chunk in enumerate(chunks):
            if chunk.start:
                scores[i] = self._read(slots[i], [chunk], options)
        return scores

    def step(self, tokens: Sequence[Token], options: RunOptions) -> Scores:
        """See BatchDecoder."""
        self._reserve(max(token.start + 1 for token in tokens))
        self._close_ranks([token.key for token in tokens])
        slots = [self._slots.index(token.key) for token in tokens]
        count = max(slots) + 1
        self._inputs.set(self._lengths[:count], {slot: each.token for slot, each in zip(slots, tokens, strict=True)})
        run_bound(self._session, self._binding(0, count), options)
        for slot, token in zip(slots, tokens, strict=True):
            self._lengths[slot] = token.start + 1
        rows = self._step_scores[:count, 0] if slots == list(range(count)) else self._step_scores[slots, 0]
        return rows.astype(np.float32, copy=False)

    def save(self, key: int, start: int, stop: int) -> HostBlock:
        """See BatchDecoder."""
        return self._kv.save(self._slots.index(key), start, stop)

    def load(self, key: int, blocks: Sequence[HostBlock]) -> None:
        """See BatchDecoder."""
        length = sum(block[0].shape[1] for block in blocks)
        self._reserve(length)
        slot = self._slots.index(key)
        self._kv.load(slot, blocks)
        self._lengths[slot] = length

    def _reserve(self, tokens: int) -> None:
        # one more than is held: a slot that is computed without decoding writes behind its last token
        need = max(tokens, *self._lengths) + 1
        if need > self._capacity:
            self._resize(1 + max(slot for slot, key in enumerate(self._slots) if key is not None), need)

    def _resize(self, slots: int, capacity: int) -> None:
        """Make the buffers fit: free slots at the end and room that nobody needs now are given back."""
        slots = rounded(slots, 1, self._most_slots)
        self._capacity = rounded(capacity, SMALLEST_CAPACITY, self._context)
        self._bindings.clear()  # they point into the old buffers
        self._kv.resize(slots, self._capacity, {slot: length for slot, length in enumerate(self._lengths) if length})
        self._slots = [*self._slots, *[None] * slots][:slots]
        self._lengths = [*self._lengths, *[0] * slots][:slots]
        self._inputs = _StepInputs(self._layout, slots, self._capacity)
        self._step_scores = np.empty((slots, 1, self._vocabulary), self._scores_type)

    def _close_ranks(self, decoding: Sequence[int]) -> None:
        """Move decoding rows from the highest slots into free ones below them."""
        wanted = set(decoding)
        while None in self._slots:
            free = self._slots.index(None)
            highest = max(slot for slot, key in enumerate(self._slots) if key in wanted)
            if free > highest:
                return
            self._kv.move(highest, free, self._lengths[highest])
            self._slots[free], self._lengths[free] = self._slots[highest], self._lengths[highest]
            self._slots[highest], self._lengths[highest] = None, 0

    def _binding(self, slot: int, count: int) -> Binding:
        """The binding of a decoding step of slots 0 to ``count``, made once for each count."""
        found = self._bindings.get((slot, count))
        if found is None:
            found = self._bindings[slot, count] = self._session.io_binding()
            self._inputs.bind(found, count)
            self._kv.bind(found, slot, count)
            _bind_output(found, self._layout.scores, self._step_scores[:count])
        return found

    def _read(self, slot: int, chunks: Sequence[Chunk], options: RunOptions) -> Scores:
        """Run chunks of neighbouring slots, padded on the right; several only where each is a row's first."""
        lengths = [len(chunk.tokens) for chunk in chunks]
        longest, start = max(lengths), chunks[0].start
        ids, mask = np.zeros((len(chunks), longest), np.int64), np.zeros((len(chunks), start + longest), np.int64)
        for row, chunk in enumerate(chunks):
            ids[row, : lengths[row]] = chunk.tokens
            mask[row, : start + lengths[row]] = 1
        places = np.broadcast_to(np.arange(start, start + longest), ids.shape)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": places}
        binding = self._session.io_binding()
        for role, name in self._layout.names.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(inputs[role], numpy_type(self._layout.elements[name])))
        self._kv.bind(binding, slot, len(chunks))
        scores = self._scores_of(len(chunks), longest)
        _bind_output(binding, self._layout.scores, scores)
        run_bound(self._session, binding, options)
        for row, length in enumerate(lengths):
            self._lengths[slot + row] = start + length
        last: Scores = scores[np.arange(len(chunks)), np.array(lengths) - 1].astype(np.float32, copy=False)
        return last

    def _scores_of(self, rows: int, tokens: int) -> Array:
        need = rows * tokens * self._vocabulary
        if need > self._read_scores.size:
            self._read_scores = np.empty(need, self._scores_type)
        return self._read_scores[:need].reshape(rows, tokens, self._vocabulary)


class _StepInputs:
    """The plain inputs of a decoding step, in place: token, mask padded on the right, and position of each slot."""

    def __init__(self, layout: DecoderLayout, slots: int, capacity: int) -> None:
        self._layout = layout
        shapes = {"input_ids": (slots, 1), "attention_mask": (slots, capacity), "position_ids": (slots, 1)}
        self._values = {
            role: np.zeros(shapes[role], numpy_type(layout.elements[name])) for role, name in layout.names.items()
        }
        self._ones = [0] * slots

    def bind(self, binding: Binding, count: int) -> None:
        """Bind the first ``count`` slots."""
        for role, name in self._layout.names.items():
            part = self._values[role][:count]
            binding.bind_input(name, "cpu", 0, part.dtype, part.shape, part.ctypes.data)

    def set(self, lengths: Sequence[int], tokens: dict[int, int]) -> None:
        """Every slot's mask shows what it holds and one token more."""
        ids, mask, places = (self._values.get(role) for role in ("input_ids", "attention_mask", "position_ids"))
        for slot, length in enumerate(lengths):
            if ids is not None:
                ids[slot, 0] = tokens.get(slot, 0)
            if places is not None:
                places[slot, 0] = length
            if mask is not None:
                ones, shown = length + 1, self._ones[slot]
                mask[slot, min(ones, shown) : max(ones, shown)] = ones > shown
                self._ones[slot] = ones


def _bind_output(binding: Binding, name: str, target: Array) -> None:
    binding.bind_output(name, "cpu", 0, target.dtype, target.shape, target.ctypes.data)
