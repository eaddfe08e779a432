"""tiny-tensor: a model with two inputs of different types and two outputs, as plain as a tensor model can be."""

from pathlib import Path

import numpy as np

from rbee.keeper.demo.graph import FLOAT, INT64, Graph

NAME = "tiny-tensor"
BIAS = (0.5, -0.5, 1.0, 0.0)


def build(folder: Path) -> None:
    """Write model.onnx, and nothing beside it, into the existing ``folder``.

    In: x float32 [batch, 4], shift int64 [batch, 1]. Out: y = 2 x + BIAS float32 [batch, 4];
    z int64 [batch, 1] = index of the greatest of y, plus shift.
    """
    tensor_graph().write(folder / "model.onnx")


def tensor_graph() -> Graph:
    """The graph that ``build`` writes."""
    graph = Graph(NAME)
    x = graph.input("x", FLOAT, ("batch", len(BIAS)))
    shift = graph.input("shift", INT64, ("batch", 1))
    doubled = graph.node("Mul", [x, graph.constant(2.0)], "doubled")
    y = graph.node("Add", [doubled, graph.weight("bias", np.array(BIAS, dtype=np.float32))], "y")
    best = graph.node("ArgMax", [y], "best", axis=1, keepdims=1)
    z = graph.node("Add", [best, shift], "z")
    graph.output(y, FLOAT, ("batch", len(BIAS)))
    graph.output(z, INT64, ("batch", 1))
    return graph
