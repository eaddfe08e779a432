"""Walks the fields of one protobuf message in a buffer without copying: enough to read ONNX headers.

Wire format: https://protobuf.dev/programming-guides/encoding/. Tensors' bytes are skipped, never read, so that a model
file of many gigabytes costs only the pages its headers lie on.
"""

from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


class MalformedMessage(ValueError):
    """The bytes are not a protobuf message."""


class Field(NamedTuple):
    """One field: its number, its wire type, its number value (varint) or the bounds of its bytes."""

    number: int
    wire: int
    value: int
    start: int
    end: int


def fields(data: memoryview, start: int, end: int) -> Iterator[Field]:
    """Yield the fields of the message in ``data[start:end]``; raises MalformedMessage."""
    at = start
    while at < end:
        key, at = varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == LENGTH:
            length, at = varint(data, at, end)
            stop = at + length
            value = 0
        elif wire == VARINT:
            value, stop = varint(data, at, end)
        elif wire in (FIXED64, FIXED32):
            value, stop = 0, at + (8 if wire == FIXED64 else 4)
        else:
            raise MalformedMessage(f"wire type {wire} at byte {at}")
        if number == 0 or stop > end:
            raise MalformedMessage(f"a field ends outside its message at byte {at}")
        yield Field(number, wire, value, at, stop)
        at = stop


def varint(data: memoryview, at: int, end: int) -> tuple[int, int]:
    """Read one varint at ``at``; returns the value and where it ends."""
    value = shift = 0
    while at < end and shift < 64:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise MalformedMessage(f"a number does not end at byte {at}")


def text(data: memoryview, field: Field) -> str:
    """The field's bytes as UTF-8; raises MalformedMessage."""
    try:
        return str(data[field.start : field.end], "utf-8")
    except UnicodeDecodeError as error:
        raise MalformedMessage(f"text at byte {field.start} is not UTF-8") from error


def signed(value: int) -> int:
    """A varint of an int64 field as a signed number."""
    return value - (1 << 64) if value >= 1 << 63 else value
