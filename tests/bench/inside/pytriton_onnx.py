"""A program: PyTriton with the bare runtime on one ONNX file, as its documentation has one write it.

pytriton_onnx.py MODEL_FILE NAME THREADS HTTP_PORT GRPC_PORT METRICS_PORT
"""

import sys
from typing import Any

import numpy as np
from onnxruntime import InferenceSession, SessionOptions
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


def main() -> None:
    """Serve until the process is ended."""
    file, name, threads, http, grpc, metrics = sys.argv[1:]
    options = SessionOptions()
    options.intra_op_num_threads = int(threads)
    session = InferenceSession(file, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]

    @batch  # type: ignore[untyped-decorator]
    def infer(**feeds: Any) -> dict[str, Any]:  # noqa: ANN401 - arrays of any type
        return dict(zip(outputs, session.run(outputs, feeds), strict=True))

    def tensors(ends: list[Any]) -> list[Tensor]:
        return [Tensor(name=end.name, dtype=_TYPES[end.type], shape=tuple(end.shape[1:])) for end in ends]

    config = TritonConfig(
        http_address="127.0.0.1", grpc_address="127.0.0.1",
        http_port=int(http), grpc_port=int(grpc), metrics_port=int(metrics),
    )  # fmt: skip
    with Triton(config=config) as triton:
        triton.bind(
            name, infer, tensors(session.get_inputs()), tensors(session.get_outputs()),
            config=ModelConfig(max_batch_size=256),
        )  # fmt: skip
        triton.serve()


if __name__ == "__main__":
    main()
