"""POST /v1/rerank: documents sorted by how well they answer a query, in the shape that rerankers share."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from rbee.wire.errors import InvalidRequest
from rbee.wire.http.operations import operation
from rbee.wire.worker_spec import Task
from rbee.worker.api.openai_answers import PromptUsage
from rbee.worker.api.parameters import accepted, read_parameters
from rbee.worker.engine.rank import Ranked, Ranker
from rbee.worker.engine.runner import Runner
from rbee.worker.service import (
    REQUEST_HEADERS,
    REQUEST_ID_HEADER,
    WorkerService,
    client_of,
    deadline_of,
    request_id_of,
)

ROUTE = "/v1/rerank"
MOST_DOCUMENTS = 2048
LARGE = 1 << 18
"""So many characters are written in less than a millisecond, for which the event loop may be held."""
RESULT = 512
"""A result without its document takes as long to make as so many characters to write."""


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A document as an object."""

    text: str


class RerankBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``documents`` are texts or objects with a ``text``. ``top_n`` keeps the best ones.

    ``truncate`` is rbee's own: true cuts the end of a document that is too long, false refuses it; without it the
    model's own files decide.
    """

    query: Annotated[str, Meta(min_length=1)]
    documents: Annotated[list[str | Document], Meta(min_length=1, max_length=MOST_DOCUMENTS)]
    model: str | None = None
    top_n: Annotated[int, Meta(ge=1)] | None = None
    return_documents: bool = False
    truncate: bool | None = None


class Result(msgspec.Struct, frozen=True):
    """How well the document of that number answers."""

    index: int
    relevance_score: float
    document: Document | msgspec.UnsetType = msgspec.UNSET


class RerankAnswer(msgspec.Struct, frozen=True):
    """POST /v1/rerank: results best first."""

    id: str
    model: str
    results: list[Result]
    usage: PromptUsage
    object: Literal["list"] = "list"


class RerankRoutes:
    """Documents by relevance."""

    def __init__(self, service: WorkerService) -> None:
        self._service = service

    @operation(RerankAnswer, body=accepted(RerankBody), headers=REQUEST_HEADERS)
    async def rank(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/rerank: results best first, each with its document's index; equal ones in the documents' order."""
        model = self._service.model_for(Task.RANK).model
        served = model.served
        if not isinstance(served, Ranker):
            raise InvalidRequest("this worker does not rank documents")
        body = await read_parameters(request, RerankBody)
        self._service.check_model(body.model)
        texts = [each if isinstance(each, str) else each.text for each in body.documents]
        started = time.monotonic()
        request_id = request_id_of(request)
        slot = self._service.requests.slot(request_id, ROUTE, client=client_of(request), deadline=deadline_of(request))
        async with slot as running:
            found = await served.rank(body.query, texts, truncate=body.truncate)
            running.tokens = found.prompt_tokens
            self._service.metrics.inference.observe(time.monotonic() - started)
            self._service.metrics.tokens.labels("prompt").inc(found.prompt_tokens)
            returned = texts if body.return_documents else None
            writer = _Writer(request_id, self._service.definition.model, returned, body.top_n)
            answer = await _written(found, writer, model.runner)
        return web.Response(body=answer, content_type="application/json", headers={REQUEST_ID_HEADER: request_id})


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes an answer's body; ``texts`` are the documents where they go back, ``most`` how many results do."""

    request_id: str
    model: str
    texts: Sequence[str] | None
    most: int | None

    def is_large(self, found: Ranked) -> bool:
        """Whether writing it would hold the event loop for long."""
        return len(found.scores) * RESULT + sum(map(len, self.texts or ())) > LARGE

    def answer(self, found: Ranked) -> bytes:
        """The body as JSON."""
        results = _results(found.scores, self.texts, self.most)
        usage = PromptUsage(found.prompt_tokens, found.prompt_tokens)
        return msgspec.json.encode(RerankAnswer(self.request_id, self.model, results, usage))


async def _written(found: Ranked, writer: _Writer, runner: Runner) -> bytes:
    """The answer's body, written in a thread of ``runner`` where it is large."""
    return await runner.off_loop(lambda: writer.answer(found), large=writer.is_large(found))


def _results(scores: Sequence[float], texts: Sequence[str] | None, most: int | None) -> list[Result]:
    best = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[:most]
    if texts is None:
        return [Result(index, scores[index]) for index in best]
    return [Result(index, scores[index], Document(texts[index])) for index in best]
