"""A small writer of ONNX graphs: nodes are appended in order, weights become initialisers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
"""LayerNormalization came with 17; nothing later is needed, so older runtimes load the models too."""

IR_VERSION = 8
PRODUCER = "rbee"

Axis = int | str
"""A length, or the name of a dynamic axis."""

INT64 = TensorProto.INT64
FLOAT = TensorProto.FLOAT
BOOL = TensorProto.BOOL
UINT8 = TensorProto.UINT8


class Graph:
    """One ONNX graph being written.

    Tensors are named by strings: ``weight`` and ``node`` return the name that later nodes take as input.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def input(self, name: str, dtype: int, shape: Sequence[Axis]) -> str:
        """Declare an input of the model and return its name."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, name: str, dtype: int, shape: Sequence[Axis]) -> None:
        """Declare the tensor ``name`` as an output of the model."""
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def weight(self, name: str, value: NDArray[Any]) -> str:
        """Store ``value`` (dtype and shape as they are) as an initialiser."""
        self._weights.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def raw_weight(self, tensor: object, name: str) -> str:
        """Store a finished TensorProto, such as one whose data lies outside the file."""
        self._weights.append(tensor)
        return name

    def constant(self, value: float | Sequence[int], dtype: type[np.generic] = np.float32) -> str:
        """A small constant, stored once however often it is asked for."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.weight(f"constant_{len(self._constants)}", array)
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """A constant int64 vector, as shapes and axes want it."""
        return self.constant(values, np.int64)

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: object) -> str:
        """Append one node with one output, named ``output``, and return that name."""
        return self.nodes(op, inputs, [output], **attributes)[0]

    def nodes(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: object) -> list[str]:
        """Append one node with several outputs (an empty name leaves one out) and return their names."""
        self._nodes.append(
            helper.make_node(op, list(inputs), list(outputs), name=f"{op}_{len(self._nodes)}", **attributes)
        )
        return list(outputs)

    def model(self) -> onnx.ModelProto:
        """The finished model, not checked."""
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, initializer=self._weights)
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name=PRODUCER,
        )

    def write(self, path: Path) -> None:
        """Check the model and write it to ``path``."""
        model = self.model()
        onnx.checker.check_model(model)
        path.write_bytes(model.SerializeToString(deterministic=True))
