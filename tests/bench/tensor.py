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

ROUNDS, QUICK_ROUNDS = 120, 40
SECONDS, QUICK_SECONDS = 0.2, 0.1
"""Many short turns: what else the machine does then meets the two sides of a ratio alike."""
CLIENTS = 16
LARGE_ROWS, LARGE_COLUMNS = 256, 1024
ROWS, FEATURES = 8, 64
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


def rows_of(rows: int, columns: int) -> Tensors:
    """One input x."""
    return {"x": ("FP32", np.random.default_rng(1).standard_normal((rows, columns), np.float32))}


@contextmanager
def model_folder(graph: Graph) -> Iterator[Path]:
    """A folder, named as the model, with the model's file."""
    with tempfile.TemporaryDirectory(prefix="rbee-bench-") as name:
        folder = Path(name) / "scores"
        folder.mkdir()
        graph.write(folder / "model.onnx")
        yield folder


def wide_graph() -> Graph:
    """A model whose run is nothing beside the way to it: y = x + 1."""
    graph = Graph("wide")
    x = graph.input("x", FLOAT, ("batch", LARGE_COLUMNS))
    graph.output(graph.node("Add", [x, graph.constant(1.0)], "y"), FLOAT, ("batch", LARGE_COLUMNS))
    return graph


def score_graph() -> Graph:
    """A net of two layers that scores each row of features, as tables are scored."""
    graph, chance = Graph("scores"), np.random.default_rng(2)
    value = graph.input("x", FLOAT, ("batch", FEATURES))
    for layer, width in enumerate((FEATURES, 1)):
        weight = graph.weight(f"weight_{layer}", chance.standard_normal((FEATURES, width), np.float32) / FEATURES**0.5)
        product = graph.node("MatMul", [value, weight], f"product_{layer}")
        value = graph.node("Tanh", [product], "y" if width == 1 else f"hidden_{layer}")
    graph.output(value, FLOAT, ("batch", 1))
    return graph


def _rate(port: int | None, model: str, message: Message, clients: int, seconds: float) -> float | None:
    """Answers a second; None for a server that is not there."""
    if port is None:
        return None
    took = closed_loop.during(port, message.to(port, model), clients, seconds)
    return len(took.each) / took.seconds


def _forms(cores: Cores, rounds: int, seconds: float) -> list[Metrics]:
    """A lone client's answers a second with 1 MiB in and out, as bytes and as JSON."""
    with model_folder(wide_graph()) as model, worker(model, cores) as port, cores.as_client():
        tensors = rows_of(LARGE_ROWS, LARGE_COLUMNS)
        binary, plain = as_binary(tensors), as_json(tensors)
        return [
            {
                "binary_per_s": _rate(port, model.name, binary, 1, seconds),
                "json_per_s": _rate(port, model.name, plain, 1, seconds),
            }
            for _ in range(rounds)
        ]


def _servers(cores: Cores, rounds: int, seconds: float) -> list[Metrics]:
    """Answers a second of each server at 16 clients with 8 rows of 64 features each, in turns.

    MLServer's HTTP speaks JSON only, and is held against the worker's JSON; PyTriton gets bytes, and so does the worker
    beside it.
    """
    with ExitStack() as stack:
        model = stack.enter_context(model_folder(score_graph()))
        ours = stack.enter_context(worker(model, cores, slots=32, max_batch=256))
        ports = [stack.enter_context(start(model, cores)) for start in (references.mlserver, references.pytriton)]
        stack.enter_context(cores.as_client())
        mlserver, pytriton = ports
        tensors = rows_of(ROWS, FEATURES)
        binary, plain = as_binary(tensors), as_json(tensors)
        turns = (
            ("worker_json_per_s", ours, plain),
            ("mlserver_per_s", mlserver, plain),
            ("worker_binary_per_s", ours, binary),
            ("pytriton_per_s", pytriton, binary),
        )
        for _, port, message in turns:
            _rate(port, model.name, message, 2, 0.3)
        return [
            {name: _rate(port, model.name, message, CLIENTS, seconds) for name, port, message in turns}
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
    Figure("vs_mlserver", "", "answers a second at 16 clients, 8 rows of 64 features each, to MLServer's (JSON)",
           Target(">=", 2)),
    Figure("vs_pytriton", "", "the same to PyTriton's (bytes)",
           Target(">=", 2)),
)  # fmt: skip

BENCH = Bench(
    "tensor",
    "A tensor worker over HTTP: bytes against JSON, and other servers on the same cores; the clients have their own.",
    FIGURES,
    measure,
)
