"""POST /v1/embeddings in OpenAI's shape: https://platform.openai.com/docs/api-reference/embeddings."""

import base64
import time
from typing import Annotated, Literal

import msgspec
import numpy as np
from aiohttp import web
from msgspec import Meta

from rbee.wire.errors import InvalidRequest
from rbee.wire.http.server import json_response
from rbee.wire.worker_spec import Task
from rbee.worker.api.parameters import read_parameters
from rbee.worker.engine.embed import Embedder
from rbee.worker.engine.encoder import Floats
from rbee.worker.service import REQUEST_ID_HEADER, WorkerService, client_of, deadline_of, request_id_of

MOST_INPUTS = 2048
Inputs = Annotated[list[str | int | list[int]], Meta(min_length=1, max_length=100_000)]


class EmbeddingsBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``input``: a text, texts, token ids, or lists of token ids.

    ``dimensions`` keeps the first of each vector. ``truncate`` is rbee's own: true cuts a text that is too long at its
    end, false refuses it; without it the model's own files decide.
    """

    input: str | Inputs
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1, le=1_000_000)] | None = None
    truncate: bool | None = None


class EmbeddingsRoutes:
    """Vectors of texts."""

    def __init__(self, service: WorkerService) -> None:
        self._service = service

    async def embed(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/embeddings."""
        served = self._service.model_for(Task.EMBED).model.served
        if not isinstance(served, Embedder):
            raise InvalidRequest("this worker does not embed texts")
        body = await read_parameters(request, EmbeddingsBody)
        self._service.check_model(body.model)
        texts = _texts(body.input)
        started = time.monotonic()
        request_id = request_id_of(request)
        slot = self._service.requests.slot(
            request_id, "/v1/embeddings", client=client_of(request), deadline=deadline_of(request)
        )
        async with slot as running:
            found = await served.embed(texts, dimensions=body.dimensions, truncate=body.truncate)
            running.tokens = found.prompt_tokens
        self._service.metrics.inference.observe(time.monotonic() - started)
        self._service.metrics.tokens.labels("prompt").inc(found.prompt_tokens)
        data = [
            {"object": "embedding", "index": index, "embedding": vector}
            for index, vector in enumerate(_encoded(found.vectors, body.encoding_format))
        ]
        usage = {"prompt_tokens": found.prompt_tokens, "total_tokens": found.prompt_tokens}
        answer = {"object": "list", "data": data, "model": self._service.definition.model, "usage": usage}
        return json_response(answer, headers={REQUEST_ID_HEADER: request_id})


def _encoded(vectors: Floats, encoding: str) -> list[list[float]] | list[str]:
    if encoding == "base64":
        little = vectors.astype(np.dtype("<f4"))
        return [base64.b64encode(vector.tobytes()).decode("ascii") for vector in little]
    rows: list[list[float]] = vectors.tolist()
    return rows


def _texts(given: str | list[str | int | list[int]]) -> list[str] | list[list[int]]:
    if isinstance(given, str):
        return [given]
    texts = [each for each in given if isinstance(each, str)]
    rows = [each for each in given if isinstance(each, list)]
    ids = [each for each in given if isinstance(each, int)]
    if len(ids) == len(given):
        return [ids]
    if len(given) > MOST_INPUTS:
        raise InvalidRequest(
            f"input has {len(given)} entries and {MOST_INPUTS} is the most: send several requests", param="input"
        )
    if len(texts) == len(given):
        return texts
    if len(rows) == len(given):
        return rows
    raise InvalidRequest("input mixes texts and token ids: send one kind", param="input")
