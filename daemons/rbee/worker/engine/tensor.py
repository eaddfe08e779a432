"""Tensors in, tensors out: JSON values of the Open Inference Protocol (KServe v2) to NumPy and back, checked.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rbee.wire.errors import InferenceError, InvalidRequest
from rbee.worker.engine.onnx_file import GraphFacts, TensorInfo
from rbee.worker.engine.sessions import Array, Runner, Session, numpy_type, run_session

LOGGER = logging.getLogger(__name__)
DATATYPES: Mapping[str, str] = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    "BYTES": "string",
}  # fmt: skip
NAMES = {element: datatype for datatype, element in DATATYPES.items()}
JSON_TYPES: Mapping[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "u": frozenset({int}),
    "i": frozenset({int}),
    "f": frozenset({int, float}),
    "O": frozenset({str}),
}
"""Types of JSON values that may become a kind of NumPy type without loss of meaning."""
MOST_ELEMENTS = 1 << 26
WARM_UP_SIZES = (1, 16, 64, 224)


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor with its name and protocol datatype."""

    name: str
    datatype: str
    values: Array


def to_array(name: str, datatype: str, shape: Sequence[int], data: object) -> Array:
    """The array of a JSON tensor, flat or nested row-major; raises InvalidRequest naming the input and the fault."""
    element = DATATYPES.get(datatype)
    if element is None:
        raise _invalid(name, f"the datatype {datatype} is not known", accepted=sorted(DATATYPES))
    count = _count(name, shape)
    dtype = numpy_type(element)
    # as objects first: NumPy's own guess for texts is an array in which each one takes the longest one's room
    seen = np.array(data, dtype=object)
    types = frozenset(map(type, seen.flat))
    if list in types:
        raise _invalid(name, "the data is ragged")
    if not types <= JSON_TYPES[dtype.kind]:
        raise _invalid(name, f"the data is not {datatype}")
    try:
        with np.errstate(over="raise"):
            values = seen.astype(dtype)
    except (ValueError, OverflowError, FloatingPointError):
        raise _invalid(name, f"the data does not fit {datatype}") from None
    if values.size != count:
        raise _invalid(name, f"the data has {values.size} elements and the shape asks for {count}")
    if values.ndim > 1 and list(values.shape) != list(shape):
        raise _invalid(name, f"the data is nested as {list(values.shape)} and the shape is {list(shape)}")
    return values.reshape(tuple(shape))


def _count(name: str, shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        if size < 0:
            raise _invalid(name, "the shape has a negative size")
        count *= size
        if max(count, size) > MOST_ELEMENTS:
            raise _invalid(name, f"the shape asks for more than {MOST_ELEMENTS} elements")
    return count


def check(tensor: NamedTensor, expected: TensorInfo) -> None:
    """Hold a tensor against the model's input; raises InvalidRequest with both sides in the details."""
    wanted = NAMES.get(expected.element, expected.element)
    if tensor.datatype != wanted:
        raise _invalid(tensor.name, f"the datatype is {tensor.datatype} and the model wants {wanted}")
    shape, want = list(tensor.values.shape), protocol_shape(expected)
    fits = len(shape) == len(want) and all(size in (-1, have) for have, size in zip(shape, want, strict=True))
    if not fits:
        raise _invalid(
            tensor.name,
            f"the shape {shape} does not fit the model's {want} (-1 is any size)",
            shape=shape,
            expected=want,
        )


def protocol_shape(tensor: TensorInfo) -> list[int]:
    """A tensor's shape as the protocol writes it: -1 where any size will do."""
    return [size if isinstance(size, int) and size >= 0 else -1 for size in tensor.shape]


def to_json(values: Array) -> list[Any]:
    """The flat row-major values of an output."""
    return values.ravel().tolist()


def _invalid(name: str, why: str, **details: object) -> InvalidRequest:
    return InvalidRequest(f"input '{name[:64]}': {why}", details={"input": name[:64], **details}, param="inputs")


class TensorModel:
    """Any ONNX graph, fed and read by name."""

    def __init__(self, session: Session, graph: GraphFacts, runner: Runner) -> None:
        self._session = session
        self._runner = runner
        self.inputs = graph.inputs
        self.outputs = graph.outputs

    async def infer(self, given: Sequence[NamedTensor], wanted: Sequence[str]) -> list[NamedTensor]:
        """Run on ``given``, return the outputs ``wanted`` (all where empty); raises InvalidRequest, InferenceError."""
        feeds = self._feeds(given)
        names = self._wanted(wanted)
        arrays = await self._runner.step(lambda options: run_session(self._session, names, feeds, options))
        elements = {tensor.name: tensor.element for tensor in self.outputs}
        return [
            NamedTensor(name, NAMES.get(elements[name], elements[name]), np.asarray(array))
            for name, array in zip(names, arrays, strict=True)
        ]

    def _feeds(self, given: Sequence[NamedTensor]) -> dict[str, Array]:
        expected = {tensor.name: tensor for tensor in self.inputs}
        feeds: dict[str, Array] = {}
        for tensor in given:
            if tensor.name not in expected:
                raise _invalid(tensor.name, "the model has no such input", inputs=sorted(expected))
            if tensor.name in feeds:
                raise _invalid(tensor.name, "given twice")
            check(tensor, expected[tensor.name])
            feeds[tensor.name] = tensor.values
        missing = sorted(expected.keys() - feeds.keys())
        if missing:
            raise _invalid(missing[0], "missing", missing=missing)
        return feeds

    def _wanted(self, wanted: Sequence[str]) -> list[str]:
        names = [tensor.name for tensor in self.outputs]
        unknown = [name for name in wanted if name not in names]
        if unknown:
            raise InvalidRequest(
                f"the model has no output '{unknown[0][:64]}'", details={"outputs": names}, param="outputs"
            )
        if len(set(wanted)) < len(wanted):
            raise InvalidRequest("an output is asked for twice: name each one once", param="outputs")
        return list(wanted) or names

    def warm_up(self) -> None:
        """One run on zeros, in the calling thread; raises InferenceError where the sizes are fixed and it fails.

        What sizes a model with free ones accepts is not written in it: the first of a few that works will do. Where
        none does the model is served nevertheless, as a caller may know better.
        """
        free = any(-1 in protocol_shape(tensor) for tensor in self.inputs)
        for size in WARM_UP_SIZES if free else WARM_UP_SIZES[:1]:
            feeds = {tensor.name: _zeros(tensor, size) for tensor in self.inputs}
            try:
                run_session(self._session, [tensor.name for tensor in self.outputs], feeds)
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
    if tensor.element == "string":
        return np.full(shape, "", dtype=object)
    return np.zeros(shape, numpy_type(tensor.element))
