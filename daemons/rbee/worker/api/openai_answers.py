"""The whole answers of OpenAI's routes: models, chat completions and completions.

https://platform.openai.com/docs/api-reference
"""

from typing import Any, Literal

import msgspec


class Usage(msgspec.Struct, frozen=True):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class PromptUsage(msgspec.Struct, frozen=True):
    """Token counts where nothing is generated."""

    prompt_tokens: int
    total_tokens: int


class Model(msgspec.Struct, frozen=True):
    """A model; ``created`` in seconds since the epoch."""

    id: str
    created: int
    object: Literal["model"] = "model"
    owned_by: str = "rbee"


class ModelList(msgspec.Struct, frozen=True):
    """GET /v1/models."""

    data: list[Model]
    object: Literal["list"] = "list"


class FunctionCall(msgspec.Struct, frozen=True):
    """What a call calls; ``arguments`` is JSON text."""

    name: str
    arguments: str


class AssistantCall(msgspec.Struct, frozen=True):
    """A call that the model asks for."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class AssistantMessage(msgspec.Struct, frozen=True):
    """What the assistant says; its ``content`` is null where it calls tools alone."""

    content: str | None
    tool_calls: list[AssistantCall] | msgspec.UnsetType = msgspec.UNSET
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """One answer of a chat."""

    index: int
    message: AssistantMessage
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class ChatCompletion(msgspec.Struct, frozen=True):
    """POST /v1/chat/completions."""

    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    object: Literal["chat.completion"] = "chat.completion"


class TextChoice(msgspec.Struct, frozen=True):
    """One text."""

    index: int
    text: str
    logprobs: dict[str, Any] | None
    finish_reason: str | None


class TextCompletion(msgspec.Struct, frozen=True):
    """POST /v1/completions."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage
    object: Literal["text_completion"] = "text_completion"
