"""The datatypes of the Open Inference Protocol (KServe v2), and how NumPy holds each.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rbee.wire.errors import InvalidRequest
from rbee.worker.engine.sessions import Array, numpy_type

DATATYPES: Mapping[str, str] = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
    "BF16": "bfloat16", "BYTES": "string",
}  # fmt: skip
NAMES = {element: datatype for datatype, element in DATATYPES.items()}
FLOATING = frozenset(datatype for datatype, element in DATATYPES.items() if "float" in element)
BF16, BYTES = "bfloat16", "string"


def element_of(name: str, datatype: str) -> str:
    """The ONNX element type's name of a datatype; raises InvalidRequest naming the input."""
    element = DATATYPES.get(datatype)
    if element is None:
        raise invalid(name, f"the datatype {datatype} is not known", accepted=sorted(DATATYPES))
    return element


@cache
def storage_type(element: str) -> np.dtype[Any]:
    """The NumPy type that holds an element type; bfloat16, which NumPy lacks, is held as its 16 bits.

    Raises ConfigError for a type that cannot be held.
    """
    return np.dtype(np.uint16) if element == BF16 else numpy_type(element)


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The nearest bfloat16 of each value, as its bits; ties go to the even one, NaN stays NaN."""
    bits = values.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).astype(np.uint16)


def bfloat16_values(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The values of bfloat16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def holds_no_number(values: Array) -> bool:
    """Whether a floating-point array has a NaN or an infinity."""
    return values.dtype.kind == "f" and not bool(np.isfinite(values).all())


def invalid(name: str, why: str, **details: object) -> InvalidRequest:
    """The error of an input's tensor, which it names."""
    return InvalidRequest(f"input '{name[:64]}': {why}", details={"input": name[:64], **details}, param="inputs")
