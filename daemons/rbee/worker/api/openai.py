"""OpenAI's chat completions, completions and model list for the worker's one model.

https://platform.openai.com/docs/api-reference/chat and /completions; what is not honoured is refused by name.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

from rbee.wire import context
from rbee.wire.errors import InvalidRequest, RbeeError
from rbee.wire.http.server import json_response
from rbee.worker.api.events import BoundedStream
from rbee.worker.api.generation import Generation, Prompt, Wanted, generation, generator_of
from rbee.worker.api.messages import Message, plain_messages
from rbee.worker.api.parameters import (
    MaxTokens,
    Seed,
    Stops,
    Temperature,
    TopK,
    TopP,
    read_parameters,
    sampling_of,
    stops_of,
)
from rbee.worker.service import REQUEST_ID_HEADER, WorkerService

COMPLETION_MAX_TOKENS = 16
"""OpenAI's own default of /v1/completions."""


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``include_usage``: one more chunk with the token counts, before [DONE]."""

    include_usage: bool = False


class ChatBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/chat/completions; ``max_completion_tokens`` is the newer name of ``max_tokens``."""

    messages: list[Message]
    model: str | None = None
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None


class CompletionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v1/completions; ``prompt`` is text, one text in a list, or token ids."""

    prompt: str | list[int | str]
    model: str | None = None
    max_tokens: MaxTokens = COMPLETION_MAX_TOKENS
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None


@dataclass(frozen=True, slots=True)
class Shape(ABC):
    """How one answer is written: chat or plain completion."""

    request_id: str
    model: str
    created: int = field(default_factory=lambda: int(time.time()))

    @abstractmethod
    def chunk(self, text: str | None, finish: str | None, *, first: bool = False) -> dict[str, object]:
        """A streamed piece, the first one, or the last one with its finish reason."""

    @abstractmethod
    def whole(self, text: str, found: Generation) -> dict[str, object]:
        """The answer at once."""

    @abstractmethod
    def envelope(self, choices: list[Mapping[str, object]], *, streamed: bool) -> dict[str, object]:
        """What stands around the choices."""


@dataclass(frozen=True, slots=True)
class ChatShape(Shape):
    """chat.completion and chat.completion.chunk."""

    def chunk(self, text: str | None, finish: str | None, *, first: bool = False) -> dict[str, object]:
        """A delta; the first one names the role."""
        delta: dict[str, object] = {"role": "assistant", "content": ""} if first else {}
        if text is not None:
            delta["content"] = text
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self.envelope([choice], streamed=True)

    def whole(self, text: str, found: Generation) -> dict[str, object]:
        """One choice with the assistant's message, and usage."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": found.end.reason.value}
        return {**self.envelope([choice], streamed=False), "usage": found.usage}

    def envelope(self, choices: list[Mapping[str, object]], *, streamed: bool) -> dict[str, object]:
        """Id, object, time and model."""
        kind = "chat.completion.chunk" if streamed else "chat.completion"
        head = {"id": f"chatcmpl-{self.request_id}", "object": kind, "created": self.created}
        return {**head, "model": self.model, "choices": choices}


@dataclass(frozen=True, slots=True)
class CompletionShape(Shape):
    """text_completion, streamed or not."""

    def chunk(self, text: str | None, finish: str | None, *, first: bool = False) -> dict[str, object]:
        """A piece of text."""
        choice = {"index": 0, "text": text or "", "logprobs": None, "finish_reason": finish}
        return self.envelope([choice], streamed=True)

    def whole(self, text: str, found: Generation) -> dict[str, object]:
        """One choice with the text, and usage."""
        return {**self.chunk(text, found.end.reason.value), "usage": found.usage}

    def envelope(self, choices: list[Mapping[str, object]], *, streamed: bool) -> dict[str, object]:
        """Id, object, time and model."""
        head = {"id": f"cmpl-{self.request_id}", "object": "text_completion", "created": self.created}
        return {**head, "model": self.model, "choices": choices}


class OpenAiRoutes:
    """Text generation in OpenAI's shapes."""

    def __init__(self, service: WorkerService) -> None:
        self._service = service

    async def models(self, request: web.Request) -> web.StreamResponse:
        """GET /v1/models: the one model."""
        entry = {"id": self._service.definition.model, "object": "model", "created": self._service.created}
        return json_response({"object": "list", "data": [{**entry, "owned_by": "rbee"}]})

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/chat/completions."""
        generator_of(self._service)
        body = await read_parameters(request, ChatBody)
        limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        prompt = Prompt(messages=plain_messages(body.messages))
        return await self._answer(request, body, prompt, limit, ChatShape)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        """POST /v1/completions."""
        generator_of(self._service)
        body = await read_parameters(request, CompletionBody)
        return await self._answer(request, body, Prompt(_one_prompt(body.prompt)), body.max_tokens, CompletionShape)

    async def _answer(
        self,
        request: web.Request,
        body: ChatBody | CompletionBody,
        prompt: Prompt,
        limit: int | None,
        shape: type[Shape],
    ) -> web.StreamResponse:
        self._service.check_model(body.model)
        if body.stream_options is not None and not body.stream:
            raise InvalidRequest("stream_options goes with stream: true only", param="stream_options")
        sampling = sampling_of(body, generator_of(self._service).text.sampling)
        wanted = Wanted(prompt, limit, sampling, stops_of(body.stop))
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return await self._streamed(request, wanted, shape, usage=usage)
        async with generation(self._service, request, wanted) as found:
            text = "".join([piece.text async for piece in found.pieces()])
        answer = shape(found.request_id, self._service.definition.model).whole(text, found)
        return json_response(answer, headers={REQUEST_ID_HEADER: found.request_id})

    async def _streamed(
        self, request: web.Request, wanted: Wanted, shape: type[Shape], *, usage: bool
    ) -> web.StreamResponse:
        stream: BoundedStream | None = None
        try:
            async with generation(self._service, request, wanted) as found:
                written = shape(found.request_id, self._service.definition.model)
                headers = {REQUEST_ID_HEADER: found.request_id}
                # with usage asked for, every chunk has the field: null until the one that carries it
                more: dict[str, object] = {"usage": None} if usage else {}
                pieces = found.pieces()
                # the head waits for the first text: an error before it is an error answer, and may be tried elsewhere
                piece = await anext(pieces, None)
                stream = await BoundedStream.open(request, headers)
                await stream.send(None, written.chunk(None, None, first=True) | more)
                while piece is not None:
                    await stream.send(None, written.chunk(piece.text, None) | more)
                    piece = await anext(pieces, None)
                last: list[tuple[str | None, object]] = [(None, written.chunk(None, found.end.reason.value) | more)]
                if usage:
                    last.append((None, {**written.envelope([], streamed=True), "usage": found.usage}))
        except RbeeError as error:
            if stream is None:
                raise
            last = [(None, {"error": error.openai_info(context.correlation_id.get())})]
        await stream.finish(*last)
        return stream.response


def _one_prompt(prompt: str | list[int | str]) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return prompt[0]
    ids = [each for each in prompt if isinstance(each, int)]
    if len(ids) != len(prompt):
        raise InvalidRequest("prompt holds several texts: send one text, or token ids, in each request", param="prompt")
    return ids
