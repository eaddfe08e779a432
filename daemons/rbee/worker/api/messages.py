"""Messages of a conversation, in OpenAI's shape, as far as a text model reads them."""

from collections.abc import Sequence
from typing import Annotated

import msgspec
from msgspec import Meta

from rbee.wire.errors import InvalidRequest


class TextPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of a message's content; text is the only kind that is read."""

    type: str
    text: str = ""


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message. ``content`` is text, or text in parts."""

    role: Annotated[str, Meta(pattern=r"^(system|developer|user|assistant)$")]
    content: str | list[TextPart]


def plain_messages(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as chat templates want them; raises InvalidRequest for none, or a part that is not text."""
    if not messages:
        raise InvalidRequest("messages is empty: send at least one", details={"field": "messages"}, param="messages")
    return [{"role": message.role, "content": _text(message.content)} for message in messages]


def _text(content: str | list[TextPart]) -> str:
    if isinstance(content, str):
        return content
    for part in content:
        if part.type != "text":
            raise InvalidRequest(
                "this model reads text only: leave out parts of other types",
                details={"field": "messages.content.type"},
                param="messages",
            )
    return "".join(part.text for part in content)
