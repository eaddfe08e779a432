"""Joins the tensors of several requests along their first axis for one run, and parts what comes out."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

import msgspec
import numpy as np

from rbee.wire.errors import InferenceError
from rbee.worker.engine.onnx_file import TensorInfo
from rbee.worker.engine.sessions import Array
from rbee.worker.engine.token_batches import Pick


class TensorRow(msgspec.Struct, frozen=True, eq=False):
    """One request's tensors by input, and the outputs that it wants."""

    feeds: Mapping[str, Array]
    wanted: tuple[str, ...]

    @property
    def size(self) -> int | None:
        """The first size that all of its tensors have; None where they differ or there is none."""
        found: int | None = None
        for array in self.feeds.values():
            size = array.shape[0] if array.ndim else 0
            if found is not None and size != found:
                return None
            found = size
        return found

    def joins(self, other: "TensorRow") -> bool:
        """Whether both fit into one run: the same outputs, and tensors that differ in their first size only."""
        return self.wanted == other.wanted and all(
            array.shape[1:] == other.feeds[name].shape[1:] for name, array in self.feeds.items()
        )


def fixed_first_size(tensors: Iterable[TensorInfo]) -> str | None:
    """The name of the first tensor whose first size the model fixes, or which has none."""
    for tensor in tensors:
        if not tensor.shape or (isinstance(tensor.shape[0], int) and tensor.shape[0] >= 0):
            return tensor.name
    return None


def next_rows(waiting: Sequence[Sequence[TensorRow]], most: int) -> list[Pick]:
    """The first job's first row, and those of the others that join it, up to ``most`` rows of tensors together."""
    first = waiting[0][0]
    picks, total = [Pick(0, 0)], first.size
    if not total:
        return picks
    for job, rows in enumerate(waiting):
        for at, row in enumerate(rows):
            size = row.size
            if row is not first and size and total + size <= most and first.joins(row):
                picks.append(Pick(job, at))
                total += size
    return picks


def joined(rows: Sequence[TensorRow]) -> Mapping[str, Array]:
    """One set of tensors of all ``rows``, which join one another."""
    if len(rows) == 1:
        return rows[0].feeds
    return {name: np.concatenate([row.feeds[name] for row in rows]) for name in rows[0].feeds}


def parted(rows: Sequence[TensorRow], outputs: Sequence[Array]) -> list[list[Array]]:
    """Each row's part of the ``outputs``; raises InferenceError where one has not a row for each row that went in."""
    if len(rows) == 1:
        return [list(outputs)]
    sizes = [row.size or 0 for row in rows]
    if any(array.ndim == 0 or array.shape[0] != sum(sizes) for array in outputs):
        raise InferenceError("the model's outputs have not one row for each row of its inputs: leave max_batch out")
    ends = accumulate(sizes)
    return [[array[end - size : end] for array in outputs] for size, end in zip(sizes, ends, strict=True)]
