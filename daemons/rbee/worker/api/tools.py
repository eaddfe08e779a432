"""OpenAI's ``tools`` and ``tool_choice``: what a request allows or demands of the model's tool calls."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from rbee.wire.errors import InvalidRequest
from rbee.wire.worker_spec import ToolFormat
from rbee.worker.engine.grammar import GrammarSpec
from rbee.worker.engine.text_model import TextModel
from rbee.worker.engine.tool_parser import ToolCallParser
from rbee.worker.engine.tools import MOST_CALLS, Tool, enforced

ToolName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}\Z")]


class FunctionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A function; ``parameters`` is a JSON schema. Enforced calls always keep to it, whatever ``strict`` says."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tool; functions are the only kind."""

    type: Literal["function"]
    function: FunctionBody


class ChosenFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The function that must be called."""

    name: ToolName


class NamedChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``tool_choice`` with a name."""

    type: Literal["function"]
    function: ChosenFunction


Tools = Annotated[list[ToolBody], Meta(max_length=128)]
ToolChoice = Literal["none", "auto", "required"] | NamedChoice


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The tools that the model may call. ``enforce``: the answer must be calls, of ``callable_tools`` alone."""

    form: ToolFormat
    tools: tuple[Tool, ...]
    callable_tools: tuple[Tool, ...]
    most_calls: int
    enforce: bool

    def parser(self) -> ToolCallParser:
        """What reads one answer."""
        return ToolCallParser(self.form, (tool.name for tool in self.tools), self.most_calls)

    def grammar(self, text: TextModel) -> GrammarSpec | None:
        """What holds the answer to calls, where it must be."""
        if not self.enforce:
            return None
        return enforced(self.form, self.callable_tools, self.most_calls, text.special_token)

    def described(self) -> list[dict[str, Any]]:
        """The tools as chat templates want them."""
        return [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description or "",
                    "parameters": dict(tool.parameters) or {"type": "object", "properties": {}},
                },
            }
            for tool in self.tools
        ]


def tool_use(tools: list[ToolBody], choice: ToolChoice | None, form: ToolFormat | None, *, parallel: bool) -> ToolUse:
    """What ``tools`` (at least one) and ``tool_choice`` (not "none") ask for.

    Raises InvalidRequest where the model's chat template takes no tools, or the chosen tool is none of them.
    """
    if form is None:
        raise InvalidRequest(
            "the model's chat template takes no tools in a format that is read here: leave 'tools' out, or name "
            "tool_format in the worker's definition",
            details={"field": "tools", "formats": [each.value for each in ToolFormat]},
            param="tools",
        )
    known = tuple(Tool(each.function.name, each.function.description, each.function.parameters or {}) for each in tools)
    if len({tool.name for tool in known}) != len(known):
        raise InvalidRequest("two tools have the same name: rename one", details={"field": "tools"}, param="tools")
    most = MOST_CALLS if parallel else 1
    if isinstance(choice, NamedChoice):
        chosen = tuple(tool for tool in known if tool.name == choice.function.name)
        if not chosen:
            raise InvalidRequest(
                "tool_choice names a tool that is not among the tools", details={"field": "tool_choice"},
                param="tool_choice",
            )  # fmt: skip
        return ToolUse(form, known, chosen, 1, enforce=True)
    return ToolUse(form, known, known, most, enforce=choice == "required")
