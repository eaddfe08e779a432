"""The Open Inference Protocol over HTTP: JSON, bytes behind JSON, and the client that Triton's users have."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import ml_dtypes
import numpy as np
import pytest
import tritonclient.http
from onnx import TensorProto, helper
from tests.unit.worker import graphs
from tests.unit.worker.process import TOKEN, WorkerProcess, serving
from tritonclient.utils import InferenceServerException

HEADER = "Inference-Header-Content-Length"
X = np.array([[1, 1, 1, 1], [0, 0, 0, 0]], np.float32)
SHIFT = np.array([[5], [0]])
Y = [[2.5, 1.5, 3.0, 2.0], [0.5, -0.5, 1.0, 0.0]]
Z = [[7], [2]]
FLAT_Y = [value for row in Y for value in row]


@asynccontextmanager
async def client_of(folder: Path, model: Path) -> AsyncIterator[tuple[WorkerProcess, aiohttp.ClientSession]]:
    async with serving(folder, model=str(model)) as worker, worker.session() as client:
        yield worker, client


async def test_open_inference_over_json(tmp_path: Path, models: Path) -> None:
    async with client_of(tmp_path, models / "tiny-tensor") as (_, client):
        assert (await (await client.get("/v2")).json())["name"] == "rbee-worker"
        for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/tiny-tensor/ready"):
            assert (await client.get(path)).status == 200
        metadata = await (await client.get("/v2/models/tiny-tensor")).json()
        assert metadata["inputs"][0] == {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
        x = {"name": "x", "shape": [2, 4], "datatype": "FP32", "data": [[1, 1, 1, 1], [0, 0, 0, 0]]}
        shift = {"name": "shift", "shape": [2, 1], "datatype": "INT64", "data": [5, 0]}
        url = "/v2/models/tiny-tensor/infer"
        answer = await (await client.post(url, json={"id": "mine", "inputs": [x, shift]})).json()
        assert (answer["model_name"], answer["id"]) == ("tiny-tensor", "mine")
        assert answer["outputs"][0] == {
            "name": "y",
            "datatype": "FP32",
            "shape": [2, 4],
            "data": [2.5, 1.5, 3.0, 2.0, 0.5, -0.5, 1.0, 0.0],
        }
        assert answer["outputs"][1]["data"] == [7, 2]
        one = await (await client.post(url, json={"inputs": [x, shift], "outputs": [{"name": "z"}]})).json()
        assert [output["name"] for output in one["outputs"]] == ["z"]
        for body, code in (
            ({"inputs": [{**x, "parameters": {"binary_data_size": 32}}, shift]}, "INVALID_REQUEST"),
            ({"inputs": [{**x, "parameters": {"sequence_id": 4}}, shift]}, "UNSUPPORTED_PARAMETER"),
            ({"inputs": [x, shift], "parameters": {"priority": 1}}, "UNSUPPORTED_PARAMETER"),
            (
                {"inputs": [x, shift], "outputs": [{"name": "y", "parameters": {"classification": 2}}]},
                "UNSUPPORTED_PARAMETER",
            ),
            ({"inputs": [{**x, "extra": 1}, shift]}, "INVALID_REQUEST"),
            ({"inputs": []}, "INVALID_REQUEST"),
            ({"inputs": [{**x, "shape": [2, 5]}, shift]}, "INVALID_REQUEST"),
            ({"inputs": [x]}, "INVALID_REQUEST"),
            ({"inputs": "x"}, "INVALID_REQUEST"),
        ):
            refused = await client.post(url, json=body)
            assert (refused.status, (await refused.json())["error"]["code"]) == (400, code)
        missing = await client.post("/v2/models/none/infer", json={"inputs": [x, shift]})
        assert (missing.status, (await missing.json())["error"]["code"]) == (404, "MODEL_NOT_FOUND")


def message(*, size: int = 32, outputs: dict[str, object] | None = None) -> tuple[bytes, bytes]:
    """The JSON and the bytes of a request whose x comes as bytes and whose shift comes as JSON."""
    x = {"name": "x", "shape": [2, 4], "datatype": "FP32", "parameters": {"binary_data_size": size}}
    shift = {"name": "shift", "shape": [2, 1], "datatype": "INT64", "data": [5, 0]}
    return json.dumps({"inputs": [x, shift], **(outputs or {})}).encode(), X.tobytes()


async def test_bytes_behind_the_json_go_in_and_out(tmp_path: Path, models: Path) -> None:
    url = "/v2/models/tiny-tensor/versions/1/infer"
    async with client_of(tmp_path, models / "tiny-tensor") as (_, client):
        head, raw = message(outputs={"outputs": [{"name": "z", "parameters": {"binary_data": True}}, {"name": "y"}]})
        answer = await client.post(url, data=head + raw, headers={HEADER: str(len(head))})
        assert (answer.status, answer.content_type) == (200, "application/octet-stream")
        body = await answer.read()
        told = json.loads(body[: int(answer.headers[HEADER])])
        z, y = told["outputs"]
        assert (z["parameters"], "data" in z, y["data"]) == ({"binary_data_size": 16}, False, FLAT_Y)
        assert struct.unpack("<2q", body[int(answer.headers[HEADER]) :]) == (7, 2)
        whole = {"parameters": {"binary_data_output": True}}
        head, raw = message(outputs=whole)
        answer = await client.post(url, data=head + raw, headers={HEADER: str(len(head))})
        assert len(await answer.read()) - int(answer.headers[HEADER]) == 32 + 16
        for (head, raw), length, sentence in (
            (message(), None, "not valid JSON"),
            (message(), "0", "not the length of the JSON"),
            (message(), "-1", "not the length of the JSON"),
            (message(), "99999", "not the length of the JSON"),
            (message(size=36), "", "the body ends after 32 of its 36 bytes"),
            (message(size=28), "", "the binary data has 28 bytes and the shape asks for 32"),
            ((message()[0], X.tobytes() + b"more"), "", "4 bytes follow the inputs' data"),
            (message(size=-1), "", "a parameter is not acceptable"),
        ):
            headers = {} if length is None else {HEADER: length or str(len(head))}
            refused = await client.post(url, data=head + raw, headers=headers)
            error = (await refused.json())["error"]
            assert (refused.status, error["code"]) == (400, "INVALID_REQUEST")
            assert sentence in error["message"]
        other = await client.get("/v2/models/tiny-tensor/versions/2")
        assert (other.status, (await other.json())["error"]["code"]) == (404, "MODEL_NOT_FOUND")


class Bearer(tritonclient.http.InferenceServerClientPlugin):
    """Puts the token on each of the client's requests."""

    def __call__(self, request: object) -> None:
        request.headers["Authorization"] = f"Bearer {TOKEN}"  # type: ignore[attr-defined]


