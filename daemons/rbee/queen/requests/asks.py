"""A client's inference request, read at the edge: the model it names, how long it may wait, and its bytes."""

from dataclasses import dataclass
from typing import Annotated

import msgspec
from aiohttp import web
from msgspec import Meta

from rbee.queen.admission.fair import Priority
from rbee.queen.aliases import Aliases
from rbee.wire.deadline import DEADLINE_HEADER, Deadline, parse_deadline
from rbee.wire.errors import InvalidRequest
from rbee.wire.http.server import decode_body, read_body
from rbee.wire.names import MODEL_NAME, model_name

PRIORITY_HEADER = "X-Rbee-Priority"
_PASSED_ON = ("Content-Type", "Accept", "Inference-Header-Content-Length")


class Head(msgspec.Struct, frozen=True):
    """The fields that the queen reads of a body; the rest is the worker's."""

    model: Annotated[str, Meta(min_length=1, max_length=128, extra_json_schema={"pattern": f"^{MODEL_NAME.pattern}$"})]
    stream: bool | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: ``asked`` is the model's name in it, ``model`` what that stands for."""

    asked: str
    model: str
    stream: bool
    body: bytes
    headers: dict[str, str]
    deadline: Deadline | None
    patient: bool
    priority: Priority


async def read_ask(
    request: web.Request, aliases: Aliases, most: int, model: str | None = None, *, streams: bool = False
) -> Ask:
    """Read a request whose body names its model, or whose path does (``model``).

    ``most`` bytes may come, and ``streams`` is what holds when the body does not say whether to stream. Raises
    InvalidRequest, PayloadTooLarge, RequestTimeout (the body did not come).
    """
    deadline = request.headers.get(DEADLINE_HEADER)
    body = await read_body(request, most)
    # the decoder skips what it is not asked for at gigabytes a second: no scan of our own would stop early enough
    head = Head(model) if model is not None else decode_body(body, Head)
    asked = model_name(head.model)
    return Ask(
        asked,
        aliases.resolve(asked),
        streams if head.stream is None else head.stream,
        body,
        {name: request.headers[name] for name in _PASSED_ON if name in request.headers},
        None if deadline is None else parse_deadline(deadline),
        not _asks_to_answer_at_once(request.headers.get("Prefer", "")),
        _priority(request.headers.get(PRIORITY_HEADER)),
    )


def _asks_to_answer_at_once(prefer: str) -> bool:
    """Whether ``Prefer: respond-async`` (RFC 7240) is among the preferences."""
    return any(part.split(";")[0].strip().lower() == "respond-async" for part in prefer.split(","))


def _priority(header: str | None) -> Priority:
    if header is None:
        return Priority.INTERACTIVE
    try:
        return Priority(header.strip().lower())
    except ValueError:
        raise InvalidRequest(
            f"{PRIORITY_HEADER} is none of the priorities",
            details={"header": PRIORITY_HEADER, "accepted": [known.value for known in Priority]},
        ) from None
