"""Small decoders for tests of the batch, and what each of them says alone: computed anew for every token, no cache."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tests.bench import decoders

from rbee.wire.worker_spec import Backend
from rbee.worker.engine.batch.build import Batch, BatchSettings, build_batch, build_decoder, open_decoder
from rbee.worker.engine.batch.memory import device_memory
from rbee.worker.engine.batch.shared import SharedDecoder
from rbee.worker.engine.decoder import DecoderLayout, read_layout
from rbee.worker.engine.folder import read_folder
from rbee.worker.engine.sessions import Array, DeviceSpec, Session, create_session, numpy_type

CPU = DeviceSpec(Backend.CPU, threads=1)


@dataclass(frozen=True)
class Small:
    """A decoder's session and layout, and texts that it said alone; ``decoding`` is the session of its batches."""

    session: Session
    layout: DecoderLayout
    vocabulary: int
    decoding: Session
    on_device: bool = False

    @classmethod
    def load(cls, path: Path, vocabulary: int) -> "Small":
        """From a model folder."""
        folder = read_folder(path)
        layout = read_layout(folder.facts)
        cut = open_decoder(folder.model_file, layout, CPU)
        return cls(create_session(folder.model_file, CPU), layout, vocabulary, decoding=cut)

    def as_on_device(self) -> "Small":
        """The same with its buffers moved and looked at as on a GPU, whose part the CPU plays."""
        return replace(self, on_device=True)

    def alone(self, prompt: Sequence[int], count: int) -> list[int]:
        """The first ``count`` greedy tokens after ``prompt``."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self._scores(tokens).argmax()))
        return tokens[len(prompt) :]

    def _scores(self, tokens: Sequence[int]) -> Array:
        width = len(tokens)
        values = {
            "input_ids": np.array([tokens]),
            "attention_mask": np.ones((1, width)),
            "position_ids": np.arange(width)[None],
        }
        names, elements = self.layout.names, self.layout.elements
        feeds = {name: values[role].astype(numpy_type(elements[name])) for role, name in names.items()}
        feeds |= {pair.past: np.zeros(pair.empty_shape, numpy_type(pair.element)) for pair in self.layout.pairs}
        last: Array = self.session.run([self.layout.scores], feeds)[0][0, -1]
        return last

    def batch(self, *, rows: int = 4, context: int = 512, kv_bytes: int | None = None, prefix_mb: int = 8) -> Batch:
        """A batch of it, with nothing in it."""
        settings = BatchSettings(rows, context, kv_bytes, prefix_mb << 20)
        decoder = build_decoder(self.decoding, self.layout, self.vocabulary, CPU, settings)
        if self.on_device:
            memory = device_memory(self.layout, self.vocabulary, CPU)
            decoder = SharedDecoder(self.decoding, self.layout, self.vocabulary, memory, rows, context)
        return build_batch(decoder, frozenset(), settings)


def tiny(folder: Path, precision: str) -> Small:
    """The smallest decoder with shared buffers."""
    return Small.load(decoders.build(folder, decoders.TINY, precision), decoders.TINY.vocabulary)
