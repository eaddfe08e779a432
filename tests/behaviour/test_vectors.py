"""Steps of features/vectors.feature."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tritonclient.http
from onnx import TensorProto, helper
from pytest_bdd import given, parsers, scenarios, then, when

from tests.behaviour.support import daemons
from tests.behaviour.support.http import Answer
from tests.behaviour.support.stack import Stack

scenarios("features/vectors.feature")

ENCODER = "all-minilm-l6-v2"
WORDS, WIDTH = 30522, 8
QUESTION = {"query": "what does a hive report?", "documents": ["a queen", "the hive reports facts"]}
BODIES: dict[str, dict[str, Any]] = {
    ENCODER: {"input": "a bee"},
    "tiny-rank": QUESTION,
    "bee-talk": {"prompt": "What is a hive?", "max_tokens": 2},
    "tiny-tensor": daemons.TENSOR,
}
NEAR = {"fp32": 0.99999, "fp16": 0.9999, "int8": 0.999, "int4": 0.95}
"""The least cosine to the vectors of fp32."""


@pytest.fixture(scope="module")
def stack(shared_stack: Stack) -> Stack:
    return shared_stack


def _worker_of(stack: Stack, model: str) -> str:
    worker = f"of-{model}"
    if worker not in stack.rows():
        stack.run_worker(worker, model, idle_limit_s=0)
    stack.wait_state(worker, "idle")
    return worker


@given(parsers.parse("a worker of {model} whose definition names no task"), target_fixture="worker")
def worker(stack: Stack, model: str) -> str:
    return _worker_of(stack, model)


@then(parsers.parse("the queen lists it with the task {task}"))
def listed(stack: Stack, worker: str, task: str) -> None:
    assert stack.row(worker)["task"] == task


@then(parsers.parse("the worker and the queen answer POST {route}"))
def answered(stack: Stack, worker: str, route: str) -> None:
    model = stack.row(worker)["model"]
    body = BODIES[model] if route.startswith("/v2/") else {"model": model, **BODIES[model]}
    told = [caller.post(route, body) for caller in (stack.worker_tcp(worker), stack.client)]
    assert [answer.status for answer in told] == [200, 200], [answer.body for answer in told]
    if model == "tiny-rank":
        assert [result["index"] for result in told[1].json["results"]] == [1, 0]


@when("a text of 300 words is embedded, and embedded again with truncate false", target_fixture="answers")
def embedded(stack: Stack) -> list[Answer]:
    body = {"model": ENCODER, "input": "bee " * 300}
    return [stack.client.post("/v1/embeddings", body | more) for more in ({}, {"truncate": False})]


@then("the first is cut at 256 tokens, and the second is refused with both lengths")
def cut_or_refused(answers: list[Answer]) -> None:
    cut, refused = answers
    assert cut.json["usage"]["prompt_tokens"] == 256
    assert (refused.status, refused.json["error"]["details"]) == (400, {"tokens": 302, "limit": 256})


class Bearer(tritonclient.http.InferenceServerClientPlugin):  # type: ignore[misc]
    """Puts a token on each of the client's requests."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: Any) -> None:  # noqa: ANN401 - the client's own type is private
        request.headers["Authorization"] = f"Bearer {self._token}"


@when("Triton's HTTP client asks the queen with binary tensors, and with JSON", target_fixture="outputs")
def triton(stack: Stack) -> list[list[Any]]:
    found = []
    with tritonclient.http.InferenceServerClient(stack.queen_url.removeprefix("http://")) as client:
        client.register_plugin(Bearer(stack.tokens["api_token"]))
        assert client.is_model_ready("tiny-tensor")
        for binary in (True, False):
            inputs = [
                tritonclient.http.InferInput(each["name"], each["shape"], each["datatype"])
                for each in daemons.TENSOR["inputs"]
            ]
            x, shift = np.array([[1, 2, 3, 4]], np.float32), np.array([[7]])
            for tensor, values in zip(inputs, (x, shift), strict=True):
                tensor.set_data_from_numpy(values, binary_data=binary)
            wanted = [tritonclient.http.InferRequestedOutput(name, binary_data=binary) for name in "yz"]
            answer = client.infer("tiny-tensor", inputs, outputs=wanted)
            found.append([answer.as_numpy(name).tolist() for name in "yz"])
    return found


@then("it gets the model's outputs either way")
def either_way(outputs: list[list[Any]]) -> None:
    assert outputs == [[[[2.5, 3.5, 7.0, 8.0]], [[10]]]] * 2


def _encoder(folder: Path, precision: str, models: Path) -> None:
    """A table of vectors in that precision, the tokenizer and the pooling of the real encoder beside it."""
    table = np.random.default_rng(5).standard_normal((WORDS, WIDTH)).clip(-3, 3).astype(np.float32)
    gather = helper.make_node("Gather", ["table", "input_ids"], ["rows"])
    nodes, weights = [gather], []
    if precision in ("fp32", "fp16"):
        kind = TensorProto.FLOAT if precision == "fp32" else TensorProto.FLOAT16
        kept = table.astype(helper.tensor_dtype_to_np_dtype(kind))
        weights = [onnx.numpy_helper.from_array(kept, "table")]
        nodes.append(helper.make_node("Cast", ["rows"], ["last_hidden_state"], to=TensorProto.FLOAT))
    else:
        most, kind = (127, TensorProto.INT8) if precision == "int8" else (7, TensorProto.INT4)
        whole = np.round(table / 3 * most).astype(np.int8)
        weights = [
            helper.make_tensor("whole", kind, whole.shape, whole.ravel().tolist()),
            onnx.numpy_helper.from_array(np.array(3 / most, np.float32), "scale"),
        ]
        nodes.insert(0, helper.make_node("DequantizeLinear", ["whole", "scale"], ["table"]))
        nodes.append(helper.make_node("Identity", ["rows"], ["last_hidden_state"]))
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"])
    hidden = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["batch", "length", WIDTH])
    graph = helper.make_graph(nodes, "encoder", [ids], [hidden], weights)
    folder.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, str(folder / "model.onnx"))
    shutil.copyfile(models / ENCODER / "tokenizer.json", folder / "tokenizer.json")
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 64}))


@given(parsers.parse("an encoder whose weights are {precision}"), target_fixture="worker")
def encoder(stack: Stack, models: Path, precision: str) -> str:
    for each in {"fp32", precision}:
        folder = stack.state_dir / "models" / f"encoder-{each}"
        if not folder.exists():
            _encoder(folder, each, models)
            stack.run_worker(each, str(folder), idle_limit_s=0)
    return precision


@then(
    parsers.parse("its worker states {precision} and gives the vectors of fp32, as near as {again} can be"),
)
def near(stack: Stack, worker: str, precision: str, again: str) -> None:
    assert precision in stack.row(worker)["capabilities"]
    texts = ["a bee", "the hive reports facts", "what does the queen decide?"]
    found = []
    for each in ("fp32", worker):
        answer = stack.client.post("/v1/embeddings", {"model": f"encoder-{each}", "input": texts})
        assert answer.status == 200, answer.body
        found.append(np.array([item["embedding"] for item in answer.json["data"]]))
    assert (found[0] * found[1]).sum(axis=1).min() > NEAR[precision]
