"""What a text model is apart from its graph: tokenizer, chat template, end of sequence, context, and its defaults."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from rbee.wire.errors import InvalidRequest
from rbee.wire.worker_spec import ToolFormat
from rbee.worker.engine.chat import ChatTemplate, Conversation
from rbee.worker.engine.generation import GenerateRequest
from rbee.worker.engine.grammar import GrammarCompiler
from rbee.worker.engine.sampling import SamplingParams
from rbee.worker.engine.text_row import TextRow
from rbee.worker.engine.tokenise import vocabulary_size
from rbee.worker.engine.tokens import TokenTexts
from rbee.worker.engine.tools import detect

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DEFAULT_CONTEXT = 2048


class TextModel:
    """Reads prompts and begins texts. What it does takes time: call it from a step's thread, not from the loop."""

    def __init__(
        self,
        tokenizer: "Tokenizer",
        *,
        eos_ids: frozenset[int],
        context_length: int | None = None,
        template: ChatTemplate | None = None,
        sampling: SamplingParams | None = None,
        tool_format: ToolFormat | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.vocabulary = vocabulary_size(tokenizer)  # every token id is below it
        self.eos_ids = eos_ids
        self.context_length = context_length or DEFAULT_CONTEXT
        self.sampling = sampling or SamplingParams()
        self._texts = TokenTexts(tokenizer)
        self._template = template
        self.tool_format = tool_format or (detect(template.source) if template is not None else None)

    @cached_property
    def grammars(self) -> GrammarCompiler:
        """What holds answers to a shape."""
        return GrammarCompiler(self.tokenizer, self.eos_ids)

    def row(self, request: GenerateRequest) -> TextRow:
        """A text begins."""
        return TextRow(request, self.eos_ids, self.tokenizer, self._texts)

    def encode(self, prompt: str | Sequence[int], *, special: bool = True) -> tuple[int, ...]:
        """Token ids of a prompt; raises InvalidRequest where it is empty, too long, or outside the vocabulary."""
        if isinstance(prompt, str):
            ids = tuple(self.tokenizer.encode(prompt, add_special_tokens=special).ids)
        else:
            ids = tuple(prompt)
        if not ids:
            raise InvalidRequest("the prompt is empty: send at least one token of text", param="prompt")
        if any(not 0 <= token < self.vocabulary for token in ids):
            raise InvalidRequest("the prompt has a token id outside the vocabulary", param="prompt")
        if len(ids) >= self.context_length:
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens and the model's context is {self.context_length}: shorten it",
                details={"tokens": len(ids), "limit": self.context_length},
                param="prompt",
            )
        return ids

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, special ones left out."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def encode_chat(self, conversation: Conversation) -> tuple[int, ...]:
        """Token ids of a conversation by the model's chat template; raises InvalidRequest."""
        if self._template is None:
            raise InvalidRequest(
                "the model has no chat template: use /v1/completions, or `prompt` on /v1/inference", param="messages"
            )
        return self.encode(self._template.render(conversation), special=False)

    def special_token(self, text: str) -> int | None:
        """The id of a special token by its text; None where the text is none."""
        token = self.tokenizer.token_to_id(text)
        return token if token is not None and self.grammars.is_special(token) else None
