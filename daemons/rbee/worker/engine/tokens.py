"""The text and the bytes of single tokens, as a tokenizer's vocabulary spells them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"
_MOST_KEPT = 1 << 16


@dataclass(frozen=True, slots=True)
class TokenText:
    """A token's bytes, and its text where they are whole characters (else with replacement characters)."""

    text: str
    raw: bytes


class TokenTexts:
    """Looks tokens up one at a time; knows byte-level vocabularies, and those that write bytes as <0xNN>."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        # the state of the decoder alone: that of the whole tokenizer has the vocabulary in it
        steps = _decoder_steps(json.loads(tokenizer.decoder.__getstate__()) if tokenizer.decoder is not None else None)
        self._byte_level = "ByteLevel" in steps
        self._byte_fallback = "ByteFallback" in steps or "Metaspace" in steps
        self._special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        self.of = lru_cache(_MOST_KEPT)(self._of)

    def _of(self, token: int) -> TokenText:
        raw = self._raw(token)
        return TokenText(raw.decode("utf-8", "replace"), raw)

    def _raw(self, token: int) -> bytes:
        spelt = self._tokenizer.id_to_token(token)
        if spelt is None:
            return b""
        if token in self._special:
            return spelt.encode()
        if self._byte_level and all(character in _BYTES_OF for character in spelt):
            return bytes(_BYTES_OF[character] for character in spelt)
        if self._byte_fallback:
            byte = _BYTE.fullmatch(spelt)
            return bytes([int(byte[1], 16)]) if byte else spelt.replace(_SPACE, " ").encode()
        return str(self._tokenizer.decode([token])).encode()


def _decoder_steps(decoder: Mapping[str, Any] | None) -> set[str]:
    """The names of the decoder's steps, whether it is one or a sequence."""
    if decoder is None:
        return set()
    steps = [decoder, *decoder.get("decoders", ())]
    found = {str(step.get("type")) for step in steps}
    if any(step.get("type") == "Replace" and step.get("pattern") == {"String": _SPACE} for step in steps):
        found.add("Metaspace")
    return found


def _byte_characters() -> dict[str, int]:
    """Byte-level BPE writes a printable byte as itself, and each other one as the next character from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}


_BYTES_OF = _byte_characters()
