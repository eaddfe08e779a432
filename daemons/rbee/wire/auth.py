"""Bearer tokens: kept unprintable, compared in constant time, named in logs by a fingerprint only."""

import enum
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rbee.wire.errors import InvalidApiKey, MissingApiKey

CHALLENGE = "Bearer"


class Secret:
    """A token that shows itself as its fingerprint: in repr, str, format and tracebacks alike.

    CPython cannot wipe a str from memory; what is promised is that the value is never printed.
    """

    __slots__ = ("_value", "fingerprint")

    def __init__(self, value: str) -> None:
        self._value = value
        self.fingerprint = fingerprint(value)

    def reveal(self) -> str:
        """The value itself, for an Authorization header."""
        return self._value

    def __repr__(self) -> str:
        return f"<{self.fingerprint}>"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


def fingerprint(value: str) -> str:
    """``token:`` and the first 6 hex digits of SHA-256: names a token in a log without telling it."""
    return "token:" + _digest(value).hex()[:6]


class Role(enum.StrEnum):
    """What a caller may speak as: a client or administrator (``api``), or a hive that reports (``hive``)."""

    API = "api"
    HIVE = "hive"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a request comes from. ``name`` is a fingerprint, ``uid:N`` or ``anonymous-loopback``.

    ``admin`` callers (root, the group rbee, by Unix socket) hold every role.
    """

    role: Role
    name: str
    admin: bool = False

    def may(self, roles: frozenset[Role]) -> bool:
        """Whether this caller may use a route that is open to ``roles``."""
        return self.admin or self.role in roles


ANONYMOUS = Identity(Role.API, "anonymous-loopback", admin=True)
"""The caller of a loopback listener that has no token configured."""


class TokenVerifier:
    """Tells from an Authorization header which role speaks.

    Every configured token is compared with the one presented, each in constant time, so that neither a match nor its
    place in the list shows in the time taken.
    """

    def __init__(self, tokens: Mapping[Role, Sequence[Secret]]) -> None:
        self._tokens: tuple[tuple[Role, Secret, bytes], ...] = ()
        self.replace(tokens)

    def replace(self, tokens: Mapping[Role, Sequence[Secret]]) -> None:
        """Put other tokens in force; the next request is held against them."""
        self._tokens = tuple(
            (role, secret, _digest(secret.reveal())) for role, secrets in tokens.items() for secret in secrets
        )

    @property
    def empty(self) -> bool:
        """Whether no token is configured at all."""
        return not self._tokens

    def verify(self, header: str | None) -> Identity:
        """Return who presents ``header``; raises MissingApiKey or InvalidApiKey with ``details.reason``."""
        presented = _bearer_token(header)
        digest = _digest(presented)
        found: Identity | None = None
        for role, secret, expected in self._tokens:
            if hmac.compare_digest(digest, expected):
                found = Identity(role, secret.fingerprint)
        if found is None:
            raise InvalidApiKey(
                "the token is not known here: check that it is the one of this daemon",
                details={"reason": "unknown_token", "identity": fingerprint(presented)},
            )
        return found


def _digest(value: str) -> bytes:
    # equal lengths on both sides: compare_digest tells lengths apart in time
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()


def _bearer_token(header: str | None) -> str:
    if header is None:
        raise MissingApiKey(
            "the Authorization header is missing: send 'Authorization: Bearer TOKEN'",
            details={"reason": "missing_header"},
        )
    scheme, space, token = header.partition(" ")
    if scheme != CHALLENGE or not space or token.startswith(" "):
        raise InvalidApiKey(
            "the Authorization header is not of the form 'Bearer TOKEN'", details={"reason": "invalid_format"}
        )
    if not token.strip():
        raise InvalidApiKey("the Authorization header carries an empty token", details={"reason": "empty_token"})
    return token
