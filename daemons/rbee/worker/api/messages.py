"""Messages of a conversation, in OpenAI's shape, as far as a text model reads them."""

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NoReturn

import msgspec
from msgspec import Meta

from rbee.wire.errors import InvalidRequest

CallId = Annotated[str, Meta(min_length=1, max_length=128)]


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a message's content; text is the only kind that is read."""

    type: str
    text: str = ""


class CalledFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The function of an earlier call; ``arguments`` is the JSON text of an object."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    arguments: str


class EarlierCall(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A call that the assistant asked for earlier."""

    id: CallId
    function: CalledFunction
    type: Literal["function"] = "function"


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message. ``content`` is text, or text in parts; an assistant's calls may stand for it.

    The fields that are always null are those of OpenAI's answers, which clients send back as they came.
    """

    role: Annotated[str, Meta(pattern=r"^(system|developer|user|assistant|tool)$")]
    content: str | list[TextPart] | None = None
    name: Annotated[str, Meta(max_length=64)] | None = None
    tool_calls: list[EarlierCall] | None = None
    tool_call_id: CallId | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[None], Meta(max_length=0)] | None = None


def plain_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as chat templates want them; raises InvalidRequest for none, or one that lacks what its role needs."""
    if not messages:
        _refuse("messages", "messages is empty: send at least one")
    return [_plain(message) for message in messages]


def _plain(message: Message) -> dict[str, Any]:
    if message.tool_calls and message.role != "assistant":
        _refuse("messages.tool_calls", "only an assistant's message has tool_calls")
    if message.role == "tool" and message.tool_call_id is None:
        _refuse("messages.tool_call_id", "a tool's message names the call that it answers in tool_call_id")
    if message.content is None and not message.tool_calls:
        _refuse("messages.content", "a message has content, or an assistant's has tool_calls")
    plain: dict[str, Any] = {"role": message.role, "content": _text(message.content)}
    if message.name is not None:
        plain["name"] = message.name
    if message.tool_call_id is not None:
        plain["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        plain["tool_calls"] = [_call(call) for call in message.tool_calls]
    return plain


def _call(call: EarlierCall) -> dict[str, Any]:
    """Templates write arguments as JSON themselves, so they are given the object."""
    try:
        arguments = json.loads(call.function.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        _refuse("messages.tool_calls", "the arguments of an earlier call are not the JSON text of an object")
    return {"id": call.id, "type": call.type, "function": {"name": call.function.name, "arguments": arguments}}


def _text(content: str | list[TextPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    if any(part.type != "text" for part in content):
        _refuse("messages.content.type", "this model reads text only: leave out parts of other types")
    return "".join(part.text for part in content)


def _refuse(field: str, why: str) -> NoReturn:
    raise InvalidRequest(why, details={"field": field}, param="messages")
