"""Generates text one request at a time on its own cache: prefill, then a step a token, each in a thread."""

from collections.abc import AsyncGenerator, Callable, Sequence
from functools import partial
from typing import TypeVar

from rbee.wire.errors import InferenceError
from rbee.worker.engine.decoder import Cache, Decoder, run_options
from rbee.worker.engine.generation import Finished, GenerateRequest, Piece
from rbee.worker.engine.sampling import BatchSampler, SamplingParams
from rbee.worker.engine.sessions import Runner, RunOptions
from rbee.worker.engine.text_model import TextModel
from rbee.worker.engine.text_row import TextRow

T = TypeVar("T")


class _Text:
    """A text, its sampler and its cache."""

    def __init__(self, model: TextModel, request: GenerateRequest) -> None:
        self.row: TextRow = model.row(request)
        self.cache = Cache()
        self.sampler = BatchSampler(model.eos_ids)
        self.sampler.add(self, request.sampling, request.prompt)


class SequentialGenerator:
    """A generator whose requests share the session and nothing else; implements generation.Generator."""

    def __init__(self, decoder: Decoder, text: TextModel, runner: Runner) -> None:
        self._decoder = decoder
        self._text = text
        self._runner = runner

    @property
    def text(self) -> TextModel:
        """Tokenizer, template, context length and defaults of the model."""
        return self._text

    async def prepare(self, work: Callable[[TextModel], T]) -> T:
        """Run what takes time (tokenising, compiling a grammar) off the loop, and await it."""
        return await self._runner.step(lambda _: work(self._text))

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece | Finished, None]:
        """Generate; each step is computed when the reader asks for more."""
        text = _Text(self._text, request)
        tokens: Sequence[int] = request.prompt
        while True:
            items = await self._runner.step(partial(self._next, text, tokens))
            for item in items:
                yield item
                if isinstance(item, Finished):
                    return
            tokens = (text.row.last_token,)

    def _next(self, text: _Text, tokens: Sequence[int], options: RunOptions) -> list[Piece | Finished]:
        scores = self._decoder.advance(text.cache, tokens, options)
        (choice,) = text.sampler.choose([text], scores[None])
        if isinstance(choice, InferenceError):
            raise choice
        return text.row.accept(choice)

    def warm_up(self) -> None:
        """A prefill and a step, in the calling thread."""
        first = next(iter(sorted(self._text.eos_ids)), 0)
        request = GenerateRequest((first,), 2, SamplingParams(temperature=0.0, ignore_eos=True))
        text, options = _Text(self._text, request), run_options()
        self._next(text, request.prompt, options)
        self._next(text, (text.row.last_token,), options)
