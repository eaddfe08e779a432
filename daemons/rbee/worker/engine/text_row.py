"""One text as it grows: takes the chosen tokens and says what may go out. No clock, no device."""

from typing import TYPE_CHECKING

from rbee.worker.engine.detokenise import Detokeniser, StopStrings
from rbee.worker.engine.generation import Finished, FinishReason, GenerateRequest, Piece, ScoredToken, TokenLogprob
from rbee.worker.engine.sampling import Choice
from rbee.worker.engine.tokens import TokenTexts

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextRow:
    """The text of one request. ``last_token`` is what the next step reads."""

    def __init__(
        self, request: GenerateRequest, eos_ids: frozenset[int], tokenizer: "Tokenizer", texts: TokenTexts
    ) -> None:
        self._request = request
        self._eos_ids = frozenset() if request.sampling.ignore_eos else eos_ids
        self._texts = texts
        skip = not request.keep_special
        self._detokeniser = Detokeniser(lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=skip)))
        self._stops = StopStrings(request.stop)
        self._tokens = 0
        self._logprobs: list[TokenLogprob] = []
        self.last_token = request.prompt[-1]

    def accept(self, choice: Choice) -> list[Piece | Finished]:
        """The items that go out because of this token; a :class:`Finished` is the text's last."""
        token = choice.token_id
        if token in self._eos_ids:
            return self._end(FinishReason.STOP)
        self.last_token = token
        self._tokens += 1
        if choice.logprob is not None:
            self._logprobs.append(self._told(choice, choice.logprob))
        released = self._stops.add(self._detokeniser.add(token))
        items = self._pieces(released.text)
        if released.stopped:
            return [*items, Finished(FinishReason.STOP, self._tokens)]
        if self._tokens >= self._request.max_tokens:
            return [*items, *self._end(FinishReason.LENGTH)]
        return items

    def _told(self, choice: Choice, logprob: float) -> TokenLogprob:
        chosen = ScoredToken(choice.token_id, self._texts.of(choice.token_id), logprob)
        return TokenLogprob(chosen, tuple(ScoredToken(each, self._texts.of(each), score) for each, score in choice.top))

    def _end(self, reason: FinishReason) -> list[Piece | Finished]:
        released = self._stops.add(self._detokeniser.flush())
        text = released.text if released.stopped else released.text + self._stops.flush()
        final = FinishReason.STOP if released.stopped else reason
        items = self._pieces(text)
        return [*items, Finished(final, self._tokens, () if released.stopped else tuple(self._logprobs))]

    def _pieces(self, text: str) -> list[Piece | Finished]:
        if not text:
            return []
        logprobs, self._logprobs = tuple(self._logprobs), []
        return [Piece(text, self.last_token, self._tokens, logprobs)]
