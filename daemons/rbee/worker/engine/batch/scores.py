"""The scores that a step leaves: where they lie, and as little of them as a choice needs brought to the host."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from rbee.worker.engine.onnx_writer import SmallGraph
from rbee.worker.engine.sampling import Scores
from rbee.worker.engine.sessions import Array, Binding, Session, device_buffer, numpy_type, run_bound

Best = tuple[NDArray[np.int64], Scores]
"""Token ids and their scores, (rows, k), best first; a row that holds a NaN has it as its first score."""


class RowScores(Protocol):
    """The scores after some rows' last tokens, valid until the decoder runs again."""

    def of(self, rows: Sequence[int]) -> "RowScores":
        """Those of some of the rows, in that order."""

    def whole(self) -> Scores:
        """All of them, (rows, vocabulary), on the host."""


@dataclass(frozen=True, slots=True)
class HostScores:
    """Scores in the host's memory: implements RowScores."""

    values: Scores

    def of(self, rows: Sequence[int]) -> "HostScores":
        """See RowScores."""
        return self if list(rows) == list(range(len(self.values))) else HostScores(self.values[list(rows)])

    def whole(self) -> Scores:
        """See RowScores."""
        return self.values


class HostScoresBuffer:
    """Where a run writes its scores: (rows, tokens, vocabulary) in the host's memory, made larger when needed.

    With ``copies`` what is given out outlasts the next run.
    """

    def __init__(self, vocabulary: int, element: str, *, copies: bool) -> None:
        self._vocabulary = vocabulary
        self._copies = copies
        self._values: Array = np.empty(0, numpy_type(element))
        self._made = 0
        self._flat = self._values.reshape(0, vocabulary)
        self._all: list[int] = []
        self._bound: WeakKeyDictionary[Binding, tuple[int, int, int]] = WeakKeyDictionary()

    def bind(self, binding: Binding, name: str, rows: int, tokens: int) -> None:
        """Bind the output ``name`` of a run of so many rows and tokens, unless the binding has it already."""
        if self._values.size < rows * tokens * self._vocabulary:
            self._values = np.empty(rows * tokens * self._vocabulary, self._values.dtype)
            self._made += 1
        place = (self._made, rows, tokens)
        if self._bound.get(binding) != place:
            shape = (rows, tokens, self._vocabulary)
            binding.bind_output(name, "cpu", 0, self._values.dtype, shape, self._values.ctypes.data)
            self._bound[binding] = place
        if self._flat.shape[0] != rows * tokens or self._flat.base is not self._values:
            self._flat = self._values[: rows * tokens * self._vocabulary].reshape(-1, self._vocabulary)
            self._all = list(range(len(self._flat)))

    def after(self, places: Sequence[int]) -> HostScores:
        """The scores at ``places``, counted through all rows' tokens."""
        whole = not self._copies and list(places) == self._all
        found = self._flat if whole else self._flat[list(places)]
        return HostScores(found.astype(np.float32, copy=False))

    @staticmethod
    def join(parts: Sequence[HostScores]) -> HostScores:
        """The rows of several runs."""
        return parts[0] if len(parts) == 1 else HostScores(np.concatenate([part.values for part in parts]))


def take_graph(element: str) -> bytes:
    """scores (rows, tokens, vocabulary), places -> the scores at those places in single precision."""
    graph = SmallGraph()
    graph.input("scores", element, 3)
    graph.input("places", "int64", 1)
    flat = graph.node("Flatten", ["scores"], ["flat"], axis=2)
    graph.node("Cast", [graph.node("Gather", [flat, "places"], ["taken"], axis=0)], ["single"], to=1)
    graph.output("single", "float32", 2)
    return graph.model()


