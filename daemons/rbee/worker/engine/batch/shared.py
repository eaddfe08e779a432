"""Decoders with GroupQueryAttention: all rows' keys and values lie in shared buffers that are updated in place.

A decoding step runs the slots from 0 to the highest that decodes. Slots between them that do not decode are computed
too: what they write lies behind their last token, where the next one overwrites it. Rows move into free slots so that
there are few of those.
"""

from collections.abc import Sequence

import numpy as np

from rbee.worker.engine.batch.decoders import Chunk, Token
from rbee.worker.engine.batch.host_kv import SMALLEST_CAPACITY, HostBlock
from rbee.worker.engine.batch.memory import Memory
from rbee.worker.engine.batch.plan import MOST_TOKENS, contiguous_runs
from rbee.worker.engine.batch.scores import RowScores
from rbee.worker.engine.decoder import DecoderLayout
from rbee.worker.engine.last_scores import PLACES
from rbee.worker.engine.sessions import Array, Binding, RunOptions, Session, numpy_type, run_bound

MOST_SCORES_BYTES = 256 << 20


def rounded(need: int, least: int, most: int) -> int:
    """``need`` rounded up to a power of two times ``least``, at most ``most``: buffers grow seldom."""
    size = least
    while size < need:
        size *= 2
    return max(need, min(size, most))


