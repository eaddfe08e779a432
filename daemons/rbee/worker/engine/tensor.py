"""Tensors in, tensors out: any ONNX graph, fed and read by name, its runs shared where its definition says so."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import msgspec
import numpy as np

from rbee.wire.errors import ConfigError, InferenceError, InvalidRequest
from rbee.worker.engine import bfloat16
from rbee.worker.engine.datatypes import BF16, BYTES, NAMES, invalid, storage_type
from rbee.worker.engine.onnx_file import GraphFacts, TensorInfo
from rbee.worker.engine.runner import Runner
from rbee.worker.engine.sessions import Array, RunOptions, Session, run_session
from rbee.worker.engine.shared_runs import RunCounts, SharedRuns
from rbee.worker.engine.tensor_batches import TensorRow, fixed_first_size, joined, next_rows, parted

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
SMALL_BYTES = 16384
"""So many are read or written in less time than a thread takes to be woken and to answer."""
WARM_UP_SIZES = (1, 16, 64, 224)


class NamedTensor(msgspec.Struct, frozen=True, eq=False):
    """A tensor with its name and protocol datatype."""

    name: str
    datatype: str
    values: Array


class TensorRequest(msgspec.Struct, frozen=True, eq=False):
    """What one request gives, and the outputs that it wants: all of them where ``wanted`` is empty."""

    given: Sequence[NamedTensor]
    wanted: Sequence[str] = ()


Reading = tuple[TensorRequest, Callable[[list[NamedTensor]], T]]
"""A request, and what makes its answer of the outputs."""


def check(tensor: NamedTensor, expected: TensorInfo) -> None:
    """Hold a tensor against the model's input; raises InvalidRequest with both sides in the details."""
    wanted = NAMES.get(expected.element, expected.element)
    if tensor.datatype != wanted:
        raise invalid(tensor.name, f"the datatype is {tensor.datatype} and the model wants {wanted}")
    shape, want = list(tensor.values.shape), protocol_shape(expected)
    fits = len(shape) == len(want) and all(size in (-1, have) for have, size in zip(shape, want, strict=True))
    if not fits:
        raise invalid(
            tensor.name,
            f"the shape {shape} does not fit the model's {want} (-1 is any size)",
            shape=shape,
            expected=want,
        )


def protocol_shape(tensor: TensorInfo) -> list[int]:
    """A tensor's shape as the protocol writes it: -1 where any size will do."""
    return [size if isinstance(size, int) and size >= 0 else -1 for size in tensor.shape]


