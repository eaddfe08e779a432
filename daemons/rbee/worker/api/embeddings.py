"""POST /v1/embeddings in OpenAI's shape: https://platform.openai.com/docs/api-reference/embeddings."""

import base64
import time
from typing import Annotated, Literal

import msgspec
import numpy as np
from aiohttp import web
from msgspec import Meta

from rbee.wire.errors import InvalidRequest
from rbee.wire.http.operations import operation
from rbee.wire.worker_spec import Task
from rbee.worker.api.openai_answers import PromptUsage
from rbee.worker.api.parameters import accepted, read_parameters
from rbee.worker.engine.embed import Embedded, Embedder
from rbee.worker.engine.encoder import Floats
from rbee.worker.engine.runner import Runner
from rbee.worker.service import (
    REQUEST_HEADERS,
    REQUEST_ID_HEADER,
    WorkerService,
    client_of,
    deadline_of,
    request_id_of,
)

MOST_INPUTS = 2048
LARGE = 16_384
"""So many floats are written in about a millisecond, for which the event loop may be held."""
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


class Embedding(msgspec.Struct, frozen=True):
    """The vector of one text: numbers, or their bytes (float32, little-endian) in base64."""

    index: int
    embedding: Annotated[msgspec.Raw, Meta(extra_json_schema={"type": ["array", "string"]})]
    object: Literal["embedding"] = "embedding"


class EmbeddingsAnswer(msgspec.Struct, frozen=True):
    """POST /v1/embeddings: a vector a text, in their order."""

    data: list[Embedding]
    model: str
    usage: PromptUsage
    object: Literal["list"] = "list"


class EmbeddingsRoutes:
    """Vectors of texts."""

    def __init__(self, service: WorkerService) -> None:
        self._service = service

    @operation(EmbeddingsAnswer, body=accepted(EmbeddingsBody), headers=REQUEST_HEADERS)
    async def embed(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/embeddings."""
        model = self._service.model_for(Task.EMBED).model
        served = model.served
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
            answer = await _written(found, body.encoding_format, self._service.definition.model, model.runner)
        return web.Response(body=answer, content_type="application/json", headers={REQUEST_ID_HEADER: request_id})


async def _written(found: Embedded, encoding: str, model: str, runner: Runner) -> bytes:
    """The answer's body, written in a thread of ``runner`` where it is large."""
    return await runner.off_loop(lambda: _answer(found, encoding, model), large=found.vectors.size > LARGE)


def _answer(found: Embedded, encoding: str, model: str) -> bytes:
    # vector by vector: one call for all of them would hold the interpreter, and the event loop with it, until its end
    data = [Embedding(index, _encoded(vector, encoding)) for index, vector in enumerate(found.vectors)]
    return msgspec.json.encode(EmbeddingsAnswer(data, model, PromptUsage(found.prompt_tokens, found.prompt_tokens)))


def _encoded(vector: Floats, encoding: str) -> msgspec.Raw:
    if encoding == "base64":
        little = vector.astype(np.dtype("<f4")).tobytes()
        return msgspec.Raw(msgspec.json.encode(base64.b64encode(little).decode("ascii")))
    return msgspec.Raw(msgspec.json.encode(vector.tolist()))


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
