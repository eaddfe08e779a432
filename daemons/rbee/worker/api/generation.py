"""One generation behind any route: prompt, slot, deadline, measures; the routes differ in how they write it down."""

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

from aiohttp import web

from rbee.wire.errors import InvalidRequest
from rbee.wire.worker_spec import Task
from rbee.worker.engine.embed import Embedder
from rbee.worker.engine.generation import Finished, FinishReason, GenerateRequest, Generator, Piece
from rbee.worker.engine.sampling import SamplingParams
from rbee.worker.engine.tensor import TensorModel
from rbee.worker.requests import RunningRequest
from rbee.worker.service import WorkerService, client_of, deadline_of, request_id_of


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: text or token ids, or messages."""

    text: str | Sequence[int] | None = None
    messages: Sequence[dict[str, str]] | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """How it is asked. ``max_tokens`` None means what the context leaves."""

    prompt: Prompt
    max_tokens: int | None
    sampling: SamplingParams
    stop: tuple[str, ...]


@dataclass(slots=True)
class Generation:
    """A generation that holds its slot. ``finished`` is set when its text has ended."""

    request_id: str
    prompt_tokens: int
    items: AsyncIterator[Piece | Finished]
    running: RunningRequest
    started: float
    first_text_s: float | None = None
    finished: Finished | None = None

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield each piece of text; afterwards ``finished`` is set."""
        async for item in self.items:
            self.running.tokens = item.tokens
            if isinstance(item, Finished):
                self.finished = item
                return
            if self.first_text_s is None:
                self.first_text_s = time.monotonic() - self.started
            yield item

    @property
    def end(self) -> Finished:
        """How the text ended; a generation that was read to its end has one."""
        return self.finished or Finished(FinishReason.LENGTH, self.running.tokens)

    @property
    def measures(self) -> dict[str, float | int]:
        """Token counts, time to first token in ms, and tokens a second after the first."""
        total = time.monotonic() - self.started
        first = self.first_text_s if self.first_text_s is not None else total
        tokens = self.running.tokens
        decoding = total - first
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "ttft_ms": round(first * 1000, 2),
            "tokens_per_s": round((tokens - 1) / decoding, 2) if tokens > 1 and decoding > 0 else 0.0,
        }

    @property
    def usage(self) -> dict[str, int]:
        """Token counts in OpenAI's shape."""
        tokens = self.running.tokens
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": tokens,
            "total_tokens": self.prompt_tokens + tokens,
        }


@asynccontextmanager
async def generation(service: WorkerService, request: web.Request, wanted: Wanted) -> AsyncIterator[Generation]:
    """Take a slot, encode the prompt, and give out the generation; its slot is free when the block ends.

    Raises what :meth:`RunningRequests.slot` raises, and InvalidRequest for a prompt that the model cannot read.
    """
    generator: Generator = generator_of(service)
    route = request.match_info.route.resource
    name = route.canonical if route is not None else "unknown"
    started = time.monotonic()
    request_id = request_id_of(request)
    slot = service.requests.slot(request_id, name, client=client_of(request), deadline=deadline_of(request))
    async with slot as running:
        tokens = await _encode(generator, wanted.prompt)
        asked = GenerateRequest(tokens, _most(generator, tokens, wanted.max_tokens), wanted.sampling, wanted.stop)
        async with aclosing(generator.stream(asked)) as items:
            found = Generation(request_id, len(tokens), items, running, started)
            try:
                yield found
            finally:
                _observe(service, found)


def generator_of(service: WorkerService) -> Generator:
    """The worker's generator; raises ModelLoading, or InvalidRequest naming the route for another task."""
    served = service.model_for(Task.GENERATE).model.served
    if isinstance(served, Embedder | TensorModel):
        raise InvalidRequest("this worker does not generate text")
    return served


async def _encode(generator: Generator, prompt: Prompt) -> tuple[int, ...]:
    messages = prompt.messages
    if messages is not None:
        return await generator.prepare(lambda text: text.encode_messages(messages))
    return await generator.prepare(lambda text: text.encode(prompt.text or ""))


def _most(generator: Generator, tokens: Sequence[int], asked: int | None) -> int:
    """Tokens that may be generated: what was asked, within what the context leaves."""
    left = generator.text.context_length - len(tokens)
    return left if asked is None else min(asked, left)


def _observe(service: WorkerService, found: Generation) -> None:
    metrics = service.metrics
    metrics.tokens.labels("prompt").inc(found.prompt_tokens)
    metrics.tokens.labels("completion").inc(found.running.tokens)
    metrics.inference.observe(time.monotonic() - found.started)
    if found.first_text_s is not None:
        metrics.first_token.observe(found.first_text_s)
