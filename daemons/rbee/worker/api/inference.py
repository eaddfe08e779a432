"""POST /v1/inference: text with typed events; DELETE /v1/inference/ID: cancel."""

import msgspec
from aiohttp import web

from rbee.wire import context, names
from rbee.wire.errors import InvalidRequest, RbeeError
from rbee.wire.http.operations import EVENTS, operation
from rbee.wire.http.server import json_response
from rbee.worker.api.events import BoundedStream
from rbee.worker.api.generation import Generation, Measures, Prompt, Wanted, generation, generator_of
from rbee.worker.api.messages import Message, plain_messages
from rbee.worker.api.parameters import SamplingBody, accepted, check_end, read_parameters, sampling_of, stops_of
from rbee.worker.api.structured import grammar_of
from rbee.worker.engine.chat import Conversation
from rbee.worker.engine.generation import FinishReason
from rbee.worker.engine.text_model import TextModel
from rbee.worker.service import REQUEST_HEADERS, REQUEST_ID_HEADER, WorkerService


class InferenceBody(SamplingBody, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of POST /v1/inference: ``prompt`` or ``messages``. ``temperature`` 0 is greedy."""

    prompt: str | list[int] | None = None
    messages: list[Message] | None = None
    stream: bool = True


class InferenceAnswer(msgspec.Struct, frozen=True):
    """The answer of POST /v1/inference where it is not streamed."""

    request_id: str
    model: str
    text: str
    finish_reason: FinishReason
    metrics: Measures


class InferenceRoutes:
    """Inference in rbee's own shape."""

    def __init__(self, service: WorkerService) -> None:
        self._service = service

    @operation(InferenceAnswer, media=(EVENTS,), body=accepted(InferenceBody), headers=REQUEST_HEADERS)
    async def infer(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/inference: SSE started, token..., metrics, then one end or error, then [DONE]."""
        generator = generator_of(self._service)
        body = await read_parameters(request, InferenceBody)
        self._service.check_model(body.model)
        wanted = _wanted(body, generator.text)
        if not body.stream:
            return await self._whole(request, wanted)
        return await self._streamed(request, wanted)

    @operation(status=204)
    async def cancel(self, request: web.Request) -> web.StreamResponse:
        """DELETE /v1/inference/ID: 204 whether it ran or not."""
        self._service.requests.cancel(names.request_id(request.match_info["request_id"]))
        return web.Response(status=204)

    async def _whole(self, request: web.Request, wanted: Wanted) -> web.StreamResponse:
        async with generation(self._service, request, wanted) as found:
            text = "".join([piece.text async for piece in found.pieces()])
        model, reason = self._service.definition.model, found.end.reason
        answer = InferenceAnswer(found.request_id, model, text, reason, found.measures)
        return json_response(answer, headers={REQUEST_ID_HEADER: found.request_id})

    async def _streamed(self, request: web.Request, wanted: Wanted) -> web.StreamResponse:
        stream: BoundedStream | None = None
        try:
            async with generation(self._service, request, wanted) as found:
                stream = await BoundedStream.open(request, {REQUEST_ID_HEADER: found.request_id})
                last = await self._send_text(stream, found)
        except RbeeError as error:
            if stream is None:
                raise
            last = [("error", error.info(context.correlation_id.get()))]
        await stream.finish(*last)
        return stream.response

    async def _send_text(self, stream: BoundedStream, found: Generation) -> list[tuple[str | None, object]]:
        model = self._service.definition.model
        started = {"request_id": found.request_id, "model": model, "prompt_tokens": found.prompt_tokens}
        await stream.send("started", started)
        index = length = 0
        async for piece in found.pieces():
            await stream.send("token", {"text": piece.text, "index": index, "token_id": piece.token_id})
            index, length = index + 1, length + len(piece.text)
        end = {"finish_reason": found.end.reason.value, "text_length": length, "request_id": found.request_id}
        return [("metrics", found.measures), ("end", end)]


def _wanted(body: InferenceBody, text: TextModel) -> Wanted:
    if (body.prompt is None) == (body.messages is None):
        raise InvalidRequest("give either 'prompt' or 'messages'", details={"field": "prompt"}, param="prompt")
    conversation = Conversation(plain_messages(body.messages)) if body.messages is not None else None
    grammar = grammar_of(body.response_format, body.structured_outputs)
    if grammar is not None:
        check_end(body)
    prompt = Prompt(body.prompt, conversation)
    return Wanted(
        prompt, body.max_tokens, sampling_of(body, text, body.max_tokens), stops_of(body.stop), grammar=grammar
    )
