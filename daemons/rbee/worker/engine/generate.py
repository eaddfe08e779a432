"""Generates text one request at a time on its own cache: prefill, then a step a token, each in a thread."""

from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rbee.wire.errors import InvalidRequest
from rbee.worker.engine.chat import ChatTemplate
from rbee.worker.engine.decoder import Cache, Decoder, run_options
from rbee.worker.engine.detokenise import Detokeniser, StopStrings
from rbee.worker.engine.generation import Finished, FinishReason, GenerateRequest, Piece
from rbee.worker.engine.sampling import Sampler, SamplingParams, Scores
from rbee.worker.engine.sessions import Runner, RunOptions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_CONTEXT = 2048


class TextRow:
    """One text as it grows: chooses each token from its scores and says what may go out. No clock, no device."""

    def __init__(self, request: GenerateRequest, eos_ids: frozenset[int], tokenizer: "Tokenizer") -> None:
        self._request = request
        self._eos_ids = eos_ids
        self._sampler = Sampler(request.sampling)
        self._detokeniser = Detokeniser(lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)))
        self._stops = StopStrings(request.stop)
        self._tokens = 0
        self.last_token = request.prompt[-1]

    def accept(self, scores: Scores) -> list[Piece | Finished]:
        """Choose the next token from ``scores``; the items that go out because of it."""
        token = self._sampler.choose(scores)
        if token in self._eos_ids:
            return self._end(FinishReason.STOP)
        self.last_token = token
        self._tokens += 1
        released = self._stops.add(self._detokeniser.add(token))
        items = self._pieces(released.text)
        if released.stopped:
            return [*items, Finished(FinishReason.STOP, self._tokens)]
        if self._tokens >= self._request.max_tokens:
            return [*items, *self._end(FinishReason.LENGTH)]
        return items

    def _end(self, reason: FinishReason) -> list[Piece | Finished]:
        released = self._stops.add(self._detokeniser.flush())
        text = released.text if released.stopped else released.text + self._stops.flush()
        final = FinishReason.STOP if released.stopped else reason
        return [*self._pieces(text), Finished(final, self._tokens)]

    def _pieces(self, text: str) -> list[Piece | Finished]:
        return [Piece(text, self.last_token, self._tokens)] if text else []


class SequentialGenerator:
    """A generator whose requests share the session and nothing else; implements generation.Generator."""

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: "Tokenizer",
        runner: Runner,
        *,
        eos_ids: frozenset[int],
        context_length: int | None,
        template: ChatTemplate | None,
        sampling: SamplingParams,
    ) -> None:
        self._decoder = decoder
        self._tokenizer = tokenizer
        self._runner = runner
        self._eos_ids = eos_ids
        self._context_length = context_length or DEFAULT_CONTEXT
        self._template = template
        self._sampling = sampling

    @property
    def default_sampling(self) -> SamplingParams:
        """How tokens are chosen where a request does not say."""
        return self._sampling

    @property
    def context_length(self) -> int:
        """Tokens that prompt and completion may have together."""
        return self._context_length

    async def encode(self, prompt: str | Sequence[int]) -> tuple[int, ...]:
        """Token ids of a prompt; raises InvalidRequest where it is empty, too long, or outside the vocabulary."""
        return await self._runner.step(lambda _: self._encode(prompt))

    async def encode_messages(self, messages: Sequence[dict[str, str]]) -> tuple[int, ...]:
        """Token ids of a conversation by the model's chat template; raises InvalidRequest."""
        template = self._template
        if template is None:
            raise InvalidRequest(
                "the model has no chat template: use /v1/completions, or `prompt` on /v1/inference", param="messages"
            )
        return await self._runner.step(lambda _: self._encode(template.render(messages), special=False))

    def _encode(self, prompt: str | Sequence[int], *, special: bool = True) -> tuple[int, ...]:
        if isinstance(prompt, str):
            ids = tuple(self._tokenizer.encode(prompt, add_special_tokens=special).ids)
        else:
            ids = tuple(prompt)
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if not ids:
            raise InvalidRequest("the prompt is empty: send at least one token of text", param="prompt")
        if any(not 0 <= token < size for token in ids):
            raise InvalidRequest("the prompt has a token id outside the vocabulary", param="prompt")
        if len(ids) >= self._context_length:
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens and the model's context is {self._context_length}: shorten it",
                details={"tokens": len(ids), "limit": self._context_length},
                param="prompt",
            )
        return ids

    async def stream(self, request: GenerateRequest) -> AsyncGenerator[Piece | Finished, None]:
        """Generate; each step is computed when the reader asks for more."""
        row = TextRow(request, self._eos_ids, self._tokenizer)
        cache = Cache()
        tokens: Sequence[int] = request.prompt
        while True:
            items = await self._runner.step(partial(self._next, row, cache, tokens))
            for item in items:
                yield item
                if isinstance(item, Finished):
                    return
            tokens = (row.last_token,)

    def _next(self, row: TextRow, cache: Cache, tokens: Sequence[int], options: RunOptions) -> list[Piece | Finished]:
        return row.accept(self._decoder.advance(cache, tokens, options))

    def warm_up(self) -> None:
        """A prefill and a step, in the calling thread."""
        first = next(iter(sorted(self._eos_ids)), 0)
        request = GenerateRequest((first,), 2, SamplingParams(temperature=0.0))
        row, cache, options = TextRow(request, frozenset(), self._tokenizer), Cache(), run_options()
        self._next(row, cache, request.prompt, options)
        self._next(row, cache, (row.last_token,), options)
