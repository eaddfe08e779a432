"""The Open Inference Protocol (KServe v2), JSON form, for the worker's one model.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import time
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from rbee import __version__
from rbee.wire.errors import InvalidRequest, ModelLoading, UnsupportedParameter
from rbee.wire.http.server import decode_body, json_response, read_body
from rbee.wire.worker_spec import Task
from rbee.worker.engine.onnx_file import TensorInfo
from rbee.worker.engine.tensor import NAMES, NamedTensor, TensorModel, protocol_shape, to_array, to_json
from rbee.worker.service import REQUEST_ID_HEADER, WorkerService, client_of, deadline_of, request_id_of

BINARY_HEADER = "Inference-Header-Content-Length"
MOST_BODY = 64 << 20
Name = Annotated[str, Meta(max_length=256)]


class InputTensor(msgspec.Struct, frozen=True):
    """One input: ``data`` flat or nested in row-major order."""

    name: Name
    shape: Annotated[list[int], Meta(max_length=16)]
    datatype: Annotated[str, Meta(max_length=16)]
    data: Any
    parameters: dict[str, Any] = {}


class OutputWish(msgspec.Struct, frozen=True):
    """An output that is asked for."""

    name: Name
    parameters: dict[str, Any] = {}


class InferBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v2/models/M/infer; ``id`` is given back as it came."""

    inputs: Annotated[list[InputTensor], Meta(max_length=1024)]
    outputs: Annotated[list[OutputWish], Meta(max_length=1024)] = []
    id: Annotated[str, Meta(max_length=256)] | None = None
    parameters: dict[str, Any] = {}


class OpenInferenceRoutes:
    """Tensors by name."""

    def __init__(self, service: WorkerService) -> None:
        self._service = service

    async def server(self, request: web.Request) -> web.StreamResponse:
        """GET /v2: name, version, extensions."""
        return json_response({"name": "rbee-worker", "version": __version__, "extensions": []})

    async def live(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/health/live."""
        return json_response({"live": True})

    async def ready(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/health/ready: 200, or 503 while the worker takes no requests."""
        ready = self._service.state.ready
        return json_response({"ready": ready}, status=200 if ready else 503)

    async def model_ready(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/models/M/ready."""
        self._service.check_model(request.match_info["model"])
        ready, name = self._service.state.ready, self._service.definition.model
        return json_response({"name": name, "ready": ready}, status=200 if ready else 503)

    async def model(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/models/M: inputs and outputs."""
        self._service.check_model(request.match_info["model"])
        loaded = self._service.model_for(Task.TENSOR, Task.EMBED, Task.GENERATE)
        graph = loaded.folder.facts.graph
        return json_response(
            {
                "name": self._service.definition.model,
                "versions": ["1"],
                "platform": "onnxruntime_onnx",
                "inputs": [_metadata(tensor) for tensor in graph.inputs],
                "outputs": [_metadata(tensor) for tensor in graph.outputs],
            }
        )

    async def infer(self, request: web.Request) -> web.StreamResponse:
        """POST /v2/models/M/infer."""
        self._service.check_model(request.match_info["model"])
        model = self._tensor_model()
        if BINARY_HEADER in request.headers:
            raise UnsupportedParameter(
                "binary tensors are not honoured here: send the tensors as JSON", details={"parameter": BINARY_HEADER}
            )
        given = await read_body(request.clone(client_max_size=MOST_BODY))
        started = time.monotonic()
        request_id = request_id_of(request)
        slot = self._service.requests.slot(
            request_id, "/v2/models/{model}/infer", client=client_of(request), deadline=deadline_of(request)
        )
        async with slot:
            # decoded, a body takes many times its room: as many at once as there are slots
            body = decode_body(given, InferBody)
            del given
            _refuse_parameters(body)
            answer = await self._answer(model, body, request_id)
        self._service.metrics.inference.observe(time.monotonic() - started)
        headers = {REQUEST_ID_HEADER: request_id}
        return web.Response(body=answer, content_type="application/json", headers=headers)

    def _tensor_model(self) -> TensorModel:
        served = self._service.model_for(Task.TENSOR).model.served
        if not isinstance(served, TensorModel):
            raise ModelLoading("the model is not there")
        return served

    async def _answer(self, model: TensorModel, body: InferBody, request_id: str) -> bytes:
        runner = self._service.model_for(Task.TENSOR).model.runner
        given = await runner.step(lambda _: [_tensor(tensor) for tensor in body.inputs])
        outputs = await model.infer(given, [wish.name for wish in body.outputs])
        answer = {"model_name": self._service.definition.model, "model_version": "1", "id": body.id or request_id}
        return await runner.step(lambda _: _encoded(answer, outputs))


def _tensor(tensor: InputTensor) -> NamedTensor:
    return NamedTensor(tensor.name, tensor.datatype, to_array(tensor.name, tensor.datatype, tensor.shape, tensor.data))


def _encoded(answer: dict[str, Any], outputs: list[NamedTensor]) -> bytes:
    written = [
        {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.values.shape),
            "data": to_json(output.values),
        }
        for output in outputs
    ]
    return msgspec.json.encode({**answer, "outputs": written})


def _metadata(tensor: TensorInfo) -> dict[str, object]:
    datatype = NAMES.get(tensor.element, tensor.element.upper())
    return {"name": tensor.name, "datatype": datatype, "shape": protocol_shape(tensor)}


def _refuse_parameters(body: InferBody) -> None:
    """Parameters change what is done; none is honoured yet, so none is taken in silence."""
    parts: list[dict[str, Any]] = [body.parameters]
    parts += [tensor.parameters for tensor in body.inputs] + [wish.parameters for wish in body.outputs]
    for parameters in parts:
        for name in parameters:
            raise UnsupportedParameter(
                f"the parameter '{name[:64]}' is not honoured here: leave it out",
                details={"parameter": name[:64]},
                param=name[:64],
            )
    if not body.inputs:
        raise InvalidRequest("inputs is empty: send the model's inputs", param="inputs")
