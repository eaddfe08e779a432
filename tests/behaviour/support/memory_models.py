"""Models that take as much memory as a test wants: when they load, and when they run."""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def _model(graph: onnx.GraphProto) -> bytes:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def expanding(shape: Sequence[int]) -> bytes:
    """x float [1] -> sum: a tensor of ``shape`` floats is made on the way, in each run and so in the warm-up."""
    nodes = [helper.make_node("Expand", ["x", "shape"], ["many"]), helper.make_node("ReduceSum", ["many"], ["sum"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]
    outputs = [helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)]
    weights = [numpy_helper.from_array(np.array(shape, np.int64), "shape")]
    return _model(helper.make_graph(nodes, "expanding", inputs, outputs, weights))


def as_asked() -> bytes:
    """shape int64 [n] -> sum: each run makes a tensor of the shape that its request asks for."""
    zero = numpy_helper.from_array(np.zeros(1, np.float32), "zero")
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["many"], value=zero),
        helper.make_node("ReduceSum", ["many"], ["sum"]),
    ]
    inputs = [helper.make_tensor_value_info("shape", TensorProto.INT64, ["n"])]
    outputs = [helper.make_tensor_value_info("sum", TensorProto.FLOAT, None)]
    return _model(helper.make_graph(nodes, "as_asked", inputs, outputs))


def weighing(mib: int) -> bytes:
    """x float [1, 1024] -> y: one matrix of ``mib`` MiB, which loading holds in memory more than once."""
    columns = mib * (1 << 20) // (4 * 1024)
    nodes = [helper.make_node("MatMul", ["x", "matrix"], ["y"])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1024])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])]
    weights = [numpy_helper.from_array(np.zeros((1024, columns), np.float32), "matrix")]
    return _model(helper.make_graph(nodes, "weighing", inputs, outputs, weights))
