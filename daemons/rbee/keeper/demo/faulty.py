"""Models for tests of faults: each is real ONNX and fails, or dawdles, in a real way."""

import os
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from rbee.keeper.demo.graph import FLOAT, INT64, UINT8, Graph
from rbee.keeper.demo.tensor import tensor_graph

SLOW_LOAD = "faulty-slow-load"
BAD_INDEX = "faulty-bad-index"
BROKEN_FILE = "faulty-broken-file"
OUTSIDE_DATA = "faulty-outside-data"

DEFAULT_LOAD_SECONDS = 3.0
TABLE_ROWS = 8
OUTSIDE_LOCATION = "../" * 16 + "etc/passwd"

_STEPS, _STATE, _TRIAL = 4000, 128, 8


def build_slow_load(folder: Path, seconds: float = DEFAULT_LOAD_SECONDS) -> None:
    """A model (y = x + c, float32 [batch, 1]) that ONNX Runtime takes ``seconds`` of a processor's time to load.

    Its constant c is the end of recurrent nets over constant input, which the runtime works out at load (constant
    folding, on unless graph optimisation is off). The number of nets is calibrated on this machine, so the file
    differs from build to build. An empty folder is expected.
    """
    path = folder / "model.onnx"
    _slow_graph(1).write(path)
    _load(path)
    _slow_graph(_TRIAL).write(path)
    _slow_graph(max(1, round(seconds * _TRIAL / _load(path)))).write(path)


def session(path: Path) -> Any:  # noqa: ANN401 - the runtime has no types
    """A session of the model at ``path`` on one thread."""
    # The runtime reads this once, when it is first imported: it would call home otherwise.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _load(path: Path) -> float:
    # not a clock: on a busy machine the wait for a core would count as work, and the model come out quick
    started = process_time()
    session(path)
    return process_time() - started


def _slow_graph(nets: int) -> Graph:
    rng = np.random.default_rng(3)
    graph = Graph(SLOW_LOAD)
    x = graph.input("x", FLOAT, ("batch", 1))
    series = graph.weight("series", rng.standard_normal((_STEPS, 1, 1)).astype(np.float32))
    inner = graph.weight("inner", (0.05 * rng.standard_normal((1, 4 * _STATE, 1))).astype(np.float32))
    again = graph.weight("again", (0.05 * rng.standard_normal((1, 4 * _STATE, _STATE))).astype(np.float32))
    state = ""
    for index in range(nets):
        # Each net starts from the last one's state, so no two are the same and none is dropped as a copy.
        inputs = [series, inner, again, "", "", state] if state else [series, inner, again]
        state = graph.nodes("LSTM", inputs, ["", f"state_{index}"], hidden_size=_STATE)[1]
    total = graph.node("ReduceSum", [state], "total", keepdims=0)
    graph.output(graph.node("Add", [x, total], "y"), FLOAT, ("batch", 1))
    return graph


def build_bad_index(folder: Path) -> None:
    """A model that fails at run time for some inputs: y float32 [batch, 4] = table row of index int64 [batch].

    Rows 0 to TABLE_ROWS - 1 exist; another index makes ONNX Runtime's CPU provider refuse the run.
    """
    graph = Graph(BAD_INDEX)
    index = graph.input("index", INT64, ("batch",))
    table = graph.weight("table", np.arange(TABLE_ROWS * 4, dtype=np.float32).reshape(TABLE_ROWS, 4))
    graph.output(graph.node("Gather", [table, index], "y", axis=0), FLOAT, ("batch", 4))
    graph.write(folder / "model.onnx")


def build_broken_file(folder: Path) -> None:
    """A model file cut in the middle, as an interrupted copy leaves it."""
    data = tensor_graph().model().SerializeToString(deterministic=True)
    (folder / "model.onnx").write_bytes(data[: len(data) * 2 // 3])


def build_outside_data(folder: Path) -> None:
    """A model whose weights are said to lie outside its folder, in /etc/passwd: a reader must refuse it."""
    tensor = TensorProto(name="stolen", data_type=UINT8, dims=[16], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", OUTSIDE_LOCATION), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    graph = Graph(OUTSIDE_DATA)
    x = graph.input("x", UINT8, ("batch", 16))
    graph.output(
        graph.node("BitShift", [x, graph.raw_weight(tensor, "stolen")], "y", direction="LEFT"), UINT8, ("batch", 16)
    )
    # Written without Graph.write: the checker of onnx refuses such a model, and rightly so.
    onnx.save_model(graph.model(), str(folder / "model.onnx"))
