"""Turns tokens into text as they come: never half a character, never a piece of a stop string."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

REPLACEMENT = "\ufffd"
MOST_HELD = 8
"""Tokens that may wait for the rest of a character: one of UTF-8 has at most 4 bytes, a token at least one."""


class Detokeniser:
    """Incremental decoding of one text.

    A token's text can depend on the one before it (leading spaces), so each step decodes a short window and gives out
    what is new in it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0
        self._given = 0

    def add(self, token: int) -> str:
        """The text that ``token`` completes; empty while a character is unfinished."""
        self._ids.append(token)
        before, text = self._window()
        unfinished = text.endswith(REPLACEMENT) and len(self._ids) - self._given < MOST_HELD
        if unfinished or len(text) <= len(before):
            return ""
        return self._advance(before, text)

    def flush(self) -> str:
        """What was held back at the end of the text."""
        before, text = self._window()
        return self._advance(before, text)

    def _window(self) -> tuple[str, str]:
        before = self._decode(self._ids[self._start : self._given])
        return before, self._decode(self._ids[self._start :])

    def _advance(self, before: str, text: str) -> str:
        new = text[len(before) :]
        self._start, self._given = self._given, len(self._ids)
        return new


class Released(NamedTuple):
    """Text that may go out, and whether a stop string was met (which is not part of the text)."""

    text: str
    stopped: bool


class StopStrings:
    """Holds back what could become a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def add(self, text: str) -> Released:
        """Take new text; release what is certain to be no part of a stop string."""
        if not self._stops:
            return Released(text, stopped=False)
        whole = self._held + text
        found = [at for stop in self._stops if (at := whole.find(stop)) >= 0]
        if found:
            self._held = ""
            return Released(whole[: min(found)], stopped=True)
        keep = max((overlap(whole, stop) for stop in self._stops), default=0)
        self._held = whole[len(whole) - keep :]
        return Released(whole[: len(whole) - keep], stopped=False)

    def flush(self) -> str:
        """What was held back when the text ended without the stop string."""
        held, self._held = self._held, ""
        return held


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that begins ``stop``."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
