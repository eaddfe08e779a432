"""Writes small ONNX models by hand, so that a worker needs no onnx package for the few nodes that it adds itself.

Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto), the encoding is that of
https://protobuf.dev/programming-guides/encoding/.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rbee.worker.engine.onnx_file import ELEMENT_TYPES
from rbee.worker.engine.protobuf import LENGTH, VARINT

IR_VERSION, OPSET = 8, 18
INT = 2
"""AttributeProto.type of an integer."""
_ELEMENTS = {name: number for number, name in ELEMENT_TYPES.items()}


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3 | VARINT) + _varint(value & (1 << 64) - 1)


def _bytes(number: int, value: bytes) -> bytes:
    return _varint(number << 3 | LENGTH) + _varint(len(value)) + value


def _texts(number: int, values: Sequence[str]) -> bytes:
    return b"".join(_bytes(number, value.encode()) for value in values)


@dataclass(slots=True)
class SmallGraph:
    """A graph being written; tensors are named by strings, and element types as NumPy names them."""

    nodes: list[bytes] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)
    outputs: list[bytes] = field(default_factory=list)

    def input(self, name: str, element: str, rank: int) -> str:
        """Declare an input of ``rank`` dimensions of any length; returns its name."""
        self.inputs.append(_value(name, element, rank))
        return name

    def output(self, name: str, element: str, rank: int) -> None:
        """Declare an output."""
        self.outputs.append(_value(name, element, rank))

    def node(self, op: str, inputs: Sequence[str], outputs: Sequence[str], **integers: int) -> str:
        """Append a node with integer attributes; returns the name of its first output."""
        attributes = b"".join(_bytes(5, _attribute(name, value)) for name, value in integers.items())
        self.nodes.append(_texts(1, inputs) + _texts(2, outputs) + _bytes(4, op.encode()) + attributes)
        return outputs[0]

    def model(self, constants: Mapping[str, Sequence[int]] | None = None) -> bytes:
        """The model's bytes; ``constants`` are int64 vectors by name."""
        parts = [_bytes(1, node) for node in self.nodes] + [_bytes(2, b"small")]
        parts += [_bytes(5, _vector(name, values)) for name, values in (constants or {}).items()]
        parts += [_bytes(11, value) for value in self.inputs] + [_bytes(12, value) for value in self.outputs]
        return _number(1, IR_VERSION) + _bytes(7, b"".join(parts)) + _bytes(8, _number(2, OPSET))


def _value(name: str, element: str, rank: int) -> bytes:
    shape = b"".join(_bytes(1, _bytes(2, f"{name}_{axis}".encode())) for axis in range(rank))
    return _bytes(1, name.encode()) + _bytes(2, _bytes(1, _number(1, _ELEMENTS[element]) + _bytes(2, shape)))


def _attribute(name: str, value: int) -> bytes:
    return _bytes(1, name.encode()) + _number(3, value) + _number(20, INT)


def _vector(name: str, values: Sequence[int]) -> bytes:
    data = b"".join(_number(7, value) for value in values)
    return _number(1, len(values)) + _number(2, _ELEMENTS["int64"]) + data + _bytes(8, name.encode())
