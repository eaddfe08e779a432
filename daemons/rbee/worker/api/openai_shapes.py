"""How answers are written in OpenAI's shapes: whole or in chunks, chat or plain completion, with log probabilities."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rbee.worker.api.openai_answers import (
    AssistantCall,
    AssistantMessage,
    ChatChoice,
    ChatCompletion,
    FunctionCall,
    TextChoice,
    TextCompletion,
    Usage,
)
from rbee.worker.engine.generation import Finished, FinishReason, Piece, ScoredToken, TokenLogprob
from rbee.worker.engine.tool_parser import Found, MoreArguments, ToolCall, ToolCallParser

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What is new in the tool call of that number: ``begins`` has its id and name; more of its arguments' JSON text."""

    number: int
    begins: ToolCall | None
    arguments: str


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new in one choice: text, tool calls, and the log probabilities where they were asked for."""

    index: int
    text: str = ""
    calls: tuple[CallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.text or self.calls or self.logprobs or self.finish)


class ChoiceReader:
    """Reads the items of one choice, through the parser of tool calls where the request has tools."""

    def __init__(self, index: int, parser: ToolCallParser | None = None) -> None:
        self._index = index
        self._parser = parser
        self._calls = 0
        self.deltas: list[Delta] = []

    def read(self, item: Piece | Finished) -> Delta:
        """What the item adds. All of them are kept in ``deltas``."""
        found = self._parsed(item)
        text = "".join(each for each in found if isinstance(each, str))
        calls = tuple(self._call(each) for each in found if not isinstance(each, str))
        delta = Delta(self._index, text, calls, item.logprobs, self._finish(item))
        self.deltas.append(delta)
        return delta

    def whole(self) -> Delta:
        """All that was read, as one."""
        calls: list[CallDelta] = []
        for call in (call for delta in self.deltas for call in delta.calls):
            if call.begins is not None:
                calls.append(call)
            else:
                calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + call.arguments)
        logprobs = tuple(each for delta in self.deltas for each in delta.logprobs)
        text = "".join(delta.text for delta in self.deltas)
        return Delta(self._index, text, tuple(calls), logprobs, self.deltas[-1].finish if self.deltas else None)

    def _parsed(self, item: Piece | Finished) -> list[Found]:
        if self._parser is None:
            return [item.text] if isinstance(item, Piece) else []
        return self._parser.add(item.text) if isinstance(item, Piece) else self._parser.flush()

    def _call(self, found: ToolCall | MoreArguments) -> CallDelta:
        if isinstance(found, MoreArguments):
            return CallDelta(self._calls - 1, None, found.text)
        self._calls += 1
        return CallDelta(self._calls - 1, found, found.arguments)

    def _finish(self, item: Piece | Finished) -> str | None:
        if isinstance(item, Piece):
            return None
        return "tool_calls" if self._calls and item.reason is FinishReason.STOP else item.reason.value


@dataclass(slots=True)
class Shape(ABC):
    """How one answer is written. ``logprobs``: they were asked for."""

    request_id: str
    model: str
    logprobs: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self, index: int) -> Json | None:
        """What a choice's stream begins with, if anything."""
        del index
        return None

    @abstractmethod
    def chunk(self, delta: Delta) -> Json:
        """A streamed piece of one choice."""

    @abstractmethod
    def envelope(self, choices: Sequence[Mapping[str, object]]) -> Json:
        """What stands around the choices of a streamed piece."""

    @abstractmethod
    def answer(self, wholes: Sequence[Delta], usage: Usage) -> ChatCompletion | TextCompletion:
        """The answer at once."""


