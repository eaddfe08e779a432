"""Tool calls in a model's text: how a chat template has them written, how they are read back, how they are enforced.

The formats are those that the chat templates of Hermes and Qwen, Llama 3 and Mistral models ask for.
"""

import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rbee.wire.worker_spec import ToolFormat
from rbee.worker.engine.detokenise import overlap
from rbee.worker.engine.grammar import WHITESPACE, GrammarKind, GrammarSpec

MOST_CALLS = 16
MISTRAL_ID_CHARACTERS = 9
"""Mistral's templates refuse call ids of another length."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; ``parameters`` is a JSON schema."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for; ``arguments`` is JSON text."""

    call_id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class _Marks:
    """What opens and closes a call; without a closing mark it goes to the text's end.

    ``bare``: an answer whose first character is a brace is a call without its mark. ``arguments`` is the key of the
    arguments in the call's JSON object.
    """

    opening: str
    closing: str | None = None
    bare: bool = False
    arguments: str = "arguments"


_MARKS = {
    ToolFormat.HERMES: _Marks("<tool_call>", "</tool_call>"),
    ToolFormat.LLAMA3_JSON: _Marks("<|python_tag|>", bare=True, arguments="parameters"),
    ToolFormat.MISTRAL: _Marks("[TOOL_CALLS]"),
    ToolFormat.MISTRAL_ARGS: _Marks("[TOOL_CALLS]"),
}
_NAMED_ARGUMENTS = re.compile(r"\s*([A-Za-z0-9_.-]+)(?:\[CALL_ID\][A-Za-z0-9]*)?(?:\[ARGS\])?\s*(?=\{)")
_NEWLINE = "\n"
_SEPARATORS = " \t\r\n,;"


def detect(template: str) -> ToolFormat | None:
    """The format that a chat template asks for, by the marks it writes; None where it knows no tools that are read."""
    if "tools" not in template or "<function=" in template:
        return None
    if "<tool_call>" in template:
        return ToolFormat.HERMES
    if "[TOOL_CALLS]" in template:
        return ToolFormat.MISTRAL_ARGS if "[ARGS]" in template else ToolFormat.MISTRAL
    if "<|python_tag|>" in template or '"parameters"' in template:
        return ToolFormat.LLAMA3_JSON
    return None


class ToolCallParser:
    """Reads one answer as it comes: text goes out at once, a call when it is whole.

    What looks like a call and is none goes out as the text that it is. Blanks around calls are left out.
    """

    def __init__(self, form: ToolFormat, names: Iterable[str], most_calls: int = MOST_CALLS) -> None:
        self._form = form
        self._marks = _MARKS[form]
        self._names = frozenset(names)
        self._left = most_calls
        self._held = ""
        self._blanks = ""
        self._inside = False
        self._begun = False
        self._called = False

    def add(self, text: str) -> list[str | ToolCall]:
        """Take new text; what is certain goes out in order: text and calls."""
        self._held += text
        return list(self._read())

    def flush(self) -> list[str | ToolCall]:
        """The answer has ended."""
        out: list[str | ToolCall] = []
        held, self._held = self._held, ""
        if self._inside:
            self._inside = False
            out.extend(self._body(held, closing=""))
        else:
            out.extend(self._text(held))
        if self._blanks and not self._called:
            out.append(self._blanks)
        return out

    def _read(self) -> Iterator[str | ToolCall]:
        while self._held:
            if self._inside:
                closing = self._marks.closing
                if closing is None or closing not in self._held:
                    return
                body, _, self._held = self._held.partition(closing)
                self._inside = False
                yield from self._body(body, closing)
                continue
            if self._opens_bare():
                return
            before, mark, after = self._held.partition(self._marks.opening)
            if not mark:
                keep = overlap(before, self._marks.opening)
                self._held = before[len(before) - keep :]
                yield from self._text(before[: len(before) - keep])
                return
            self._held, self._inside = after, True
            yield from self._text(before)

    def _opens_bare(self) -> bool:
        """Whether the answer is, from its first character on, a call without a mark."""
        if not self._marks.bare or self._begun:
            return False
        self._inside = self._held.lstrip().startswith("{")
        return self._inside

    def _text(self, text: str) -> Iterator[str]:
        """Blanks wait: they belong to the text only when more of it follows."""
        text = self._blanks + text
        kept = text.rstrip()
        self._blanks = text[len(kept) :]
        if kept:
            self._begun = True
            yield kept

    def _body(self, body: str, closing: str) -> Iterator[str | ToolCall]:
        found = _calls(self._form, body)
        known = not self._marks.bare or all(name in self._names for name, _ in found)
        if not found or not known:
            opening = "" if self._marks.bare and body.lstrip().startswith("{") else self._marks.opening
            yield from self._text(f"{opening}{body}{closing}")
            return
        self._begun = self._called = True
        self._blanks = ""
        for name, arguments in found[: self._left]:
            yield ToolCall(new_call_id(self._form), name, json.dumps(arguments, ensure_ascii=False))
        self._left = max(self._left - len(found), 0)


