"""OpenAI's chat completions, completions and model list for the worker's one model.

https://platform.openai.com/docs/api-reference/chat and /completions; what is not honoured is refused by name.
"""

import time
from collections.abc import AsyncIterator, Callable
from functools import partial

from aiohttp import web

from rbee.wire import context
from rbee.wire.errors import RbeeError
from rbee.wire.http.operations import EVENTS, operation
from rbee.wire.http.server import json_response
from rbee.worker.api.events import BoundedStream
from rbee.worker.api.generation import Generation, Wanted, generation, generator_of
from rbee.worker.api.openai_answers import ChatCompletion, Model, ModelList, TextCompletion
from rbee.worker.api.openai_bodies import ChatBody, CompletionBody, OpenAiBody, chat_wanted, completion_wanted
from rbee.worker.api.openai_shapes import ChatShape, ChoiceReader, CompletionShape, Delta
from rbee.worker.api.parameters import accepted, read_parameters
from rbee.worker.service import REQUEST_HEADERS, REQUEST_ID_HEADER, WorkerService

STILL_HERE_S = 5.0
"""A long tool call must not look like a stream in which nothing comes any more."""
ShapeOf = partial[ChatShape] | partial[CompletionShape]


class OpenAiRoutes:
    """Text generation in OpenAI's shapes."""

    def __init__(self, service: WorkerService) -> None:
        self._service = service

    @operation(ModelList)
    async def models(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/models: the one model."""
        return json_response(ModelList([Model(self._service.definition.model, self._service.created)]))

    @operation(ChatCompletion, media=(EVENTS,), body=accepted(ChatBody), headers=REQUEST_HEADERS)
    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        text = generator_of(self._service).text
        body = await read_parameters(request, ChatBody)
        self._service.check_model(body.model)
        wanted = chat_wanted(body, text)
        return await self._answer(request, body, wanted, partial(ChatShape, logprobs=body.logprobs))

    @operation(TextCompletion, media=(EVENTS,), body=accepted(CompletionBody), headers=REQUEST_HEADERS)
    async def completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        generator = generator_of(self._service)
        body = await read_parameters(request, CompletionBody)
        self._service.check_model(body.model)
        wanted = completion_wanted(body, generator.text)
        prompt = wanted.prompt.text
        echo = ""
        if body.echo:
            echo = (
                prompt if isinstance(prompt, str) else await generator.prepare(lambda text: text.decode(prompt or ()))
            )
        shape = partial(CompletionShape, logprobs=body.logprobs is not None, echo=echo)
        return await self._answer(request, body, wanted, shape)

    async def _answer(
        self, request: web.Request, body: OpenAiBody, wanted: Wanted, shape: ShapeOf
    ) -> web.StreamResponse:
        if body.stream:
            return await self._streamed(request, wanted, shape, usage=body.with_usage)
        readers = _readers(wanted)
        async with generation(self._service, request, wanted) as found:
            async for index, item in found.parts():
                readers[index].read(item)
        written = shape(found.request_id, self._service.definition.model)
        answer = written.answer([reader.whole() for reader in readers], found.usage)
        return json_response(answer, headers={REQUEST_ID_HEADER: found.request_id})

    async def _streamed(
        self, request: web.Request, wanted: Wanted, shape: ShapeOf, *, usage: bool
    ) -> web.StreamResponse:
        stream: BoundedStream | None = None
        # with usage asked for, every chunk has the field: null until the one that carries it
        more: dict[str, object] = {"usage": None} if usage else {}
        last: list[tuple[str | None, object]] = []
        try:
            async with generation(self._service, request, wanted) as found:
                written = shape(found.request_id, self._service.definition.model)
                coming = deltas(found, wanted)
                # the head waits for the first text: an error before it is an error answer, and may be tried elsewhere
                delta = await anext(coming, None)
                stream = await BoundedStream.open(request, {REQUEST_ID_HEADER: found.request_id})
                for index in range(wanted.choices):
                    await _send(stream, written.opening(index), more)
                while delta is not None:
                    if len(found.finished) < wanted.choices:
                        await _send(stream, written.chunk(delta), more)
                    else:
                        last.append((None, written.chunk(delta) | more))  # its reader finds the slot free
                    delta = await anext(coming, None)
                if usage:
                    last.append((None, {**written.envelope([]), "usage": found.usage}))
        except RbeeError as error:
            if stream is None:
                raise
            last = [(None, {"error": error.openai_info(context.correlation_id.get())})]
        await stream.finish(*last)
        return stream.response


def _readers(wanted: Wanted) -> list[ChoiceReader]:
    tools = wanted.tools
    return [ChoiceReader(index, tools.parser() if tools is not None else None) for index in range(wanted.choices)]


async def deltas(
    found: Generation, wanted: Wanted, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[Delta]:
    """What is new, as it comes. While text is held back for a tool call, an empty delta every 5 s says so."""
    readers = _readers(wanted)
    told = clock()
    async for index, item in found.parts():
        delta = readers[index].read(item)
        if not delta.is_empty or clock() - told >= STILL_HERE_S:
            told = clock()
            yield delta


async def _send(stream: BoundedStream, chunk: dict[str, object] | None, more: dict[str, object]) -> None:
    if chunk is not None:
        await stream.send(None, chunk | more)
