"""Runs a model that has bfloat16 tensors, which NumPy has no type for: they go in and come out as their 16 bits."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Protocol, cast

import numpy as np

from rbee.worker.engine.datatypes import BF16
from rbee.worker.engine.runtime import runtime
from rbee.worker.engine.sessions import Array, RunOptions, Session, gpu_of, run_failure

ONNX_BFLOAT16 = 16
"""TensorProto.BFLOAT16 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto)."""


class Value(Protocol):
    """A tensor of the runtime's own (onnxruntime.OrtValue), in the processor's memory."""

    def numpy(self) -> Array: ...

    def data_ptr(self) -> int: ...

    def tensor_size_in_bytes(self) -> int: ...

    def shape(self) -> list[int]: ...


class ValueSession(Protocol):
    """The part of onnxruntime.InferenceSession that takes and gives such tensors."""

    def run_with_ort_values(
        self, outputs: Sequence[str], feeds: Mapping[str, Value], options: RunOptions | None = None
    ) -> list[Value]: ...


def run(
    session: Session,
    outputs: Sequence[str],
    feeds: Mapping[str, Array],
    elements: Mapping[str, str],
    options: RunOptions | None = None,
) -> list[Array]:
    """One inference; ``elements`` has the element type of each tensor by name. Raises as run_session."""
    values = {name: _value(array, elements[name]) for name, array in feeds.items()}
    try:
        found = cast(ValueSession, session).run_with_ort_values(list(outputs), values, options)
    except Exception as error:
        raise run_failure(error, "this input", gpu_of(session)) from error
    return [_array(value, elements[name]) for name, value in zip(outputs, found, strict=True)]


def _value(array: Array, element: str) -> Value:
    kind, contiguous = runtime().OrtValue, np.ascontiguousarray(array)
    value: Value = (
        kind.ortvalue_from_numpy_with_onnx_type(contiguous, ONNX_BFLOAT16)
        if element == BF16
        else kind.ortvalue_from_numpy(contiguous)
    )
    return value


def _array(value: Value, element: str) -> Array:
    if element != BF16:
        return value.numpy()
    raw = ctypes.string_at(value.data_ptr(), value.tensor_size_in_bytes())
    return np.frombuffer(raw, np.uint16).reshape(value.shape())