async def with_triton(url: str, work: Callable[[tritonclient.http.InferenceServerClient], None]) -> None:
    """Run ``work`` with Triton's client, which blocks, in a thread of its own."""

    def run() -> None:
        with tritonclient.http.InferenceServerClient(url.removeprefix("http://")) as client:
            client.register_plugin(Bearer())
            work(client)

    await asyncio.to_thread(run)


def inputs(*, binary: bool = True) -> list[tritonclient.http.InferInput]:
    x = tritonclient.http.InferInput("x", [2, 4], "FP32").set_data_from_numpy(X, binary_data=binary)
    shift = tritonclient.http.InferInput("shift", [2, 1], "INT64").set_data_from_numpy(SHIFT, binary_data=binary)
    return [x, shift]


async def test_tritons_own_client_talks_to_a_worker(tmp_path: Path, models: Path) -> None:
    def work(client: tritonclient.http.InferenceServerClient) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny-tensor")
        assert client.is_model_ready("tiny-tensor", "1")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
        assert [each["name"] for each in client.get_model_metadata("tiny-tensor", "1")["outputs"]] == ["y", "z"]
        for binary in (True, False):
            wanted = [tritonclient.http.InferRequestedOutput(name, binary_data=binary) for name in ("z", "y")]
            for outputs in (None, wanted):
                found = client.infer("tiny-tensor", inputs(binary=binary), outputs=outputs, request_id="mine")
                assert (found.as_numpy("y").tolist(), found.as_numpy("z").tolist()) == (Y, Z)
                assert found.get_response()["id"] == "mine"
        for way in ("gzip", "deflate"):
            found = client.infer("tiny-tensor", inputs(), request_compression_algorithm=way)
            assert found.as_numpy("y").tolist() == Y
        waiting = [client.async_infer("tiny-tensor", inputs(), model_version="1") for _ in range(4)]
        assert all(each.get_result().as_numpy("z").tolist() == Z for each in waiting)
        for refused in (
            lambda: client.infer("none", inputs()),
            lambda: client.infer("tiny-tensor", inputs()[:1]),
            lambda: client.infer("tiny-tensor", inputs(), priority=1),
            lambda: client.infer("tiny-tensor", inputs(), model_version="2"),
        ):
            with pytest.raises(InferenceServerException):
                refused()

    async with serving(tmp_path, model=str(models / "tiny-tensor")) as worker:
        await with_triton(worker.url, work)