class SharedDecoder:
    """Implements BatchDecoder on buffers of ``slots`` rows of at most ``context`` tokens."""

    def __init__(
        self, session: Session, layout: DecoderLayout, vocabulary: int, memory: Memory, slots: int, context: int
    ) -> None:
        self._session = session
        self._layout = layout
        self._memory = memory
        self._most_slots = slots
        self._context = context
        self._kv = memory.kv
        self._slots: list[int | None] = []
        self._lengths: list[int] = []
        self._rooms: list[int] = []
        self._capacity = 0
        self._bindings: dict[int, Binding] = {}
        self.whole_prompts = layout.scales_by_content
        self.token_bytes = layout.token_bytes
        self._cut = any(each.name == PLACES for each in session.get_inputs())
        self._inputs = _StepInputs(layout, 0, 0, cut=self._cut)
        token_scores = vocabulary * numpy_type(layout.scores_element).itemsize
        self.most_tokens = MOST_TOKENS if self._cut else max(1, min(MOST_TOKENS, MOST_SCORES_BYTES // token_scores))

    def size(self, rows: int, tokens: int) -> int:
        """See BatchDecoder."""
        slots, capacity = rounded(rows, 1, self._most_slots), rounded(tokens + 1, SMALLEST_CAPACITY, self._context)
        return slots * capacity * self.token_bytes

    def open(self, key: int, tokens: int) -> None:
        """See BatchDecoder. The room for the whole prompt is made at once: each time that it grows, all rows wait."""
        if None not in self._slots or tokens >= self._capacity:
            self._resize(1, max([tokens, *self._rooms, *self._lengths]) + 1)
        slot = self._slots.index(None)
        self._slots[slot], self._lengths[slot], self._rooms[slot] = key, 0, tokens

    def close(self, key: int) -> None:
        """See BatchDecoder."""
        if key in self._slots:
            slot = self._slots.index(key)
            self._kv.free(slot, self._lengths[slot])
            self._slots[slot], self._lengths[slot], self._rooms[slot] = None, 0, 0

    def read(self, chunks: Sequence[Chunk], options: RunOptions) -> RowScores:
        """See BatchDecoder. First chunks of neighbours are read together; one that goes on is read alone."""
        self._reserve(max(chunk.start + len(chunk.tokens) for chunk in chunks))
        slots = [self._slots.index(chunk.key) for chunk in chunks]
        first = sorted((i for i, chunk in enumerate(chunks) if chunk.start == 0), key=lambda i: slots[i])
        runs = contiguous_runs([slots[i] for i in first], [len(chunks[i].tokens) for i in first])
        together = [[first[at] for at in run] for run in runs]
        together += [[i] for i, chunk in enumerate(chunks) if chunk.start]
        parts = [self._read(slots[members[0]], [chunks[i] for i in members], options) for members in together]
        order = [i for members in together for i in members]
        return self._memory.read_scores.join(parts).of([order.index(i) for i in range(len(chunks))])

    def step(self, tokens: Sequence[Token], options: RunOptions) -> RowScores:
        """See BatchDecoder."""
        self._reserve(max([token.start for token in tokens]) + 1)
        keys = [token.key for token in tokens]
        self._close_ranks(keys)
        slots = [self._slots.index(key) for key in keys]
        count = max(slots) + 1
        ids = [0] * count
        for slot, token in zip(slots, tokens, strict=True):
            self._lengths[slot] = token.start  # an earlier run whose scores could not be had may have counted on
            ids[slot] = token.token
        if max(self._lengths[:count]) >= self._inputs.width:
            self._widen()
        self._inputs.set(self._lengths[:count], ids)
        run_bound(self._session, self._binding(count), options)
        for slot in slots:
            self._lengths[slot] += 1
        return self._memory.step_scores.after(slots)

    def save(self, key: int, start: int, stop: int) -> list[HostBlock]:
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
        if tokens >= self._capacity:
            self._resize(0, max([tokens, *self._rooms, *self._lengths]) + 1)

    def _resize(self, more: int, capacity: int) -> None:
        """Make the buffers fit the rows that are held and ``more``: free slots and room that nobody needs go back."""
        held = [key for key in self._slots if key is not None]
        if held:
            self._close_ranks(held)  # one late row in the highest slot would keep all those below it
        need = max(len(held) + more, self._kv.least_slots)
        slots = rounded(min(need, self._most_slots), 1, self._most_slots)
        capacity = rounded(capacity, min(self._kv.least_capacity, self._context), self._context)
        self._kv.resize(slots, capacity, {slot: length for slot, length in enumerate(self._lengths) if length})
        self._capacity = capacity
        self._slots = [*self._slots, *[None] * slots][:slots]
        self._lengths = [*self._lengths, *[0] * slots][:slots]
        self._rooms = [*self._rooms, *[0] * slots][:slots]
        self._widen()

    def _widen(self) -> None:
        """Make the steps' inputs as wide as the longest row needs, not as the buffers: each step reads them whole."""
        width = rounded(max([*self._rooms, *self._lengths]) + 1, SMALLEST_CAPACITY, self._capacity)
        self._bindings.clear()  # they point into what was there before
        self._inputs = _StepInputs(self._layout, len(self._slots), width, cut=self._cut)

    def _close_ranks(self, keys: Sequence[int]) -> None:
        """Move the rows of ``keys`` from the highest slots into free ones below them."""
        wanted = set(keys)
        while None in self._slots:
            free = self._slots.index(None)
            highest = max(slot for slot, key in enumerate(self._slots) if key in wanted)
            if free > highest:
                return
            if self._lengths[highest]:
                self._kv.move(highest, free, self._lengths[highest])
                self._kv.free(highest, self._lengths[highest])
            self._slots[free], self._slots[highest] = self._slots[highest], None
            self._lengths[free], self._lengths[highest] = self._lengths[highest], 0
            self._rooms[free], self._rooms[highest] = self._rooms[highest], 0

    def _binding(self, count: int) -> Binding:
        """The binding of a decoding step of the first ``count`` slots, made once for each count."""
        found = self._bindings.get(count)
        if found is None:
            found = self._bindings[count] = self._session.io_binding()
            self._inputs.bind(found, count)
            self._kv.bind(found, 0, count)
        elif self._memory.copies_inputs:
            self._inputs.bind(found, count)
        self._memory.step_scores.bind(found, self._layout.scores, count, 1)
        return found

    def _read(self, slot: int, chunks: Sequence[Chunk], options: RunOptions) -> RowScores:
        """Run chunks of neighbouring slots, padded on the right; several only where each is a row's first."""
        lengths = [len(chunk.tokens) for chunk in chunks]
        longest, start = max(lengths), chunks[0].start
        ids, mask = np.zeros((len(chunks), longest), np.int64), np.zeros((len(chunks), start + longest), np.int64)
        for row, chunk in enumerate(chunks):
            ids[row, : lengths[row]] = chunk.tokens
            mask[row, : start + lengths[row]] = 1
        positions = np.broadcast_to(np.arange(start, start + longest), ids.shape)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        binding = self._session.io_binding()
        for role, name in self._layout.names.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(inputs[role], numpy_type(self._layout.elements[name])))
        self._kv.bind(binding, slot, len(chunks))
        places = [row * longest + length - 1 for row, length in enumerate(lengths)]
        if self._cut:
            binding.bind_cpu_input(PLACES, np.array(places, np.int64)[:, None])
        scores = self._memory.read_scores
        scores.bind(binding, self._layout.scores, len(chunks), 1 if self._cut else longest)
        run_bound(self._session, binding, options)
        for row, length in enumerate(lengths):
            self._lengths[slot + row] = start + length
        return scores.after(range(len(chunks)) if self._cut else places)


class _StepInputs:
    """The plain inputs of a decoding step, in place: token, mask of ``width`` tokens, and position of each slot.

    With ``cut`` the graph is asked for every slot's scores.
    """

    def __init__(self, layout: DecoderLayout, slots: int, width: int, *, cut: bool) -> None:
        self._layout = layout
        self.width = width
        self._places = np.arange(slots, dtype=np.int64)[:, None] if cut else None
        shapes = {"input_ids": (slots, 1), "attention_mask": (slots, width), "position_ids": (slots, 1)}
        self._values = {
            role: np.zeros(shapes[role], numpy_type(layout.elements[name])) for role, name in layout.names.items()
        }
        self._ids = self._values["input_ids"]
        self._mask, self._positions = self._values.get("attention_mask"), self._values.get("position_ids")
        self._ones = [0] * slots

    def bind(self, binding: Binding, count: int) -> None:
        """Bind the first ``count`` slots."""
        for role, name in self._layout.names.items():
            part = self._values[role][:count]
            binding.bind_input(name, "cpu", 0, part.dtype, part.shape, part.ctypes.data)
        if self._places is not None:
            part = self._places[:count]
            binding.bind_input(PLACES, "cpu", 0, part.dtype, part.shape, part.ctypes.data)

    def set(self, lengths: Sequence[int], ids: Sequence[int]) -> None:
        """The first slots' next token ids; the mask of each shows what it holds and one token more."""
        count = len(lengths)
        self._ids[:count, 0] = ids
        if self._positions is not None:
            self._positions[:count, 0] = lengths
        if self._mask is not None:
            self._show(self._mask, lengths)

    def _show(self, mask: Array, lengths: Sequence[int]) -> None:
        for slot, length in enumerate(lengths):
            shown = self._ones[slot]
            if shown == length:  # as at every step but a slot's first
                mask[slot, shown] = 1
            else:
                mask[slot, min(length + 1, shown) : max(length + 1, shown)] = length + 1 > shown
            self._ones[slot] = length + 1
