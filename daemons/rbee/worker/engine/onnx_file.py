"""Reads what an ONNX file says about itself: inputs, outputs, element types, operators, external data files.

Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto). The file is mapped, not
loaded, and checked before the runtime sees it.
"""

import mmap
from dataclasses import dataclass, field
from pathlib import Path

from rbee.wire.errors import ConfigError
from rbee.worker.engine import protobuf
from rbee.worker.engine.protobuf import LENGTH, Field

MODEL_GRAPH, MODEL_FUNCTION, FUNCTION_NODE = 7, 25, 7
GRAPH_NODE, GRAPH_INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, GRAPH_VALUE, GRAPH_SPARSE = 1, 5, 11, 12, 13, 15
NODE_INPUT, NODE_OUTPUT, NODE_OP_TYPE, NODE_ATTRIBUTE = 1, 2, 4, 5
ATTRIBUTE_TENSOR, ATTRIBUTE_GRAPH, ATTRIBUTE_TENSORS, ATTRIBUTE_GRAPHS = 5, 6, 10, 11
ATTRIBUTE_SPARSE, ATTRIBUTE_SPARSES = 22, 23
SPARSE_VALUES, SPARSE_INDICES = 1, 2
TENSOR_DIMS, TENSOR_TYPE, TENSOR_NAME, TENSOR_EXTERNAL = 1, 2, 8, 13
VALUE_NAME, VALUE_TYPE = 1, 2
TYPE_TENSOR, TENSOR_ELEM, TENSOR_SHAPE, SHAPE_DIM, DIM_VALUE, DIM_PARAM = 1, 1, 2, 1, 1, 2
MAX_NESTING = 8

ELEMENT_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16", 21: "uint4", 22: "int4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output: element type by its NumPy name; in the shape only a number is a fixed size."""

    name: str
    element: str
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class GraphFacts:
    """What an ONNX file says: ``weights`` counts initializer elements by type, ``external`` names data files."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    weights: dict[str, int]
    operators: frozenset[str]
    external: frozenset[str]

    @property
    def input_names(self) -> frozenset[str]:
        """The names of the inputs that a caller feeds."""
        return frozenset(tensor.name for tensor in self.inputs)

    @property
    def output_names(self) -> frozenset[str]:
        """The names of the outputs."""
        return frozenset(tensor.name for tensor in self.outputs)


@dataclass(slots=True)
class _Collected:
    inputs: list[TensorInfo] = field(default_factory=list)
    outputs: list[TensorInfo] = field(default_factory=list)
    weights: dict[str, int] = field(default_factory=dict)
    operators: set[str] = field(default_factory=set)
    external: set[str] = field(default_factory=set)
    initializers: set[str] = field(default_factory=set)


