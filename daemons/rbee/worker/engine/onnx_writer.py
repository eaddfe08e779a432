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


def bytes_field(number: int, value: bytes) -> bytes:
    """A field of bytes, or of a message's bytes."""
    return _varint(number << 3 | LENGTH) + _varint(len(value)) + value


def text_fields(number: int, values: Sequence[str]) -> bytes:
    """A repeated field of texts."""
    return b"".join(bytes_field(number, value.encode()) for value in values)


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
        attributes = b"".join(bytes_field(5, _attribute(name, value)) for name, value in integers.items())
        self.nodes.append(text_fields(1, inputs) + text_fields(2, outputs) + bytes_field(4, op.encode()) + attributes)
        return outputs[0]

    def model(self, constants: Mapping[str, Sequence[int]] | None = None) -> bytes:
        """The model's bytes; ``constants`` are int64 vectors by name."""
        parts = [bytes_field(1, node) for node in self.nodes] + [bytes_field(2, b"small")]
        parts += [bytes_field(5, _vector(name, values)) for name, values in (constants or {}).items()]
        parts += [bytes_field(11, value) for value in self.inputs] + [bytes_field(12, value) for value in self.outputs]
        return _number(1, IR_VERSION) + bytes_field(7, b"".join(parts)) + bytes_field(8, _number(2, OPSET))


def _value(name: str, element: str, rank: int) -> bytes:
    shape = b"".join(bytes_field(1, bytes_field(2, f"{name}_{axis}".encode())) for axis in range(rank))
    return bytes_field(1, name.encode()) + bytes_field(
        2, bytes_field(1, _number(1, _ELEMENTS[element]) + bytes_field(2, shape))
    )


def _attribute(name: str, value: int) -> bytes:
    return bytes_field(1, name.encode()) + _number(3, value) + _number(20, INT)


def _vector(name: str, values: Sequence[int]) -> bytes:
    data = b"".join(_number(7, value) for value in values)
    return _number(1, len(values)) + _number(2, _ELEMENTS["int64"]) + data + bytes_field(8, name.encode())
