"""Tensors as they travel: JSON values or raw little-endian bytes, to NumPy and back, checked.

The bytes are those of the binary tensor data extension of the Open Inference Protocol:
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rbee.wire.errors import InferenceError
from rbee.worker.engine import datatypes
from rbee.worker.engine.datatypes import BF16, BYTES, invalid
from rbee.worker.engine.sessions import Array

JSON_TYPES: Mapping[str, frozenset[type]] = {
    "b": frozenset({bool}),
    "u": frozenset({int}),
    "i": frozenset({int}),
    "f": frozenset({int, float}),
    "O": frozenset({str}),
}
"""Types of JSON values that may become a kind of NumPy type without loss of meaning."""
MOST_ELEMENTS = 1 << 26
LENGTH = struct.Struct("<I")


def from_json(name: str, datatype: str, shape: Sequence[int], data: object) -> Array:
    """The array of a JSON tensor, flat or nested row-major; raises InvalidRequest naming the input and the fault.

    ``data`` is what JSON had, or an array of the numbers of a floating-point type.
    """
    element = datatypes.element_of(name, datatype)
    count = _count(name, shape)
    dtype = np.dtype(np.float32) if element == BF16 else datatypes.storage_type(element)
    kinds = JSON_TYPES[dtype.kind]
    seen: Any = data
    if not isinstance(data, np.ndarray) and not (
        isinstance(data, list) and dtype.kind != "O" and kinds.issuperset(map(type, data))
    ):
        # as objects: NumPy's own guess for texts is an array in which each one takes the longest one's room
        seen = np.array(data, dtype=object)
        types = frozenset(map(type, seen.ravel()))  # ``flat`` takes no array of over 32 dimensions
        if list in types:
            raise invalid(name, "the data is ragged")
        if not types <= kinds:
            raise invalid(name, f"the data is not {datatype}")
    try:
        with np.errstate(over="raise"):
            values = np.asarray(seen, np.float64 if dtype.kind == "f" else dtype).astype(dtype, copy=False)
    except (ValueError, OverflowError, FloatingPointError):
        raise invalid(name, f"the data does not fit {datatype}") from None
    if values.size != count:
        raise invalid(name, f"the data has {values.size} elements and the shape asks for {count}")
    if values.ndim > 1 and list(values.shape) != list(shape):
        raise invalid(name, f"the data is nested as {list(values.shape)} and the shape is {list(shape)}")
    values = values.reshape(tuple(shape))
    return datatypes.bfloat16_bits(values) if element == BF16 else values


def from_binary(name: str, datatype: str, shape: Sequence[int], raw: memoryview) -> Array:
    """The array whose elements ``raw`` holds, row-major; raises InvalidRequest naming the input and the fault.

    Numbers are not copied where their place in memory allows it: the array is then a read-only view of ``raw``.
    """
    element = datatypes.element_of(name, datatype)
    count = _count(name, shape)
    if element == BYTES:
        return _texts(name, count, raw).reshape(tuple(shape))
    dtype = datatypes.storage_type(element)
    if len(raw) != count * dtype.itemsize:
        raise invalid(name, f"the binary data has {len(raw)} bytes and the shape asks for {count * dtype.itemsize}")
    if dtype.kind == "b" and len(raw) and np.frombuffer(raw, np.uint8).max() > 1:
        raise invalid(name, "the data is not BOOL")
    values = np.frombuffer(raw, dtype.newbyteorder("<")).reshape(tuple(shape)).astype(dtype, copy=False)
    # the JSON before it has any length; the runtime's kernels may count on aligned elements
    return values if values.flags.aligned else values.copy()


def _texts(name: str, count: int, raw: memoryview) -> Array:
    """BYTES: each element is its length in four bytes, then its UTF-8."""
    found = np.empty(count, object)
    at = 0
    for index in range(count):
        start = at + LENGTH.size
        if start > len(raw):
            raise invalid(name, f"the binary data holds {index} elements and the shape asks for {count}")
        at = start + LENGTH.unpack_from(raw, at)[0]
        if at > len(raw):
            raise invalid(name, f"the binary data ends inside element {index}")
        try:
            found[index] = str(raw[start:at], "utf-8")
        except UnicodeDecodeError:
            raise invalid(name, f"element {index} is not UTF-8, which the runtime's texts have to be") from None
    if at != len(raw):
        raise invalid(name, f"the binary data goes on after the {count} elements that the shape asks for")
    return found


def _count(name: str, shape: Sequence[int]) -> int:
    count = 1
    for size in shape:
        if size < 0:
            raise invalid(name, "the shape has a negative size")
        count *= size
        if max(count, size) > MOST_ELEMENTS:
            raise invalid(name, f"the shape asks for more than {MOST_ELEMENTS} elements")
    return count


def to_json(name: str, element: str, values: Array) -> list[Any]:
    """The flat row-major values of an output; raises InferenceError for one that JSON has no number for."""
    if element == BF16:
        values = datatypes.bfloat16_values(values)
    if datatypes.holds_no_number(values):
        raise InferenceError(
            f"the output '{name[:64]}' holds NaN or infinity, which JSON cannot say: ask for it with binary_data",
            details={"output": name[:64]},
        )
    found: list[Any] = values.ravel().tolist()
    return found


def to_binary(element: str, values: Array) -> bytes | memoryview:
    """The row-major bytes of an output, little-endian; a view of ``values`` where they lie so already."""
    if element == BYTES:
        texts = [str(each).encode() for each in values.flat]
        return b"".join(part for text in texts for part in (LENGTH.pack(len(text)), text))
    flat = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).reshape(-1)
    return flat.view(np.uint8).data
