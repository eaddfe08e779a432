"""New correlation ids: UUIDs of version 4 (RFC 9562), from random bytes that the kernel gives for many at once."""

import os

_AT_ONCE = 256
_VARIANTS = "89ab"
_pool: list[str] = []


def new() -> str:
    """A new one, as text."""
    if not _pool:
        digits = os.urandom(16 * _AT_ONCE).hex()
        _pool.extend(digits[at : at + 32] for at in range(0, len(digits), 32))
    text = _pool.pop()
    variant = _VARIANTS[int(text[16], 16) & 3]
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"
