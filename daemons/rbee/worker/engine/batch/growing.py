"""Decoders with plain past and present tensors: each step's caches are new tensors, one token longer.

Rows that decode share one batch, padded on the left, while the same rows go on: their present is the next step's past
as it is. When a row joins or leaves, the batch is put together anew. That needs a graph that takes the attention mask
and the positions as inputs, and the cache in the host's memory; where one is missing each row runs alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rbee.worker.engine.batch.decoders import Chunk, Token
from rbee.worker.engine.batch.host_kv import HostBlock, cut
from rbee.worker.engine.batch.plan import MOST_TOKENS
from rbee.worker.engine.batch.scores import HostScores
from rbee.worker.engine.decoder import CachePair, DecoderLayout
from rbee.worker.engine.sampling import Scores
from rbee.worker.engine.sessions import Array, RunOptions, Session, numpy_type, run_bound


@dataclass(slots=True)
class _Caches:
    """The caches of ``keys``, each padded on the left to ``width``: tensors (rows, heads, width, head size)."""

    keys: tuple[int, ...] = ()
    lengths: list[int] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    width: int = 0


class GrowingDecoder:
    """Implements BatchDecoder, with the caches on a device in the runtime's words."""

    def __init__(self, session: Session, layout: DecoderLayout, device: str, device_id: int) -> None:
        self._session = session
        self._layout = layout
        self._device, self._device_id = device, device_id
        self.whole_prompts = layout.scales_by_content
        padded = {"attention_mask", "position_ids"} <= layout.names.keys()
        self._together = padded and device == "cpu" and not self.whole_prompts
        self._alone: dict[int, _Caches] = {}
        self._batch = _Caches()
        self.token_bytes = layout.token_bytes
        self.most_tokens = MOST_TOKENS

    def size(self, rows: int, tokens: int) -> int:
        """See BatchDecoder: past and present are there at once."""
        return 2 * rows * tokens * self.token_bytes

    def open(self, key: int, tokens: int) -> None:
        """See BatchDecoder; nothing is set aside."""
        self._alone[key] = _Caches((key,), [0], [self._nothing(pair) for pair in self._layout.pairs])

    def close(self, key: int) -> None:
        """See BatchDecoder."""
        if self._alone.pop(key, None) is None and key in self._batch.keys:
            self._part(self._batch)
            self._alone.pop(key)

    def read(self, chunks: Sequence[Chunk], options: RunOptions) -> HostScores:
        """See BatchDecoder."""
        return HostScores(np.concatenate([self._read(chunk, options) for chunk in chunks]))

    def step(self, tokens: Sequence[Token], options: RunOptions) -> HostScores:
        """See BatchDecoder."""
        keys = tuple(token.key for token in tokens)
        ids = np.array([[token.token] for token in tokens])
        if len(keys) > 1 and self._together:
            return HostScores(self._run(self._gathered(keys), ids, options))
        rows = [
            self._run(self._own(token.key, token.start), ids[index : index + 1], options)
            for index, token in enumerate(tokens)
        ]
        return HostScores(np.concatenate(rows))

    def save(self, key: int, start: int, stop: int) -> list[HostBlock]:
        """See BatchDecoder."""
        caches = self._alone.get(key, self._batch)
        row = caches.keys.index(key)
        pad = caches.width - caches.lengths[row]
        return cut([_array(value)[row, :, pad + start : pad + stop] for value in caches.values])

    def load(self, key: int, blocks: Sequence[HostBlock]) -> None:
        """See BatchDecoder."""
        values = [np.concatenate(parts, axis=1)[None] for parts in zip(*blocks, strict=True)]
        length = values[0].shape[2]
        self._alone[key] = _Caches((key,), [length], values, length)

    def _read(self, chunk: Chunk, options: RunOptions) -> Scores:
        caches = self._own(chunk.key, chunk.start)
        for start in range(0, len(chunk.tokens), MOST_TOKENS):
            scores = self._run(caches, np.array([chunk.tokens[start : start + MOST_TOKENS]]), options)
        return scores

    @staticmethod
    def _nothing(pair: CachePair) -> Array:
        return np.zeros(pair.empty_shape, numpy_type(pair.element))

    def _own(self, key: int, start: int) -> _Caches:
        """A row's own cache of ``start`` tokens: what a run that failed for another row had added to it is cut off."""
        if key not in self._alone:
            self._part(self._batch)
        caches = self._alone[key]
        if caches.width > start:
            values = [np.ascontiguousarray(_array(value)[:, :, :start]) for value in caches.values]
            caches = self._alone[key] = _Caches((key,), [start], values, start)
        return caches

    def _gathered(self, keys: tuple[int, ...]) -> _Caches:
        """The batch of exactly these rows."""
        if self._batch.keys == keys:
            return self._batch
        self._part(self._batch)
        members = [self._alone.pop(key) for key in keys]
        width = max(member.width for member in members)
        values = [
            _stack([_array(member.values[index]) for member in members], width)
            for index in range(len(self._layout.pairs))
        ]
        self._batch = _Caches(keys, [member.lengths[0] for member in members], values, width)
        return self._batch

    def _part(self, batch: _Caches) -> None:
        """Give each row of a batch its own cache back."""
        values = [_array(value) for value in batch.values]
        for row, (key, length) in enumerate(zip(batch.keys, batch.lengths, strict=True)):
            own = [np.array(value[row : row + 1, :, batch.width - length :]) for value in values]
            self._alone[key] = _Caches((key,), [length], own, length)
        self._batch = _Caches()

    def _run(self, caches: _Caches, ids: Array, options: RunOptions) -> Scores:
        """Read ``ids`` (rows, tokens) behind the caches, which grow; the scores after the last token of each row."""
        layout = self._layout
        binding = self._session.io_binding()
        feeds = self._feeds(caches, ids)
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        for pair, value in zip(layout.pairs, caches.values, strict=True):
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(pair.past, value)
            else:
                binding.bind_ortvalue_input(pair.past, value)
        binding.bind_output(layout.scores, "cpu")
        for pair in layout.pairs:
            binding.bind_output(pair.present, self._device, self._device_id)
        run_bound(self._session, binding, options)
        scores, *presents = binding.get_outputs()
        caches.values = presents
        caches.lengths = [length + ids.shape[1] for length in caches.lengths]
        caches.width += ids.shape[1]
        last: Scores = scores.numpy()[:, -1].astype(np.float32, copy=False)
        return last

    def _feeds(self, caches: _Caches, ids: Array) -> Mapping[str, Array]:
        count, total = ids.shape[1], caches.width + ids.shape[1]
        lengths = np.array(caches.lengths)[:, None]
        values: dict[str, Array] = {
            "input_ids": ids,
            "attention_mask": np.arange(total) >= caches.width - lengths,
            "position_ids": lengths + np.arange(count),
            "use_cache_branch": np.array([caches.width > 0]),
        }
        names, elements = self._layout.names, self._layout.elements
        return {name: values[role].astype(numpy_type(elements[name])) for role, name in names.items()}


def _array(value: object) -> Array:
    return value if isinstance(value, np.ndarray) else value.numpy()  # type: ignore[attr-defined]


def _stack(rows: Sequence[Array], width: int) -> Array:
    """Caches of one row each as one batch, padded on the left."""
    first = rows[0]
    whole = np.zeros((len(rows), first.shape[1], width, first.shape[3]), first.dtype)
    for index, row in enumerate(rows):
        whole[index, :, width - row.shape[2] :] = row[0]
    return whole
