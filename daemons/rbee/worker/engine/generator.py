"""What a generator is to the rest of the worker: a request in, a stream of pieces of text out.

The routes know this protocol alone, so that the loop behind it can change (one request at a time, batched) freely.
"""

from collections.abc import AsyncGenerator, Callable
from typing import Protocol, TypeVar

from rbee.worker.engine.generation import Finished, GenerateRequest, Piece
from rbee.worker.engine.text_model import TextModel

T = TypeVar("T")


class Generator(Protocol):
    """Generates text. Cancelling the task that reads a stream stops it within one step."""

    @property
    def text(self) -> TextModel:
        """Tokenizer, template, context length and defaults of the model."""

    async def prepare(self, work: Callable[[TextModel], T]) -> T:
        """Run what takes time (tokenising, compiling a grammar) off the loop, and await it."""

    def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece | Finished, None]:
        """Generate; the next step is computed when the reader asks for it, so a slow reader slows it down.

        Raises InferenceError where the model fails on this text.
        """
