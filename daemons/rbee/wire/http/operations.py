"""What a route takes and gives, written beside its handler, for the OpenAPI document."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

H = TypeVar("H")
SCHEMA = "rbee_schema"
"""Attribute of a struct: what its schema says otherwise than its fields do, a mapping of keywords to their values."""
_OPERATION = "rbee_operation"
JSON, EVENTS, BYTES, TEXT = "application/json", "text/event-stream", "application/octet-stream", "text/plain"
"""Media types."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What a route takes and gives.

    ``answer`` is the type of its JSON answer (None: no body; a tuple: one of them), ``media`` what else an answer may
    be, ``status`` its code. ``body`` is the type of its request, ``bodies`` other media that it takes.
    ``query`` and ``headers`` map a parameter's name to what it means; ``more`` are further statuses with that answer.
    ``ticket``: a route that is open but for this asks for a ticket of the daemon's own.
    """

    answer: Any = None
    status: int = 200
    media: tuple[str, ...] = ()
    body: Any = None
    bodies: tuple[str, ...] = ()
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    more: tuple[int, ...] = ()
    ticket: bool = False


def operation(
    answer: Any = None,  # noqa: ANN401 - a type, and unions are values of no one class
    *,
    status: int = 200,
    media: tuple[str, ...] = (),
    body: Any = None,  # noqa: ANN401
    bodies: tuple[str, ...] = (),
    query: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    more: tuple[int, ...] = (),
    ticket: bool = False,
) -> "_Mark":
    """Decorate a handler with what it takes and gives; see :class:`Operation`."""
    return _Mark(Operation(answer, status, media, body, bodies, query or {}, headers or {}, more, ticket))


class _Mark:
    def __init__(self, described: Operation) -> None:
        self._described = described

    def __call__(self, handler: H) -> H:
        setattr(handler, _OPERATION, self._described)
        return handler


def operation_of(handler: object) -> Operation | None:
    """What stands beside a handler."""
    found = getattr(handler, _OPERATION, None)
    return found if isinstance(found, Operation) else None