def read_graph(path: Path) -> GraphFacts:
    """Read the facts of the ONNX file at ``path``; raises ConfigError where it is not one, OSError."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ConfigError(f"{path.name}: the file is empty; fetch the model again")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as data:
            try:
                return _read_model(data)
            except protobuf.MalformedMessage as error:
                raise ConfigError(f"{path.name}: not an ONNX model ({error}); fetch the model again") from None


def _read_model(data: memoryview) -> GraphFacts:
    found = _Collected()
    parts = [each for each in protobuf.fields(data, 0, len(data)) if each.number in (MODEL_GRAPH, MODEL_FUNCTION)]
    graphs = [each for each in parts if each.number == MODEL_GRAPH]
    if len(graphs) != 1 or graphs[0].wire != LENGTH:
        raise protobuf.MalformedMessage("it holds no graph")
    _read_main_graph(data, graphs[0], found)
    for function in (each for each in parts if each.number == MODEL_FUNCTION and each.wire == LENGTH):
        for part in protobuf.fields(data, function.start, function.end):
            if part.number == FUNCTION_NODE and part.wire == LENGTH:
                _node(data, part, found, 0)
    return GraphFacts(
        tuple(tensor for tensor in found.inputs if tensor.name not in found.initializers),
        tuple(found.outputs),
        found.weights,
        frozenset(found.operators),
        frozenset(found.external),
    )


def _read_main_graph(data: memoryview, graph: Field, found: _Collected) -> None:
    for part in protobuf.fields(data, graph.start, graph.end):
        if part.wire != LENGTH:
            continue
        if part.number == GRAPH_INPUT:
            found.inputs.append(_value(data, part))
        elif part.number == GRAPH_OUTPUT:
            found.outputs.append(_value(data, part))
        else:
            _read_graph_part(data, part, found, 0)


def _read_graph_part(data: memoryview, part: Field, found: _Collected, depth: int) -> None:
    if part.number == GRAPH_NODE:
        _node(data, part, found, depth)
    elif part.number == GRAPH_INITIALIZER:
        _tensor(data, part, found)
    elif part.number == GRAPH_SPARSE:
        _sparse_tensor(data, part, found)


def _node(data: memoryview, node: Field, found: _Collected, depth: int) -> None:
    if depth > MAX_NESTING:
        raise protobuf.MalformedMessage("graphs are nested too deeply")
    for part in protobuf.fields(data, node.start, node.end):
        if part.number == NODE_OP_TYPE:
            found.operators.add(protobuf.text(data, part))
        elif part.number == NODE_ATTRIBUTE and part.wire == LENGTH:
            _attribute(data, part, found, depth)


def _attribute(data: memoryview, attribute: Field, found: _Collected, depth: int) -> None:
    for part in protobuf.fields(data, attribute.start, attribute.end):
        if part.wire != LENGTH:
            continue
        if part.number in (ATTRIBUTE_TENSOR, ATTRIBUTE_TENSORS):
            _tensor(data, part, found)
        elif part.number in (ATTRIBUTE_SPARSE, ATTRIBUTE_SPARSES):
            _sparse_tensor(data, part, found)
        elif part.number in (ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS):
            for inner in protobuf.fields(data, part.start, part.end):
                _read_graph_part(data, inner, found, depth + 1)


def _tensor(data: memoryview, tensor: Field, found: _Collected) -> None:
    count, element = 1, "unknown"
    for part in protobuf.fields(data, tensor.start, tensor.end):
        if part.number == TENSOR_DIMS:
            for size in _numbers(data, part):
                count *= size
        elif part.number == TENSOR_TYPE:
            element = ELEMENT_TYPES.get(part.value, "unknown")
        elif part.number == TENSOR_NAME:
            found.initializers.add(protobuf.text(data, part))
        elif part.number == TENSOR_EXTERNAL:
            key, value = _entry(data, part)
            if key == "location":
                found.external.add(value)
    found.weights[element] = found.weights.get(element, 0) + count


def _sparse_tensor(data: memoryview, sparse: Field, found: _Collected) -> None:
    for part in protobuf.fields(data, sparse.start, sparse.end):
        if part.number in (SPARSE_VALUES, SPARSE_INDICES) and part.wire == LENGTH:
            _tensor(data, part, found)


def _numbers(data: memoryview, part: Field) -> list[int]:
    """A repeated number, packed or not."""
    if part.wire != LENGTH:
        return [part.value]
    values, at = [], part.start
    while at < part.end:
        value, at = protobuf.varint(data, at, part.end)
        values.append(value)
    return values


def _entry(data: memoryview, part: Field) -> tuple[str, str]:
    pair = {each.number: protobuf.text(data, each) for each in protobuf.fields(data, part.start, part.end)}
    return pair.get(1, ""), pair.get(2, "")


def _value(data: memoryview, part: Field) -> TensorInfo:
    name, element = "", "unknown"
    shape: tuple[int | str | None, ...] = ()
    for each in protobuf.fields(data, part.start, part.end):
        if each.number == VALUE_NAME:
            name = protobuf.text(data, each)
        elif each.number == VALUE_TYPE:
            for kind in protobuf.fields(data, each.start, each.end):
                if kind.number == TYPE_TENSOR:
                    element, shape = _tensor_type(data, kind)
    return TensorInfo(name, element, shape)


def _tensor_type(data: memoryview, kind: Field) -> tuple[str, tuple[int | str | None, ...]]:
    element, dims = "unknown", []
    for part in protobuf.fields(data, kind.start, kind.end):
        if part.number == TENSOR_ELEM and part.wire != LENGTH:
            element = ELEMENT_TYPES.get(part.value, "unknown")
        elif part.number == TENSOR_SHAPE:
            dims = [
                _dimension(data, each)
                for each in protobuf.fields(data, part.start, part.end)
                if each.number == SHAPE_DIM
            ]
    return element, tuple(dims)


def _dimension(data: memoryview, dim: Field) -> int | str | None:
    for part in protobuf.fields(data, dim.start, dim.end):
        if part.number == DIM_VALUE:
            return protobuf.signed(part.value)
        if part.number == DIM_PARAM:
            return protobuf.text(data, part)
    return None
