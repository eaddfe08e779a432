"""Renders messages with the model's own chat template (Jinja, sandboxed), as Hugging Face models ship it."""

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from rbee.wire.errors import ConfigError, InvalidRequest
from rbee.worker.engine.recognise import FolderFacts
from rbee.worker.engine.template_limits import MOST_RENDERED, LimitedEnvironment

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
MOST_REASON = 300


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a template is given: messages ({role, content, ...}), tools in OpenAI's shape, and variables of its own.

    ``add_generation_prompt`` opens the assistant's turn at the end. ``extra`` never replaces a variable that the
    protocol gives.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    add_generation_prompt: bool = True
    extra: Mapping[str, Any] = field(default_factory=dict)


class _GenerationBlock(Extension):
    """``{% generation %}`` marks for training what an assistant wrote; a prompt has what stands in it."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside, as if the marks were not there."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template. ``source`` comes from the model's files and runs without access to Python's inside."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = LimitedEnvironment(
            trim_blocks=True,
            lstrip_blocks=True,
            autoescape=False,
            extensions=["jinja2.ext.loopcontrols", _GenerationBlock],
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        self.source = source
        self._environment = environment
        self._special = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except (TemplateError, RecursionError) as error:
            raise ConfigError(f"the model's chat template does not compile: {error}; fetch the model again") from None

    def render(self, conversation: Conversation) -> str:
        """The prompt for a conversation; raises InvalidRequest with the template's own reason."""
        self._environment.begin()
        values = {
            **conversation.extra,
            **self._special,
            "messages": list(conversation.messages),
            "tools": list(conversation.tools) or None,
            "add_generation_prompt": conversation.add_generation_prompt,
        }
        try:
            text = self._template.render(values)
        except Exception as error:  # noqa: BLE001 - a template raises whatever its expressions do
            raise InvalidRequest(
                f"the model's chat template refuses these messages: {str(error)[:MOST_REASON]}", param="messages"
            ) from None
        if len(text) > MOST_RENDERED:
            raise InvalidRequest("the messages make a prompt that is too long", param="messages")
        return text


def special_tokens(facts: FolderFacts) -> dict[str, str]:
    """The texts of the special tokens that templates use, from tokenizer_config.json and special_tokens_map.json."""
    found: dict[str, str] = {}
    for name in SPECIAL_TOKENS:
        for source in (facts.config("tokenizer_config.json"), facts.config("special_tokens_map.json")):
            value = source.get(name)
            value = value.get("content") if isinstance(value, Mapping) else value
            if isinstance(value, str):
                found.setdefault(name, value)
    return found


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON with the parameters that templates give the filter in transformers; nothing is escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now(datetime.UTC).strftime(form)