def best_graph() -> bytes:
    """scores (rows, vocabulary), k -> the k best with their ids, and for each row whether it holds a NaN."""
    graph = SmallGraph()
    graph.input("scores", "float32", 2)
    graph.input("k", "int64", 1)
    graph.node("TopK", ["scores", "k"], ["best", "ids"], axis=1)
    marks = graph.node("Cast", [graph.node("IsNaN", ["scores"], ["nan"])], ["marks"], to=1)
    graph.node("ReduceMax", [marks, "axis"], ["bad"], keepdims=1)
    graph.output("best", "float32", 2)
    graph.output("ids", "int64", 2)
    graph.output("bad", "float32", 2)
    return graph.model({"axis": [1]})


@dataclass(frozen=True, slots=True)
class Selection:
    """The sessions that look at scores where they lie, and that device in the runtime's words."""

    take: Session
    best: Session
    device: str
    device_id: int


@dataclass(frozen=True, slots=True)
class DeviceScores:
    """Scores on a device, in single precision: implements RowScores."""

    selection: Selection
    parts: tuple[Any, ...]
    rows: tuple[int, ...]

    def of(self, rows: Sequence[int]) -> "DeviceScores":
        """See RowScores."""
        return DeviceScores(self.selection, self.parts, tuple(self.rows[row] for row in rows))

    def whole(self) -> Scores:
        """See RowScores."""
        found: Scores = np.concatenate([part.numpy() for part in self.parts])[list(self.rows)]
        return found

    def best(self, k: int) -> Best:
        """The ``k`` best of each row."""
        ids, values = zip(*(self._best(part, k) for part in self.parts), strict=True)
        return np.concatenate(ids)[list(self.rows)], np.concatenate(values)[list(self.rows)]

    def _best(self, part: object, k: int) -> Best:
        binding = self.selection.best.io_binding()
        binding.bind_ortvalue_input("scores", part)
        binding.bind_cpu_input("k", np.array([k], np.int64))
        for name in ("best", "ids", "bad"):
            binding.bind_output(name, "cpu")
        run_bound(self.selection.best, binding)
        best, ids, bad = (each.numpy() for each in binding.get_outputs())
        best[bad[:, 0] > 0, 0] = np.nan
        return ids, best


class DeviceScoresBuffer:
    """Where a run writes its scores: on a device. ``element`` as NumPy names it."""

    def __init__(self, vocabulary: int, element: str, selection: Selection) -> None:
        self._vocabulary = vocabulary
        self._element = numpy_type(element)
        self._selection = selection
        self._size = 0
        self._values: Any = None
        self._shape = (0, 0, vocabulary)

    def bind(self, binding: Binding, name: str, rows: int, tokens: int) -> None:
        """Bind the output ``name`` of a run of so many rows and tokens."""
        selection = self._selection
        self._shape = (rows, tokens, self._vocabulary)
        if self._size < rows * tokens:
            self._values = None  # let go first: both at once may be too much
            self._values = device_buffer(
                (rows * tokens, self._vocabulary), self._element, selection.device, selection.device_id
            )
            self._size = rows * tokens
        where = (selection.device, selection.device_id, self._element, self._shape, self._values.data_ptr())
        binding.bind_output(name, *where)

    def after(self, places: Sequence[int]) -> DeviceScores:
        """The scores at ``places``, counted through all rows' tokens."""
        selection, take = self._selection, self._selection.take
        binding = take.io_binding()
        where = (selection.device, selection.device_id, self._element, self._shape, self._values.data_ptr())
        binding.bind_input("scores", *where)
        binding.bind_cpu_input("places", np.array(places, np.int64))
        binding.bind_output("single", selection.device, selection.device_id)
        run_bound(take, binding)
        return DeviceScores(selection, tuple(binding.get_outputs()), tuple(range(len(places))))

    @staticmethod
    def join(parts: Sequence[DeviceScores]) -> DeviceScores:
        """The rows of several runs."""
        whole = tuple(value for part in parts for value in part.parts)
        return DeviceScores(parts[0].selection, whole, tuple(range(sum(len(part.rows) for part in parts))))
