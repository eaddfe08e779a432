"""Small ONNX graphs for tests, written with the onnx package."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def save(path: Path, nodes: list, inputs: list, outputs: list, weights: tuple = ()) -> Path:  # type: ignore[type-arg]
    """Write a model of opset 17."""
    graph = helper.make_graph(nodes, "graph", inputs, outputs, [numpy_helper.from_array(v, n) for n, v in weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))
    return path


def value(name: str, element: int, *shape: int | str) -> onnx.ValueInfoProto:
    """An input or output."""
    return helper.make_tensor_value_info(name, element, list(shape))


def identity(path: Path, element: int, *shape: int | str) -> Path:
    """A model that gives back what it gets."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return save(path, nodes, [value("x", element, *shape)], [value("y", element, *shape)])


def square(path: Path) -> Path:
    """A product of a matrix with itself, large enough for several threads where the matrix is."""
    nodes = [helper.make_node("MatMul", ["x", "x"], ["y"])]
    return save(path, nodes, [value("x", TensorProto.FLOAT, "n", "n")], [value("y", TensorProto.FLOAT, "n", "n")])


def encoder_like(path: Path, output: str = "last_hidden_state") -> Path:
    """input_ids -> one row of a table for each token."""
    table = np.arange(40, dtype=np.float32).reshape(10, 4)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], [output])]
    ids = value("input_ids", TensorProto.INT64, "batch", "length")
    hidden = value(output, TensorProto.FLOAT, "batch", "length", 4)
    return save(path, nodes, [ids], [hidden], (("table", table),))


def decoder_like(path: Path, past: str = "past_key_values.0.key", present: str = "present.0.key") -> Path:
    """The names and shapes of a decoder with one cached tensor; heads and size stand in config.json only."""
    shape = ("batch", "heads", "past", "size")
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["logits"], to=TensorProto.FLOAT),
        helper.make_node("Identity", [past], [present]),
    ]
    inputs = [value("input_ids", TensorProto.INT64, "batch", "length"), value(past, TensorProto.FLOAT16, *shape)]
    outputs = [value("logits", TensorProto.FLOAT, "batch", "length"), value(present, TensorProto.FLOAT16, *shape)]
    return save(path, nodes, inputs, outputs)


def endless(path: Path) -> Path:
    """count int64 [1] -> y: a loop that multiplies a matrix ``count`` times; with a large count it takes minutes."""
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["next"]),
            helper.make_node("Identity", ["go"], ["go_on"]),
        ],
        "body",
        [value("i", TensorProto.INT64), value("go", TensorProto.BOOL), value("state", TensorProto.FLOAT, 128, 128)],
        [value("go_on", TensorProto.BOOL), value("next", TensorProto.FLOAT, 128, 128)],
    )
    eye = np.eye(128, dtype=np.float32)
    nodes = [
        helper.make_node("Squeeze", ["count"], ["trips"]),
        helper.make_node("Loop", ["trips", "", "w"], ["last"], body=body),
        helper.make_node("ReduceSum", ["last"], ["y"], keepdims=0),
    ]
    inputs = [value("count", TensorProto.INT64, 1)]
    return save(path, nodes, inputs, [value("y", TensorProto.FLOAT)], (("w", eye),))
