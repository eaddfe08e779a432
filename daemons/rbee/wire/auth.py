"""Bearer tokens: kept unprintable, compared in constant time, named in logs by a fingerprint only."""

import enum
import hashlib
import hmac
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rbee.wire.errors import InvalidApiKey, MissingApiKey

CHALLENGE = "Bearer"
REDACTED = "[REDACTED]"
REPLACED = "replaced_token"
"""``details.reason`` of a refusal: the token was in force here until the latest rotation."""
_LEAST_REDACTED = 8  # a shorter value is part of ordinary words


class Secret:
    """A token that shows itself as its fingerprint: in repr, str, format and tracebacks alike.

    CPython cannot wipe a str from memory; what is promised is that the value is never printed.
    """

    __slots__ = ("__weakref__", "_value", "fingerprint")

    def __init__(self, value: str) -> None:
        self._value = value
        self.fingerprint = fingerprint(value)
        _Live.remember(self)

    def reveal(self) -> str:
        """The value itself, for an Authorization header."""
        return self._value

    def __repr__(self) -> str:
        return f"<{self.fingerprint}>"

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


class _Live:
    """The secrets that this process holds; one that nobody holds any more is not kept by this list."""

    secrets: tuple["weakref.ref[Secret]", ...] = ()

    @classmethod
    def remember(cls, secret: Secret) -> None:
        # a new tuple each time: a log record of another thread may be going through the old one
        cls.secrets = (*(held for held in cls.secrets if held() is not None), weakref.ref(secret))


def redacted(text: str) -> str:
    """``text`` without the tokens that this process holds: the last guard of what is written for people to read.

    A name from outside (a model, a file) may be a token by somebody's mistake; nothing of ours passes one here.
    """
    for held in _Live.secrets:
        secret = held()
        if secret is not None and len(value := secret.reveal()) >= _LEAST_REDACTED and value in text:
            text = text.replace(value, REDACTED)
    return text


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

    ``client`` is the name that the configuration gives the token; empty where it gives none. ``admin`` callers (root,
    the group rbee, by Unix socket) hold every role. ``hive`` is the one hive that a caller may speak for, None where
    the token is bound to none.
    """

    role: Role
    name: str
    admin: bool = False
    client: str = ""
    hive: str | None = None

    def may(self, roles: frozenset[Role]) -> bool:
        """Whether this caller may use a route that is open to ``roles``."""
        return self.admin or self.role in roles


ANONYMOUS = Identity(Role.API, "anonymous-loopback", admin=True)
"""The caller of a loopback listener that has no token configured."""


class TokenVerifier:
    """Tells from an Authorization header which role speaks.

    Every configured token is compared with the one presented, each in constant time, so that neither a match nor its
    place in the list shows in the time taken. The tokens that the latest rotation took out of force are known too: who
    still presents one is told that it is the one to reload. ``of_digest`` finds who presents a token of which only the
    SHA-256 (hex) is kept; the time that it takes tells something of that digest and nothing of a token.
    """

    def __init__(self, tokens: Mapping[Role, Sequence[Secret]], clients: Mapping[str, Secret] | None = None) -> None:
        self._tokens: tuple[tuple[Identity, bytes], ...] = ()
        self._held: tuple[Secret, ...] = ()
        self._replaced: tuple[bytes, ...] = ()
        self.of_digest: Callable[[str], Identity | None] = lambda digest: None
        self.replace(tokens, clients)

    def replace(self, tokens: Mapping[Role, Sequence[Secret]], clients: Mapping[str, Secret] | None = None) -> None:
        """Put other tokens in force; the next request is held against them.

        ``clients`` are tokens of role ``api`` that have a name of their own.
        """
        before = [digest for _, digest in self._tokens]
        known = [(Identity(role, one.fingerprint), one) for role, secrets in tokens.items() for one in secrets]
        named = (clients or {}).items()
        known += [(Identity(Role.API, secret.fingerprint, client=name), secret) for name, secret in named]
        self._tokens = tuple((identity, _digest(secret.reveal())) for identity, secret in known)
        self._held = tuple(secret for _, secret in known)  # or :func:`redacted` would not know them
        in_force = {digest for _, digest in self._tokens}
        # a reload that rotates nothing forgets nothing
        self._replaced = tuple(digest for digest in before if digest not in in_force) or self._replaced

    @property
    def tokens(self) -> object:
        """The tokens in force, to be told from others by identity: another object after :meth:`replace`."""
        return self._tokens

    @property
    def fingerprints(self) -> frozenset[str]:
        """The fingerprints of the tokens in force."""
        return frozenset(secret.fingerprint for secret in self._held)

    @property
    def empty(self) -> bool:
        """Whether no token is configured at all."""
        return not self._tokens

    def verify(self, header: str | None) -> Identity:
        """Return who presents ``header``; raises MissingApiKey or InvalidApiKey with ``details.reason``."""
        presented = _bearer_token(header)
        digest = _digest(presented)
        found: Identity | None = None
        for identity, expected in self._tokens:
            if hmac.compare_digest(digest, expected):
                found = identity
        found = found or self.of_digest(digest.hex())
        replaced = [hmac.compare_digest(digest, old) for old in self._replaced]
        if found is None and any(replaced):
            raise InvalidApiKey(
                "the token has been replaced here: its caller has to read the new one (systemctl reload)",
                details={"reason": REPLACED, "identity": fingerprint(presented)},
            )
        if found is None:
            raise InvalidApiKey(
                "the token is not known here: check that it is the one of this daemon",
                details={"reason": "unknown_token", "identity": fingerprint(presented)},
            )
        return found


def digest_of(value: str) -> str:
    """The SHA-256 of a token in hex: what is kept of one that is only verified, never presented."""
    return _digest(value).hex()


def _digest(value: str) -> bytes:
    # equal lengths on both sides: compare_digest tells lengths apart in time
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()


def _bearer_token(header: str | None) -> str:
    if header is None:
        raise MissingApiKey(
            "the Authorization header is missing: send 'Authorization: Bearer TOKEN'",
            details={"reason": "missing_header"},
        )
    scheme, _, token = header.partition(" ")
    # HTTP takes the white space at a header's end away: a client that sends "Bearer " arrives as "Bearer"
    if scheme != CHALLENGE or token.startswith(" "):
        raise InvalidApiKey(
            "the Authorization header is not of the form 'Bearer TOKEN'", details={"reason": "invalid_format"}
        )
    if not token.strip():
        raise InvalidApiKey("the Authorization header carries an empty token", details={"reason": "empty_token"})
    return token
