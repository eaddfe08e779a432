"""Tells which execution providers really start on this machine: one session on each, printed as JSON.

Run as a process of its own (``python -m rbee.worker.probe``), because a provider's libraries stay in the process that
loaded them. A listed provider proves nothing: only a session that was created and ran does.
"""

import os

# read by the library before its first call: later is too late
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import sys
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort

from rbee.host.machine import has_gpu_driver
from rbee.worker.engine.cuda_advice import advise

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
_MOST_REASON = 600
_FATAL = 4

# Protocol buffers (https://protobuf.dev/programming-guides/encoding/): a field's key is number << 3 | wire type.
_VARINT, _BYTES = 0, 2


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3 | _VARINT, value])  # every number here is below 128: one byte


def _bytes(field: int, value: bytes) -> bytes:
    return bytes([field << 3 | _BYTES, len(value)]) + value


def tiny_model() -> bytes:
    """A model of one node, ``y = x + x`` over one float, written by hand so that the worker needs no onnx package.

    Field numbers are those of onnx.proto (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
    """
    shape = _bytes(1, _number(1, 1))  # TensorShapeProto.dim[0].dim_value = 1
    tensor = _number(1, 1) + _bytes(2, shape)  # TypeProto.Tensor: elem_type = FLOAT, shape

    def value(name: bytes) -> bytes:
        return _bytes(1, name) + _bytes(2, _bytes(1, tensor))  # ValueInfoProto: name, type.tensor_type

    node = _bytes(1, b"x") + _bytes(1, b"x") + _bytes(2, b"y") + _bytes(4, b"Add")  # NodeProto: input, output, op_type
    graph = _bytes(1, node) + _bytes(2, b"probe") + _bytes(11, value(b"x")) + _bytes(12, value(b"y"))
    # ModelProto: ir_version, graph, opset_import {version}
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _number(2, 17))


def try_provider(name: str) -> dict[str, Any]:
    """Create a session on ``name`` alone and run it: ``{"ok": true}`` or the loader's own words."""
    if name not in ort.get_available_providers():
        return {"ok": False, "reason": "this build of onnxruntime does not have it"}
    options = ort.SessionOptions()
    options.log_severity_level = _FATAL
    try:
        session = ort.InferenceSession(tiny_model(), options, providers=[name])
        if name not in session.get_providers():
            return {"ok": False, "reason": _why_not(name)}
        result = session.run(None, {"x": np.array([1.5], dtype=np.float32)})[0]
    except Exception as error:  # noqa: BLE001 - the runtime raises types of its own; each is the answer
        return {"ok": False, "reason": str(error)[:_MOST_REASON]}
    if float(result[0]) != 3.0:
        return {"ok": False, "reason": f"1.5 + 1.5 gave {float(result[0])}"}
    return {"ok": True}


def _why_not(name: str) -> str:
    """The runtime falls back to the CPU without a word to the caller: load the provider's library to hear why."""
    import ctypes
    from pathlib import Path

    library = (
        Path(ort.__file__).parent / "capi" / f"libonnxruntime_providers_{name.partition('Execution')[0].lower()}.so"
    )
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        return str(error)[:_MOST_REASON]
    return "the session fell back to another provider: the driver or the device is not there"


def main() -> None:
    """Print the answer."""
    ort.set_default_logger_severity(_FATAL)
    providers = {name: try_provider(name) for name in (CPU, CUDA)}
    if not providers[CUDA]["ok"]:
        providers[CUDA]["advice"] = advise(providers[CUDA]["reason"], driver=has_gpu_driver()).sentence
    answer = {"onnxruntime_version": ort.__version__, "providers": providers}
    sys.stdout.write(msgspec.json.encode(answer).decode() + "\n")


if __name__ == "__main__":
    main()
