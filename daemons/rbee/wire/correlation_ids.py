"""New correlation ids: UUIDs of version 4 (RFC 9562), from random bytes that the kernel gives for many at once."""

import os
from collections.abc import Iterator

_AT_ONCE = 256
_BYTES = 16
_VERSION = bytes(byte & 0x0F | 0x40 for byte in range(256))
_VARIANT = bytes(byte & 0x3F | 0x80 for byte in range(256))
_pool: list[str] = []


def new() -> str:
    """A new one, as text."""
    if not _pool:
        _pool.extend(_many())
    return _pool.pop()


def _many() -> Iterator[str]:
    data = bytearray(os.urandom(_BYTES * _AT_ONCE))
    data[6::_BYTES] = data[6::_BYTES].translate(_VERSION)
    data[8::_BYTES] = data[8::_BYTES].translate(_VARIANT)
    digits = data.hex()
    for at in range(0, len(digits), 2 * _BYTES):
        text = digits[at : at + 2 * _BYTES]
        yield f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
