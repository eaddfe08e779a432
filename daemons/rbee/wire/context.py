"""What belongs to the request in hand: its correlation id and its caller, carried by context variables."""

from contextvars import ContextVar

correlation_id: ContextVar[str | None] = ContextVar("rbee_correlation_id", default=None)
"""The UUID that links every record, error and hop of one request."""

caller: ContextVar[str | None] = ContextVar("rbee_caller", default=None)
"""Who asked: a token's fingerprint, ``uid:N``, or ``anonymous-loopback``."""

client: ContextVar[str | None] = ContextVar("rbee_client", default=None)
"""Whose request it is where clients share or have limits: the name of a token, else who asked."""