@dataclass(slots=True)
class ChatShape(Shape):
    """chat.completion and chat.completion.chunk."""

    def opening(self, index: int) -> Json | None:
        """The role."""
        choice = {"index": index, "delta": {"role": "assistant", "content": ""}, "logprobs": None}
        return self.envelope([{**choice, "finish_reason": None}])

    def chunk(self, delta: Delta) -> Json:
        """A delta of text, of calls, or of both."""
        told: Json = {"content": delta.text} if delta.text else {}
        if delta.calls:
            told["tool_calls"] = [{"index": call.number, **_call(call)} for call in delta.calls]
        choice = {"index": delta.index, "delta": told, "logprobs": self._logprobs(delta), "finish_reason": delta.finish}
        return self.envelope([choice])

    def answer(self, wholes: Sequence[Delta], usage: Usage) -> ChatCompletion:
        """The assistant's messages."""
        return ChatCompletion(self._id, self.created, self.model, [self._choice(each) for each in wholes], usage)

    def envelope(self, choices: Sequence[Mapping[str, object]]) -> Json:
        """Id, object, time and model."""
        head = {"id": self._id, "object": "chat.completion.chunk", "created": self.created}
        return {**head, "model": self.model, "choices": choices}

    @property
    def _id(self) -> str:
        return f"chatcmpl-{self.request_id}"

    def _choice(self, whole: Delta) -> ChatChoice:
        calls = _written(whole.calls)
        message = AssistantMessage(whole.text or None, calls) if calls else AssistantMessage(whole.text)
        return ChatChoice(whole.index, message, self._logprobs(whole, empty=True), whole.finish)

    def _logprobs(self, delta: Delta, *, empty: bool = False) -> Json | None:
        if not self.logprobs or not (delta.logprobs or empty):
            return None
        content = [
            {**_scored(each.chosen), "top_logprobs": [_scored(other) for other in each.top]} for each in delta.logprobs
        ]
        return {"content": content, "refusal": None}


@dataclass(slots=True)
class CompletionShape(Shape):
    """text_completion, streamed or not. ``echo`` begins every choice."""

    echo: str = ""
    _offsets: dict[int, int] = field(default_factory=dict)

    def opening(self, index: int) -> Json | None:
        """The prompt, where it is echoed."""
        return self.chunk(Delta(index, self.echo)) if self.echo else None

    def chunk(self, delta: Delta) -> Json:
        """A piece of text."""
        choice = {"index": delta.index, "text": delta.text, "logprobs": self._logprobs(delta)}
        return self.envelope([{**choice, "finish_reason": delta.finish}])

    def answer(self, wholes: Sequence[Delta], usage: Usage) -> TextCompletion:
        """The texts."""
        return TextCompletion(self._id, self.created, self.model, [self._choice(each) for each in wholes], usage)

    def envelope(self, choices: Sequence[Mapping[str, object]]) -> Json:
        """Id, object, time and model."""
        head = {"id": self._id, "object": "text_completion", "created": self.created}
        return {**head, "model": self.model, "choices": choices}

    @property
    def _id(self) -> str:
        return f"cmpl-{self.request_id}"

    def _choice(self, whole: Delta) -> TextChoice:
        return TextChoice(whole.index, self.echo + whole.text, self._logprobs(whole), whole.finish)

    def _logprobs(self, delta: Delta) -> Json | None:
        if not self.logprobs:
            return None
        offsets: list[int] = []
        for each in delta.logprobs:
            at = self._offsets.get(delta.index, 0)
            offsets.append(at)
            self._offsets[delta.index] = at + len(each.chosen.spelt.text)
        return {
            "tokens": [each.chosen.spelt.text for each in delta.logprobs],
            "token_logprobs": [each.chosen.logprob for each in delta.logprobs],
            "top_logprobs": [
                {other.spelt.text: other.logprob for other in (*each.top, each.chosen)} for each in delta.logprobs
            ],
            "text_offset": offsets,
        }


def _scored(token: ScoredToken) -> Json:
    return {"token": token.spelt.text, "logprob": token.logprob, "bytes": list(token.spelt.raw)}


def _written(calls: Sequence[CallDelta]) -> list[AssistantCall]:
    return [
        AssistantCall(call.begins.call_id, FunctionCall(call.begins.name, call.arguments))
        for call in calls
        if call.begins is not None
    ]


def _call(call: CallDelta) -> Json:
    if call.begins is None:
        return {"function": {"arguments": call.arguments}}
    function = {"name": call.begins.name, "arguments": call.arguments}
    return {"id": call.begins.call_id, "type": "function", "function": function}