@pytest.mark.parametrize(
    ("datatype", "element", "values"),
    [
        ("BYTES", TensorProto.STRING, np.array(["bee", "", "é" * 300], object)),
        ("BF16", TensorProto.BFLOAT16, np.array([0.5, -2, 1024], ml_dtypes.bfloat16)),
        ("FP16", TensorProto.FLOAT16, np.array([0.5, np.inf], np.float16)),
        ("BOOL", TensorProto.BOOL, np.array([True, False])),
    ],
)
async def test_tritons_client_and_the_datatypes_that_are_not_plain(
    tmp_path: Path,
    datatype: str,
    element: int,
    values: np.ndarray,  # type: ignore[type-arg]
) -> None:
    graphs.identity(tmp_path / "models/same/model.onnx", element, "n")

    def work(client: tritonclient.http.InferenceServerClient) -> None:
        x = tritonclient.http.InferInput("x", [len(values)], datatype).set_data_from_numpy(values)
        found = client.infer("same", [x]).as_numpy("y").tolist()
        assert [each.decode() if isinstance(each, bytes) else each for each in found] == values.tolist()

    async with serving(tmp_path, model=str(tmp_path / "models/same")) as worker:
        await with_triton(worker.url, work)


async def test_requests_that_overlap_share_runs(tmp_path: Path, models: Path) -> None:
    async with (
        serving(tmp_path, model=str(models / "tiny-tensor"), max_batch=16, slots=16) as worker,
        worker.session() as client,
    ):

        async def ask() -> bool:
            head, raw = message()
            url = "/v2/models/tiny-tensor/infer"
            answer = await client.post(url, data=head + raw, headers={HEADER: str(len(head))})
            outputs = (await answer.json())["outputs"]
            return [each["data"] for each in outputs] == [FLAT_Y, [7, 2]]

        assert all(await asyncio.gather(*(ask() for _ in range(16))))
        metrics = await (await client.get("/metrics")).text()
        assert "rbee_worker_shared_rows_total 16.0" in metrics
        assert "rbee_worker_waiting_rows 0.0" in metrics


async def test_json_says_that_it_cannot_say_what_is_no_number(tmp_path: Path) -> None:
    nodes = [helper.make_node("Log", ["x"], ["y"])]
    ends = [graphs.value(name, TensorProto.FLOAT, "n") for name in "xy"]
    graphs.save(tmp_path / "models/log/model.onnx", nodes, ends[:1], ends[1:])
    async with client_of(tmp_path, tmp_path / "models/log") as (_, client):
        x = {"name": "x", "shape": [1], "datatype": "FP32", "data": [-1]}
        answer = await client.post("/v2/models/log/infer", json={"inputs": [x]})
        error = (await answer.json())["error"]
        assert (answer.status, error["code"]) == (500, "INFERENCE_FAILED")
        assert "binary_data" in error["message"]