class TensorModel:
    """An ONNX graph behind its names. ``max_batch`` rows of requests that overlap share a run; 1: none does."""

    def __init__(self, session: Session, graph: GraphFacts, runner: Runner, max_batch: int = 1) -> None:
        self._session = session
        self._runner = runner
        self.inputs = graph.inputs
        self.outputs = graph.outputs
        self._elements = {tensor.name: tensor.element for tensor in (*graph.inputs, *graph.outputs)}
        self._shared: SharedRuns[TensorRow, list[Array]] | None = None
        if max_batch > 1:
            fixed = fixed_first_size((*graph.inputs, *graph.outputs))
            if fixed is not None:
                raise ConfigError(
                    f"max_batch: the first size of the model's '{fixed}' is fixed, so no two requests fit into a run: "
                    "leave max_batch out"
                )
            self._shared = SharedRuns(runner, self._run_joined, lambda waiting: next_rows(waiting, max_batch))

    @property
    def counts(self) -> RunCounts | None:
        """What was run so far; None where each request runs by itself."""
        return self._shared.counts if self._shared is not None else None

    async def infer(self, size: int, read: Callable[[], Reading[T]]) -> T:
        """Run on the request that ``read`` gives, and return its answer.

        Reading and writing happen in the thread of the run, or, where runs are shared and the request's ``size`` in
        bytes is small, in the loop. Raises what they raise, InvalidRequest for tensors that do not fit the model, and
        InferenceError.
        """
        if self._shared is None:
            return await self._runner.step(lambda options: self._whole(read, options))
        row, write = await self._runner.off_loop(lambda: self._begin(read), large=size > SMALL_BYTES)
        (arrays,) = await self._shared.results([row])
        outputs = self._named(row.wanted, arrays)
        texts = any(output.values.dtype.kind == "O" for output in outputs)  # what they take is not known beforehand
        large = texts or sum(output.values.nbytes for output in outputs) > SMALL_BYTES
        return await self._runner.off_loop(lambda: write(outputs), large=large)

    def _whole(self, read: Callable[[], Reading[T]], options: RunOptions) -> T:
        row, write = self._begin(read)
        return write(self._named(row.wanted, self._run(row.wanted, row.feeds, options)))

    def _begin(self, read: Callable[[], Reading[T]]) -> tuple[TensorRow, Callable[[list[NamedTensor]], T]]:
        request, write = read()
        return TensorRow(self._feeds(request.given), self._wanted(request.wanted)), write

    def _named(self, names: Sequence[str], arrays: Sequence[Array]) -> list[NamedTensor]:
        datatypes = [NAMES.get(self._elements[name], self._elements[name]) for name in names]
        return [
            NamedTensor(name, datatype, np.asarray(array))
            for name, datatype, array in zip(names, datatypes, arrays, strict=True)
        ]

    def _run(self, names: Sequence[str], feeds: Mapping[str, Array], options: RunOptions | None) -> list[Array]:
        if BF16 in self._elements.values():
            return bfloat16.run(self._session, names, feeds, self._elements, options)
        return run_session(self._session, names, feeds, options)

    def _run_joined(self, rows: Sequence[TensorRow], options: RunOptions) -> list[list[Array]]:
        return parted(rows, self._run(rows[0].wanted, joined(rows), options))

    def _feeds(self, given: Sequence[NamedTensor]) -> dict[str, Array]:
        expected = {tensor.name: tensor for tensor in self.inputs}
        feeds: dict[str, Array] = {}
        for tensor in given:
            if tensor.name not in expected:
                raise invalid(tensor.name, "the model has no such input", inputs=sorted(expected))
            if tensor.name in feeds:
                raise invalid(tensor.name, "given twice")
            check(tensor, expected[tensor.name])
            feeds[tensor.name] = tensor.values
        missing = sorted(expected.keys() - feeds.keys())
        if missing:
            raise invalid(missing[0], "missing", missing=missing)
        return feeds

    def _wanted(self, wanted: Sequence[str]) -> tuple[str, ...]:
        names = [tensor.name for tensor in self.outputs]
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise InvalidRequest(
                f"the model has no output '{unknown[0][:64]}'", details={"outputs": names}, param="outputs"
            )
        if len(set(wanted)) < len(wanted):
            raise InvalidRequest("an output is asked for twice: name each one once", param="outputs")
        return tuple(wanted or names)

    def warm_up(self) -> None:
        """One run on zeros, in the calling thread; raises InferenceError where the sizes are fixed and it fails.

        What sizes a model with free ones accepts is not written in it: the first of a few that works will do. Where
        none does the model is served nevertheless, as a caller may know better.
        """
        free = any(-1 in protocol_shape(tensor) for tensor in self.inputs)
        for size in WARM_UP_SIZES if free else WARM_UP_SIZES[:1]:
            feeds = {tensor.name: _zeros(tensor, size) for tensor in self.inputs}
            try:
                self._run([tensor.name for tensor in self.outputs], feeds, None)
            except InferenceError:
                if not free:
                    raise
            else:
                return
        LOGGER.warning("no warm-up input fits this model; it is served without one")


def _zeros(tensor: TensorInfo, free: int) -> Array:
    """Zeros in the tensor's shape; a free first size is the batch and stays 1, other free ones are ``free``."""
    sizes = protocol_shape(tensor)
    shape = [size if size >= 0 else (free if at else 1) for at, size in enumerate(sizes)]
    if tensor.element == BYTES:
        return np.full(shape, "", dtype=object)
    return np.zeros(shape, storage_type(tensor.element))
