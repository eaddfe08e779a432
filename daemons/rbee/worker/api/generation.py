"""One generation behind any route: prompt, slot, deadline, measures; the routes differ in how they write it down."""

import dataclasses
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import msgspec
from aiohttp import web

from rbee.wire.errors import InvalidRequest
from rbee.wire.worker_spec import Task
from rbee.worker.api.openai_answers import Usage
from rbee.worker.api.streams import Item, side_by_side
from rbee.worker.api.tools import ToolUse
from rbee.worker.engine.chat import Conversation
from rbee.worker.engine.embed import Embedder
from rbee.worker.engine.generation import Finished, FinishReason, GenerateRequest, Piece
from rbee.worker.engine.generator import Generator
from rbee.worker.engine.grammar import GrammarSpec
from rbee.worker.engine.rank import Ranker
from rbee.worker.engine.sampling import SamplingParams
from rbee.worker.engine.tensor import TensorModel
from rbee.worker.engine.text_model import TextModel
from rbee.worker.requests import RunningRequest
from rbee.worker.service import WorkerService, client_of, deadline_of, request_id_of

_SEEDS = 1 << 63


class Measures(msgspec.Struct, frozen=True):
    """Token counts, time to first token in ms, and tokens a second after the first."""

    prompt_tokens: int
    completion_tokens: int
    ttft_ms: float
    tokens_per_s: float


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: text or token ids, or a conversation."""

    text: str | Sequence[int] | None = None
    conversation: Conversation | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """How it is asked. ``max_tokens`` None means what the context leaves; ``choices`` texts answer the one prompt.

    ``grammar`` and enforced ``tools`` exclude each other.
    """

    prompt: Prompt
    max_tokens: int | None
    sampling: SamplingParams
    stop: tuple[str, ...]
    choices: int = 1
    grammar: GrammarSpec | None = None
    tools: ToolUse | None = None


@dataclass(slots=True)
class Generation:
    """A generation that holds its slot. ``finished`` has each choice's end by its number once it came."""

    request_id: str
    prompt_tokens: int
    source: AsyncIterator[Item]
    running: RunningRequest
    started: float
    first_text_s: float | None = None
    finished: dict[int, Finished] = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)

    async def parts(self) -> AsyncIterator[Item]:
        """Yield what each choice gives, with its number."""
        async for index, item in self.source:
            self.tokens[index] = item.tokens
            self.running.tokens = sum(self.tokens.values())
            if isinstance(item, Finished):
                self.finished[index] = item
            elif self.first_text_s is None:
                self.first_text_s = time.monotonic() - self.started
            yield index, item

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield each piece of the text, where there is one choice."""
        async for _, item in self.parts():
            if isinstance(item, Piece):
                yield item

    @property
    def end(self) -> Finished:
        """How the text ended; a generation that was read to its end has one."""
        return self.finished.get(0) or Finished(FinishReason.LENGTH, self.running.tokens)

    @property
    def measures(self) -> Measures:
        """Token counts, time to first token in ms, and tokens a second after the first."""
        total = time.monotonic() - self.started
        first = self.first_text_s if self.first_text_s is not None else total
        tokens = self.running.tokens
        decoding = total - first
        rate = round((tokens - 1) / decoding, 2) if tokens > 1 and decoding > 0 else 0.0
        return Measures(self.prompt_tokens, tokens, round(first * 1000, 2), rate)

    @property
    def usage(self) -> Usage:
        """Token counts in OpenAI's shape."""
        tokens = self.running.tokens
        return Usage(self.prompt_tokens, tokens, self.prompt_tokens + tokens)


@asynccontextmanager
async def generation(service: WorkerService, request: web.Request, wanted: Wanted) -> AsyncIterator[Generation]:
    """Take a slot, encode the prompt, and give out the generation; its slot is free when the block ends.

    Raises what :meth:`RunningRequests.slot` raises, and InvalidRequest for a prompt or grammar that cannot be used.
    """
    generator: Generator = generator_of(service)
    route = request.match_info.route.resource
    name = route.canonical if route is not None else "unknown"
    started = time.monotonic()
    request_id = request_id_of(request)
    slot = service.requests.slot(request_id, name, client=client_of(request), deadline=deadline_of(request))
    async with slot as running:
        asked = await generator.prepare(lambda text: _requests(text, wanted))
        async with side_by_side(generator, asked) as source:
            found = Generation(request_id, len(asked[0].prompt), source, running, started)
            try:
                yield found
            finally:
                _observe(service, found, wanted)


def generator_of(service: WorkerService) -> Generator:
    """The worker's generator; raises ModelLoading, or InvalidRequest naming the route for another task."""
    served = service.model_for(Task.GENERATE).model.served
    if isinstance(served, Embedder | Ranker | TensorModel):
        raise InvalidRequest("this worker does not generate text")
    return served


def _requests(text: TextModel, wanted: Wanted) -> list[GenerateRequest]:
    """One request a choice, each with a seed of its own."""
    conversation, tools = wanted.prompt.conversation, wanted.tools
    tokens = text.encode(wanted.prompt.text or "") if conversation is None else text.encode_chat(conversation)
    left = text.context_length - len(tokens)
    most = left if wanted.max_tokens is None else min(wanted.max_tokens, left)
    grammar = wanted.grammar or (tools.grammar(text) if tools is not None else None)
    compiled = text.grammars.compile(grammar) if grammar is not None else None
    samplings = [
        dataclasses.replace(wanted.sampling, grammar=compiled, seed=_seed(wanted.sampling.seed, choice))
        for choice in range(wanted.choices)
    ]
    return [GenerateRequest(tokens, most, each, wanted.stop, keep_special=tools is not None) for each in samplings]


def _seed(seed: int | None, choice: int) -> int | None:
    return None if seed is None else (seed + choice) % _SEEDS


def _observe(service: WorkerService, found: Generation, wanted: Wanted) -> None:
    metrics = service.metrics
    for end in found.finished.values():
        metrics.texts.labels(end.reason.value).inc()
    if wanted.grammar is not None:
        metrics.grammars.labels(wanted.grammar.kind.value).inc(wanted.choices)
    elif wanted.tools is not None and wanted.tools.enforce:
        metrics.grammars.labels("tool_call").inc(wanted.choices)
    metrics.tokens.labels("prompt").inc(found.prompt_tokens)
    metrics.tokens.labels("completion").inc(found.running.tokens)
    metrics.inference.observe(time.monotonic() - found.started)
    if found.first_text_s is not None:
        metrics.first_token.observe(found.first_text_s)
