"""The bench `tensor`: what binary tensors save, and a tensor worker against other servers of the same ONNX file."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rbee.keeper.demo.graph import FLOAT, Graph
from tests.bench import closed_loop, references
from tests.bench.lone_worker import TOKEN, Cores, worker
from tests.bench.quantiles import median, ratio
from tests.bench.report import Bench, Figure, Measured, Metrics, Target
from tests.machines.testbed import project

MODEL = "tiny-tensor"
ROUNDS, QUICK_ROUNDS = 7, 3
SECONDS, QUICK_SECONDS = 3.0, 1.5
CLIENTS = 16
LARGE_ROWS, LARGE_COLUMNS = 256, 1024
HEADER = "Inference-Header-Content-Length"
Tensors = dict[str, tuple[str, "np.ndarray[tuple[int, ...], np.dtype[np.generic]]"]]


@dataclass(frozen=True, slots=True)
class Message:
    """One request's body and the headers that it needs."""

    body: bytes
    headers: dict[str, str]

    def to(self, port: int, model: str) -> bytes:
        return closed_loop.request(port, f"/v2/models/{model}/infer", self.body, TOKEN, self.headers)


def as_json(tensors: Tensors) -> Message:
    """The tensors as JSON, for an answer in JSON."""
    inputs = [
        {"name": name, "datatype": datatype, "shape": list(values.shape), "data": values.ravel().tolist()}
        for name, (datatype, values) in tensors.items()
    ]
    return Message(json.dumps({"inputs": inputs}).encode(), {})


def as_binary(tensors: Tensors) -> Message:
    """The tensors' bytes behind the JSON, for an answer in bytes."""
    inputs = [
        {"name": name, "datatype": datatype, "shape": list(values.shape),
         "parameters": {"binary_data_size": values.nbytes}}
        for name, (datatype, values) in tensors.items()
    ]  # fmt: skip
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    raw = b"".join(values.tobytes() for _, values in tensors.values())
    return Message(head + raw, {HEADER: str(len(head)), "Content-Type": "application/octet-stream"})


SMALL: Tensors = {
    "x": ("FP32", np.array([[1, 2, 3, 4]], np.float32)),
    "shift": ("INT64", np.array([[7]], np.int64)),
}


def large() -> Tensors:
    """A tensor of 1 MiB."""
    values = np.random.default_rng(1).standard_normal((LARGE_ROWS, LARGE_COLUMNS), np.float32)
    return {"x": ("FP32", values)}


@contextmanager
def large_model() -> Iterator[Path]:
    """The folder of a model whose run is nothing beside the way to it: y = x + 1."""
    with tempfile.TemporaryDirectory(prefix="rbee-bench-") as name:
        folder = Path(name) / "large"
        folder.mkdir()
        graph = Graph("large")
        x = graph.input("x", FLOAT, ("batch", LARGE_COLUMNS))
        graph.output(graph.node("Add", [x, graph.constant(1.0)], "y"), FLOAT, ("batch", LARGE_COLUMNS))
        graph.write(folder / "model.onnx")
        yield folder


def _rate(port: int | None, model: str, message: Message, clients: int, seconds: float) -> float | None:
    """Answers a second; None for a server that is not there."""
    if port is None:
        return None
    took = closed_loop.during(port, message.to(port, model), clients, seconds)
    return len(took.each) / took.seconds


def _forms(cores: Cores, rounds: int, seconds: float) -> list[Metrics]:
    """A lone client's answers a second with 1 MiB in and out, as bytes and as JSON."""
    with large_model() as model, worker(model, cores) as port, cores.as_client():
        binary, plain = as_binary(large()), as_json(large())
        return [
            {
                "binary_per_s": _rate(port, model.name, binary, 1, seconds),
                "json_per_s": _rate(port, model.name, plain, 1, seconds),
            }
            for _ in range(rounds)
        ]


def _servers(cores: Cores, rounds: int, seconds: float) -> list[Metrics]:
    """Answers a second of each server at 16 clients, in turns: MLServer speaks JSON only, PyTriton gets bytes."""
    model = project.models() / project.MODELS / MODEL
    with ExitStack() as stack:
        ours = stack.enter_context(worker(model, cores, slots=32, max_batch=64))
        ports = [stack.enter_context(start(model, cores)) for start in (references.mlserver, references.pytriton)]
        stack.enter_context(cores.as_client())
        mlserver, pytriton = ports
        binary, plain = as_binary(SMALL), as_json(SMALL)
        turns = (
            ("worker_json_per_s", ours, plain),
            ("mlserver_per_s", mlserver, plain),
            ("worker_binary_per_s", ours, binary),
            ("pytriton_per_s", pytriton, binary),
        )
        for _, port, message in turns:
            _rate(port, MODEL, message, 2, 0.3)
        return [
            {name: _rate(port, MODEL, message, CLIENTS, seconds) for name, port, message in turns}
            for _ in range(rounds)
        ]


def measure(quick: bool) -> Measured:
    """Each in turns on the same cores, the clients on another."""
    cores, rounds, seconds = Cores.split(), QUICK_ROUNDS if quick else ROUNDS, QUICK_SECONDS if quick else SECONDS
    forms, servers = _forms(cores, rounds, seconds), _servers(cores, rounds, seconds)
    found: Metrics = {
        "binary_vs_json": _ratio(forms, "binary_per_s", "json_per_s"),
        "vs_mlserver": _ratio(servers, "worker_json_per_s", "mlserver_per_s"),
        "vs_pytriton": _ratio(servers, "worker_binary_per_s", "pytriton_per_s"),
    }
    return Measured(found, [{**each, **other} for each, other in zip(forms, servers, strict=True)])


def _ratio(rounds: list[Metrics], ours: str, theirs: str) -> float | None:
    """The median over the rounds of the two figures' ratio."""
    return median(value for each in rounds if (value := ratio(each[ours], each[theirs])) is not None)


FIGURES = (
    Figure("binary_vs_json", "", "answers a second with 1 MiB in and out as bytes, to those as JSON", Target(">=", 3)),
    Figure("vs_mlserver", "", "answers a second at 16 clients, to MLServer's with the same file (JSON)",
           Target(">=", 2)),
    Figure("vs_pytriton", "", "answers a second at 16 clients, to PyTriton's with the same file (bytes)",
           Target(">=", 2)),
)  # fmt: skip

BENCH = Bench(
    "tensor",
    "A tensor worker over HTTP: bytes against JSON, and other servers on the same cores; the clients have their own.",
    FIGURES,
    measure,
)