def new_call_id(form: ToolFormat) -> str:
    """An id for a call, of the length that the format's templates take."""
    if form in (ToolFormat.MISTRAL, ToolFormat.MISTRAL_ARGS):
        return secrets.token_hex(MISTRAL_ID_CHARACTERS)[:MISTRAL_ID_CHARACTERS]
    return f"call_{secrets.token_hex(12)}"


def _calls(form: ToolFormat, body: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The calls in a body, each its name and arguments; none where it is not made of calls alone."""
    if form in (ToolFormat.MISTRAL, ToolFormat.MISTRAL_ARGS) and not body.lstrip().startswith(("[", "{")):
        parts = body.split(_MARKS[form].opening)
        found = [_named_call(part) for part in parts]
    else:
        found = [_call(value) for value in _values(body)]
    return [each for each in found if each is not None] if all(each is not None for each in found) else []


def _values(body: str) -> Iterator[object]:
    """The JSON values that stand one after another; one that is broken counts as null. Lists are opened."""
    decoder, at = json.JSONDecoder(), 0
    while (at := _skip(body, at)) < len(body):
        try:
            value, at = decoder.raw_decode(body, at)
        except (ValueError, RecursionError):
            yield None
            return
        yield from value if isinstance(value, list) else [value]


def _skip(body: str, at: int) -> int:
    while at < len(body) and body[at] in _SEPARATORS:
        at += 1
    return at


def _call(value: object) -> tuple[str, Mapping[str, Any]] | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return None
    return (value["name"], arguments) if isinstance(arguments, Mapping) else None


def _named_call(part: str) -> tuple[str, Mapping[str, Any]] | None:
    name = _NAMED_ARGUMENTS.match(part)
    if name is None:
        return None
    return _call({"name": name[1], "arguments": part[name.end() :].strip()})


def enforced(
    form: ToolFormat, tools: Sequence[Tool], most_calls: int, token_of: Callable[[str], int | None]
) -> GrammarSpec:
    """The grammar of an answer that is nothing but 1 to ``most_calls`` calls of ``tools``.

    ``token_of`` gives the id of a mark that is a special token, None for one that is plain text.
    """

    def mark(text: str) -> str:
        token = token_of(text)
        return json.dumps(text) if token is None else f"<[{token}]>"

    def calls(rule: str, separator: str) -> str:
        return f"{rule} ({json.dumps(separator)} {rule}){{0,{most_calls - 1}}}" if most_calls > 1 else rule

    opening = mark(_MARKS[form].opening)
    if form is ToolFormat.HERMES:
        rules = [f"start: {calls('call', _NEWLINE)}", f'call: {opening} "\\n" tool "\\n" {mark("</tool_call>")}']
    elif form is ToolFormat.LLAMA3_JSON:
        rules = [f"start: {calls('tool', '; ')}"]
    elif form is ToolFormat.MISTRAL:
        rules = [f'start: {opening} "[" {calls("tool", ", ")} "]"']
    else:
        rules = [f"start: ({opening} tool){{1,{most_calls}}}"]
    rules.append("tool: " + " | ".join(f"tool_{index}" for index in range(len(tools))))
    for index, tool in enumerate(tools):
        rules += _tool_rules(form, index, tool, mark)
    return GrammarSpec(GrammarKind.LARK, "\n".join(rules), "tools")


def _tool_rules(form: ToolFormat, index: int, tool: Tool, mark: Callable[[str], str]) -> list[str]:
    schema = {"type": "object", **tool.parameters, "x-guidance": {"whitespace_pattern": WHITESPACE}}
    if form is ToolFormat.MISTRAL_ARGS:
        call = f"{json.dumps(tool.name)} {mark('[ARGS]')} arguments_{index}"
    else:
        head = f'{{"name": {json.dumps(tool.name)}, "{_MARKS[form].arguments}": '
        call = f'{json.dumps(head)} arguments_{index} "}}"'
    return [f"tool_{index}: {call}", f"arguments_{index}: %json {json.dumps(schema)}"]
