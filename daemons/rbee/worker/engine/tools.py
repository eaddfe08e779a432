"""Tool calls in a model's text: how a chat template has them written, and how they are enforced.

The formats are those that the chat templates of Hermes and Qwen, Llama 3 and Mistral models ask for.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rbee.wire.worker_spec import ToolFormat
from rbee.worker.engine.grammar import WHITESPACE, GrammarKind, GrammarSpec, schema_text

MOST_CALLS = 16


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call; ``parameters`` is a JSON schema."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Marks:
    """What opens and closes a call; without a closing mark it goes to the text's end.

    ``bare``: an answer whose first character is a brace is a call without its mark. ``arguments`` is the key of the
    arguments in the call's JSON object.
    """

    opening: str
    closing: str | None = None
    bare: bool = False
    arguments: str = "arguments"


MARKS = {
    ToolFormat.HERMES: Marks("<tool_call>", "</tool_call>"),
    ToolFormat.LLAMA3_JSON: Marks("<|python_tag|>", bare=True, arguments="parameters"),
    ToolFormat.MISTRAL: Marks("[TOOL_CALLS]"),
    ToolFormat.MISTRAL_ARGS: Marks("[TOOL_CALLS]"),
}
_NEWLINE = "\n"


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

    opening = mark(MARKS[form].opening)
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
        head = f'{{"name": {json.dumps(tool.name)}, "{MARKS[form].arguments}": '
        call = f'{json.dumps(head)} arguments_{index} "}}"'
    return [f"tool_{index}: {call}", f"arguments_{index}: %json {schema_text(schema, 'tools')}"]
