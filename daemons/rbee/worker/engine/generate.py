"""Generates text: gives each request a row of the batch, and makes text of the tokens that come back."""

from collections.abc import AsyncGenerator, Callable
from typing import TypeVar

from rbee.wire.errors import InferenceError
from rbee.worker.engine.batch.build import Batch
from rbee.worker.engine.batch.decoders import Chunk, Token
from rbee.worker.engine.batch.loop import BatchLoop
from rbee.worker.engine.batch.prefix import PrefixCounts
from rbee.worker.engine.batch.row import ChoiceStream, Row
from rbee.worker.engine.decoder import run_options
from rbee.worker.engine.generation import Finished, GenerateRequest, Piece
from rbee.worker.engine.runner import Runner
from rbee.worker.engine.sampling import BatchSampler, SamplingParams
from rbee.worker.engine.text_model import TextModel

T = TypeVar("T")
WARM_UP = -1
"""The key of the warm-up's row: no row of a request has it."""


class BatchGenerator:
    """Implements generator.Generator on a batch whose thread it owns.

    Where that thread cannot go on, the runner's ``failure`` gets the reason: the worker has to end.
    """

    def __init__(self, batch: Batch, text: TextModel, runner: Runner) -> None:
        self._decoder = batch.decoder
        self._prefixes = batch.prefixes
        self._loop = BatchLoop(batch.stepper, runner.fail)
        self._text = text
        self._runner = runner
        runner.watch(self._loop.step_s)

    @property
    def text(self) -> TextModel:
        """Tokenizer, template, context length and defaults of the model."""
        return self._text

    @property
    def prefixes(self) -> PrefixCounts:
        """What the prefix cache has done."""
        return self._prefixes.counts

    async def prepare(self, work: Callable[[TextModel], T]) -> T:
        """Run what takes time (tokenising, compiling a grammar) off the loop, and await it."""
        return await self._runner.step(lambda _: work(self._text))

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece | Finished, None]:
        """Generate; the row leaves the batch at the next step when the reader stops reading."""
        text = self._text.row(request)
        eos_ids = frozenset() if request.sampling.ignore_eos else self._text.eos_ids
        row = Row(request, ChoiceStream(self._loop.wake), list(request.prompt), eos_ids)
        self._loop.submit(row)
        try:
            while True:
                for item in text.accept(await row.stream.next()):
                    yield item
                    if isinstance(item, Finished):
                        return
        finally:
            self._loop.cancel(row)

    def warm_up(self) -> None:
        """Read a prompt, choose, and make a step, in the calling thread; then the batch's own thread begins.

        Raises InferenceError where the model fails on it or scores with what is no number.
        """
        options, first = run_options(), min(self._text.eos_ids, default=0)
        self._decoder.open(WARM_UP, 1)
        scores = self._decoder.read([Chunk(WARM_UP, 0, [first])], options)
        sampler = BatchSampler()
        sampler.add(WARM_UP, SamplingParams(temperature=1.0, seed=0), [first])
        for outcome in sampler.choose([WARM_UP], scores.whole()):
            if isinstance(outcome, InferenceError):
                raise outcome
        self._decoder.step([Token(WARM_UP, 1, first)], options)
        self._decoder.close(WARM_UP)
        self._loop.start()

    def close(self) -> None:
        """End the batch's thread after its present step."""
        self._loop.close()
