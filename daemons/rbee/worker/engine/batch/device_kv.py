"""Shared buffers of keys and values on a device, moved about by a small graph of the project's own.

One run of the graph cuts the same stretch of tokens out of every tensor of the cache and pads it: that is what growing,
moving, saving and loading come down to. Blocks for the prefix cache lie in the host's memory: a device has less of it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rbee.worker.engine.batch.host_kv import SMALLEST_CAPACITY, HostBlock, cut
from rbee.worker.engine.decoder import CachePair
from rbee.worker.engine.onnx_writer import SmallGraph
from rbee.worker.engine.sessions import Binding, Session, device_buffer, numpy_type, run_bound

TOKENS_AXIS = 2


def window_graph(pairs: Sequence[CachePair]) -> bytes:
    """For each tensor xN of the cache yN: its tokens ``start`` to ``stop``, with ``pads`` (Pad's own) around them."""
    graph = SmallGraph()
    for name in ("start", "stop", "pads"):
        graph.input(name, "int64", 1)
    for index, pair in enumerate(pairs):
        graph.input(f"x{index}", pair.element, 4)
        graph.node("Slice", [f"x{index}", "start", "stop", "axis"], [f"cut{index}"])
        graph.node("Pad", [f"cut{index}", "pads"], [f"y{index}"])
        graph.output(f"y{index}", pair.element, 4)
    return graph.model({"axis": [TOKENS_AXIS]})


@dataclass(frozen=True, slots=True)
class _Rows:
    """``count`` rows of the buffers from ``slot`` on."""

    buffers: Sequence[Any]
    slot: int
    count: int
    capacity: int


class DeviceKv:
    """Implements what HostKv does on a device of the runtime; ``window`` is a session of :func:`window_graph` there."""

    least_slots, least_capacity = 1, SMALLEST_CAPACITY

    def __init__(self, pairs: Sequence[CachePair], window: Session, device: str, device_id: int) -> None:
        self._pairs = pairs
        self._window = window
        self._device, self._device_id = device, device_id
        self._buffers: list[Any] = []
        self._capacity = 0

    def resize(self, slots: int, capacity: int, held: Mapping[int, int]) -> None:
        """Take new sizes; ``held`` tells how many tokens of which slots go along. The old ones stay where it fails."""
        shapes = [(slots, pair.empty_shape[1], capacity, pair.empty_shape[3]) for pair in self._pairs]
        buffers = [
            device_buffer(shape, numpy_type(pair.element), self._device, self._device_id)
            for pair, shape in zip(self._pairs, shapes, strict=True)
        ]
        if held:
            count, length = max(held) + 1, max(held.values())
            source, target = self._rows(0, count), _Rows(buffers, 0, count, capacity)
            self._copy(source, target, length)
        self._buffers, self._capacity = buffers, capacity

    def bind(self, binding: Binding, slot: int, count: int) -> None:
        """Bind past and present of ``count`` slots from ``slot`` on to their place in the buffers."""
        for index, pair in enumerate(self._pairs):
            where = self._place(self._rows(slot, count), index)
            binding.bind_input(pair.past, *where)
            binding.bind_output(pair.present, *where)

    def free(self, slot: int, length: int) -> None:
        """See KvBuffers: a device's memory goes back when the buffers take new sizes."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy ``length`` tokens of one slot to another."""
        self._copy(self._rows(source, 1), self._rows(target, 1), length)

    def save(self, slot: int, start: int, stop: int) -> list[HostBlock]:
        """A copy of the tokens ``start`` to ``stop`` of a slot, cut into blocks."""
        binding = self._asking(start, stop, 0)
        for index in range(len(self._pairs)):
            binding.bind_input(f"x{index}", *self._place(self._rows(slot, 1), index))
            binding.bind_output(f"y{index}", "cpu")
        run_bound(self._window, binding)
        return cut([value.numpy()[0] for value in binding.get_outputs()])

    def load(self, slot: int, blocks: Sequence[HostBlock]) -> None:
        """Write blocks, one after the other, to the beginning of a slot."""
        whole = [np.concatenate(parts, axis=1)[None] for parts in zip(*blocks, strict=True)]
        length = whole[0].shape[TOKENS_AXIS]
        binding = self._asking(0, length, self._capacity - length)
        for index, value in enumerate(whole):
            binding.bind_cpu_input(f"x{index}", value)
            binding.bind_output(f"y{index}", *self._place(self._rows(slot, 1), index))
        run_bound(self._window, binding)

    def _rows(self, slot: int, count: int) -> _Rows:
        return _Rows(self._buffers, slot, count, self._capacity)

    def _copy(self, source: _Rows, target: _Rows, length: int) -> None:
        binding = self._asking(0, length, target.capacity - length)
        for index in range(len(self._pairs)):
            binding.bind_input(f"x{index}", *self._place(source, index))
            binding.bind_output(f"y{index}", *self._place(target, index))
        run_bound(self._window, binding)

    def _asking(self, start: int, stop: int, behind: int) -> Binding:
        binding = self._window.io_binding()
        asked = {"start": [start], "stop": [stop], "pads": [0, 0, 0, 0, 0, 0, behind, 0]}
        for name, value in asked.items():
            binding.bind_cpu_input(name, np.array(value, np.int64))
        return binding

    def _place(self, rows: _Rows, index: int) -> tuple[str, int, object, tuple[int, ...], int]:
        pair = self._pairs[index]
        element = numpy_type(pair.element)
        shape = (rows.count, pair.empty_shape[1], rows.capacity, pair.empty_shape[3])
        row_bytes = shape[1] * shape[2] * shape[3] * element.itemsize
        pointer = rows.buffers[index].data_ptr() + rows.slot * row_bytes
        return self._device, self._device_id, element, shape, pointer
