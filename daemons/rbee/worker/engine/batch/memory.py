"""Where a decoder's shared buffers lie: in the host's memory, or on a device."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rbee.worker.engine.batch.device_kv import DeviceKv, window_graph
from rbee.worker.engine.batch.host_kv import HostBlock, HostKv
from rbee.worker.engine.batch.scores import (
    DeviceScoresBuffer,
    HostScoresBuffer,
    RowScores,
    Selection,
    best_graph,
    take_graph,
)
from rbee.worker.engine.decoder import DecoderLayout
from rbee.worker.engine.sessions import Binding, DeviceSpec, create_session, runtime_device


class KvBuffers(Protocol):
    """Buffers (slots, heads, capacity, head size), a tensor for each of the cache."""

    least_slots: int
    least_capacity: int
    """Slots, and tokens of each, for which there may as well be room: what is not filled costs nothing, or little."""

    def resize(self, slots: int, capacity: int, held: Mapping[int, int]) -> None:
        """Take new sizes; ``held`` tells how many tokens of which slots go along."""

    def bind(self, binding: Binding, slot: int, count: int) -> None:
        """Bind past and present of ``count`` slots from ``slot`` on to their place in the buffers."""

    def free(self, slot: int, length: int) -> None:
        """A slot's ``length`` tokens are not needed any more."""

    def move(self, source: int, target: int, length: int) -> None:
        """Copy ``length`` tokens of one slot to another."""

    def save(self, slot: int, start: int, stop: int) -> list[HostBlock]:
        """A copy of the tokens ``start`` to ``stop`` of a slot, cut into blocks."""

    def load(self, slot: int, blocks: Sequence[HostBlock]) -> None:
        """Write blocks, one after the other, to the beginning of a slot."""


class ScoresBuffer(Protocol):
    """Where runs write their scores."""

    def bind(self, binding: Binding, name: str, rows: int, tokens: int) -> None:
        """Bind the output ``name`` of a run of so many rows and tokens."""

    def after(self, places: Sequence[int]) -> RowScores:
        """The scores at ``places``, counted through all rows' tokens."""

    def join(self, parts: Sequence[Any]) -> RowScores:
        """The rows of several runs."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Buffers for keys and values, and for the scores of prompts and of decoding steps.

    ``copies_inputs``: the runtime copies an input of the host when it is bound, so that it is bound anew each step.
    """

    kv: KvBuffers
    read_scores: ScoresBuffer
    step_scores: ScoresBuffer
    copies_inputs: bool


def host_memory(layout: DecoderLayout, vocabulary: int) -> Memory:
    """Buffers in the host's memory."""
    read, step = (HostScoresBuffer(vocabulary, layout.scores_element, copies=copies) for copies in (True, False))
    return Memory(HostKv(layout.pairs), read, step, copies_inputs=False)


def device_memory(layout: DecoderLayout, vocabulary: int, spec: DeviceSpec) -> Memory:
    """Buffers on the device of ``spec``, moved and looked at there; blocking, it creates sessions for that."""
    device = runtime_device(spec.backend)
    take, best = create_session(take_graph(layout.scores_element), spec), create_session(best_graph(), spec)
    selection = Selection(take, best, device, spec.device)
    kv = DeviceKv(layout.pairs, create_session(window_graph(layout.pairs), spec), device, spec.device)
    read, step = (DeviceScoresBuffer(vocabulary, layout.scores_element, selection) for _ in range(2))
    return Memory(kv, read, step, copies_inputs=True)
