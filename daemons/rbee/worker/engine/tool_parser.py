"""Reads tool calls out of a text as it comes: text at once, a call once its name is known, then its arguments."""

import json
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rbee.wire.worker_spec import ToolFormat
from rbee.worker.engine.detokenise import overlap
from rbee.worker.engine.tools import MARKS, MOST_CALLS

MISTRAL_ID_CHARACTERS = 9
"""Mistral's templates refuse call ids of another length."""
_MISTRAL = (ToolFormat.MISTRAL, ToolFormat.MISTRAL_ARGS)
_SEPARATORS = " \t\r\n,;[]}"
_NAME = r"([A-Za-z0-9_.-]{1,64})"
_JSON_HEAD = re.compile(rf'[\s,;\[\]}}]*\{{\s*"name"\s*:\s*"{_NAME}"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)')
_NAMED_HEAD = re.compile(
    rf"[\s,;\]}}]*(?:\[TOOL_CALLS\])?\s*{_NAME}(?:\[CALL_ID\][A-Za-z0-9]*)?(?:\[ARGS\])?\s*(?=\{{)"
)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call begins; ``arguments`` is what is known of its JSON text."""

    call_id: str
    name: str
    arguments: str = ""


@dataclass(frozen=True, slots=True)
class MoreArguments:
    """The arguments of the call that began last go on."""

    text: str


Found = str | ToolCall | MoreArguments


class _ObjectScanner:
    """Finds where a JSON object ends, over any number of pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def end(self, text: str) -> int | None:
        """How much of ``text`` belongs to the object where it ends there, else None."""
        for at, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return at + 1
        return None


class ToolCallParser:
    """Reads one answer. What looks like a call and is none goes out as the text that it is.

    ``names`` are the tools' names; calls beyond ``most_calls`` are left out, and so are the blanks around calls.
    """

    def __init__(self, form: ToolFormat, names: Iterable[str], most_calls: int = MOST_CALLS) -> None:
        self._form = form
        self._marks = MARKS[form]
        self._names = frozenset(names)
        self._left = most_calls
        self._held = ""
        self._blanks = ""
        self._inside = False
        self._opening = ""
        self._arguments: _ObjectScanner | None = None
        self._begun = False
        self._called = False
        self._called_here = False

    def add(self, text: str) -> list[Found]:
        """Take new text; what is certain goes out in order."""
        self._held += text
        return list(self._read())

    def flush(self) -> list[Found]:
        """The answer has ended."""
        held, self._held = self._held, ""
        out = list(self._body(held, "") if self._inside else self._text(held))
        self._inside = False
        if self._blanks and not self._called:
            out.append(self._blanks)
        return out

    def _read(self) -> Iterator[Found]:
        while self._held:
            if self._arguments is not None:
                yield from self._read_arguments(self._arguments)
            elif not self._inside:
                yield from self._read_text()
                if not self._inside:
                    return
            elif (call := self._head()) is not None:
                yield from call
            elif self._marks.closing is not None and self._marks.closing in self._held:
                body, _, self._held = self._held.partition(self._marks.closing)
                self._inside = False
                yield from self._body(body, self._marks.closing)
            else:
                return

    def _read_text(self) -> Iterator[Found]:
        """Text up to the next mark, which is taken; what could be the beginning of one stays."""
        if self._marks.bare and not self._begun and self._held.lstrip().startswith("{"):
            self._open("")
            return
        before, mark, after = self._held.partition(self._marks.opening)
        keep = 0 if mark else overlap(before, self._marks.opening)
        self._held = after if mark else before[len(before) - keep :]
        if mark:
            self._open(mark)
        yield from self._text(before[: len(before) - keep])

    def _open(self, mark: str) -> None:
        self._inside, self._opening, self._called_here = True, mark, False

    def _head(self) -> list[ToolCall] | None:
        """The call whose name and whose arguments' first brace are there; empty where it is one too many."""
        found, marked = _JSON_HEAD.match(self._held), bool(self._opening)
        if found is None and self._form in _MISTRAL:
            found, marked = _NAMED_HEAD.match(self._held), False
        # a word before a brace, or an object at the answer's beginning, is a call by the name of a tool alone
        if found is None or not (marked or found[1] in self._names):
            return None
        self._held = self._held[found.end() :]
        self._arguments = _ObjectScanner()
        return self._begin(found[1])

    def _begin(self, name: str, arguments: str = "") -> list[ToolCall]:
        self._begun = self._called = self._called_here = True
        self._blanks = ""
        self._left -= 1
        return [ToolCall(new_call_id(self._form), name, arguments)] if self._left >= 0 else []

    def _read_arguments(self, scanner: _ObjectScanner) -> Iterator[Found]:
        end = scanner.end(self._held)
        text = self._held if end is None else self._held[:end]
        self._held = self._held[len(text) :]
        if end is not None:
            self._arguments = None
        if self._left >= 0:
            yield MoreArguments(text)

    def _text(self, text: str) -> Iterator[str]:
        """Blanks wait: they belong to the text only when more of it follows."""
        text = self._blanks + text
        kept = text.rstrip()
        self._blanks = text[len(kept) :]
        if kept:
            self._begun = True
            yield kept

    def _body(self, body: str, closing: str) -> Iterator[Found]:
        """What is left between the marks once they are closed: calls in another order of words, or text."""
        if self._called_here:
            yield from self._text(body.strip(_SEPARATORS))
            return
        found = list(_calls(body))
        known = bool(self._opening) or all(call is None or call[0] in self._names for call in found)
        if not found or None in found or not known:
            yield from self._text(f"{self._opening}{body}{closing}")
            return
        for call in found:
            if call is not None:
                yield from self._begin(call[0], _json(call[1]))


def new_call_id(form: ToolFormat) -> str:
    """An id for a call, of the length that the format's templates take."""
    if form in _MISTRAL:
        return secrets.token_hex(MISTRAL_ID_CHARACTERS)[:MISTRAL_ID_CHARACTERS]
    return f"call_{secrets.token_hex(12)}"


def _calls(body: str) -> Iterator[tuple[str, Mapping[str, Any]] | None]:
    """The calls that stand one after another or in a list, each its name and arguments; None for what is no call."""
    decoder, at = json.JSONDecoder(), 0
    while (at := _skip(body, at)) < len(body):
        try:
            value, at = decoder.raw_decode(body, at)
        except (ValueError, RecursionError):
            yield None
            return
        yield from map(_call, value if isinstance(value, list) else [value])


def _skip(body: str, at: int) -> int:
    while at < len(body) and body[at] in " \t\r\n,;":
        at += 1
    return at


def _call(value: object) -> tuple[str, Mapping[str, Any]] | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return None
    return (value["name"], arguments) if isinstance(arguments, Mapping) else None


def _json(arguments: Mapping[str, Any]) -> str:
    text = json.dumps(arguments, ensure_ascii=False)
    # half of a surrogate pair is no text: it goes out as it was escaped
    return text if text.isascii() or not re.search("[\ud800-\udfff]", text) else json.dumps(arguments)
