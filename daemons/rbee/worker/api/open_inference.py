"""The Open Inference Protocol (KServe v2) for the worker's one model, JSON and its binary tensor extension.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import time
from functools import partial

from aiohttp import web

from rbee import __version__
from rbee.wire.errors import ModelLoading, ModelNotFound
from rbee.wire.http.operations import BYTES, operation
from rbee.wire.http.server import json_response, read_body
from rbee.wire.open_inference import (
    EXTENSIONS,
    VERSION,
    Live,
    ModelMetadata,
    ModelReady,
    Ready,
    ServerMetadata,
    TensorMetadata,
)
from rbee.wire.worker_spec import Task
from rbee.worker.api import infer_messages
from rbee.worker.api.infer_messages import BINARY_HEADER, InferAnswer, InferBody, Written
from rbee.worker.engine.datatypes import NAMES
from rbee.worker.engine.onnx_file import TensorInfo
from rbee.worker.engine.tensor import Reading, TensorModel, protocol_shape
from rbee.worker.service import (
    REQUEST_HEADERS,
    REQUEST_ID_HEADER,
    WorkerService,
    client_of,
    deadline_of,
    request_id_of,
)

MOST_BODY = 64 << 20
INFER_HEADERS = REQUEST_HEADERS | {BINARY_HEADER: "bytes of JSON before the binary tensors"}


class OpenInferenceRoutes:
    """Tensors by name."""

    def __init__(self, service: WorkerService) -> None:
        self._service = service

    @operation(ServerMetadata)
    async def server(self, request: web.Request) -> web.StreamResponse:
        """GET /v2: name, version, extensions."""
        return json_response(ServerMetadata("rbee-worker", __version__, EXTENSIONS))

    @operation(Live)
    async def live(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/health/live."""
        return json_response(Live(True))

    @operation(Ready, more=(503,))
    async def ready(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/health/ready: 200, or 503 while the worker takes no requests."""
        ready = self._service.state.ready
        return json_response(Ready(ready), status=200 if ready else 503)

    @operation(ModelReady, more=(503,))
    async def model_ready(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/models/M/ready."""
        self._check(request)
        ready, name = self._service.state.ready, self._service.definition.model
        return json_response(ModelReady(name, ready), status=200 if ready else 503)

    @operation(ModelMetadata)
    async def model(self, request: web.Request) -> web.StreamResponse:
        """GET /v2/models/M: inputs and outputs."""
        self._check(request)
        loaded = self._service.model_for(Task.TENSOR, Task.EMBED, Task.RANK, Task.GENERATE)
        graph = loaded.folder.facts.graph
        return json_response(
            ModelMetadata(
                self._service.definition.model,
                [VERSION],
                "onnxruntime_onnx",
                [_metadata(tensor) for tensor in graph.inputs],
                [_metadata(tensor) for tensor in graph.outputs],
            )
        )

    @operation(InferAnswer, media=(BYTES,), body=InferBody, bodies=(BYTES,), headers=INFER_HEADERS)
    async def infer(self, request: web.Request) -> web.StreamResponse:
        """POST /v2/models/M/infer."""
        self._check(request)
        model = self._tensor_model()
        given = await read_body(request, MOST_BODY)
        started = time.monotonic()
        request_id = request_id_of(request)
        slot = self._service.requests.slot(
            request_id, "/v2/models/{model}/infer", client=client_of(request), deadline=deadline_of(request)
        )
        # decoded, a body takes many times its room: as many at once as there are slots
        async with slot:
            name, header = self._service.definition.model, request.headers.get(BINARY_HEADER)
            written = await model.infer(len(given), partial(_read, given, header, name, request_id))
        self._service.metrics.inference.observe(time.monotonic() - started)
        headers = {REQUEST_ID_HEADER: request_id}
        if written.json_length is None:
            return web.Response(body=written.body, content_type="application/json", headers=headers)
        headers[BINARY_HEADER] = str(written.json_length)
        return web.Response(body=written.body, content_type="application/octet-stream", headers=headers)

    def _check(self, request: web.Request) -> None:
        self._service.check_model(request.match_info["model"])
        if request.match_info.get("version", VERSION) != VERSION:
            raise ModelNotFound(f"the model has version {VERSION} alone", details={"versions": [VERSION]})

    def _tensor_model(self) -> TensorModel:
        served = self._service.model_for(Task.TENSOR).model.served
        if not isinstance(served, TensorModel):
            raise ModelLoading("the model is not there")
        return served


def _read(body: bytes, header: str | None, model: str, request_id: str) -> Reading[Written]:
    """The request in ``body``, and what writes its answer."""
    asked = infer_messages.read(body, header)
    answer = InferAnswer(model, VERSION, asked.id or request_id, [])
    return asked.request, partial(infer_messages.write, asked, answer)


def _metadata(tensor: TensorInfo) -> TensorMetadata:
    datatype = NAMES.get(tensor.element, tensor.element.upper())
    return TensorMetadata(tensor.name, datatype, protocol_shape(tensor))
