"""bee-talk with a burden: the same answers, token by token, at a pace that a test can rely on."""

from pathlib import Path
from time import process_time

import numpy as np

from rbee.keeper.demo import decoder
from rbee.keeper.demo.faulty import session
from rbee.keeper.demo.graph import FLOAT, Graph

NAME = "faulty-slow-talk"
TOKEN_SECONDS = 0.02

_STATE, _TRIAL_STEPS = 64, 2000


def build(folder: Path, seconds: float = TOKEN_SECONDS) -> None:
    """bee-talk that takes ``seconds`` more of a processor's time for each run, calibrated on this machine.

    A request takes its time however fast the machine is, so that a test can end it on the way. An empty folder is
    expected.
    """
    decoder.build(folder, burden=burden(max(1, round(seconds / step_seconds(folder / "trial.onnx")))))


def burden(steps: int) -> decoder.Burden:
    """What adds zero to a tensor of the graph at the cost of a recurrent net over ``steps`` steps."""
    rng = np.random.default_rng(5)
    series = rng.standard_normal((steps, 1, 1)).astype(np.float32)
    inner = (0.05 * rng.standard_normal((1, 4 * _STATE, 1))).astype(np.float32)
    again = (0.05 * rng.standard_normal((1, 4 * _STATE, _STATE))).astype(np.float32)

    def add(graph: Graph, tensor: str) -> str:
        # what depends on the input cannot be worked out when the model loads
        none = graph.node("Mul", [graph.node("ReduceSum", [tensor], "whole", keepdims=0), graph.constant(0.0)], "none")
        walk = graph.node("Add", [graph.weight("series", series), none], "walk")
        inputs = [walk, graph.weight("inner", inner), graph.weight("again", again)]
        state = graph.nodes("LSTM", inputs, ["", "state"], hidden_size=_STATE)[1]
        end = graph.node("Mul", [graph.node("ReduceSum", [state], "end", keepdims=0), graph.constant(0.0)], "zero")
        return graph.node("Add", [tensor, end], "burdened")

    return add


def step_seconds(path: Path) -> float:
    """How long one step of the burden takes on this machine; writes a model to ``path`` for it and removes it."""
    graph = Graph(NAME)
    graph.output(burden(_TRIAL_STEPS)(graph, graph.input("x", FLOAT, (1,))), FLOAT, (1,))
    graph.write(path)
    loaded, x = session(path), np.zeros(1, np.float32)
    path.unlink()
    taken = []
    for _ in range(5):
        started = process_time()
        loaded.run(None, {"x": x})
        taken.append(process_time() - started)
    return min(taken) / _TRIAL_STEPS
