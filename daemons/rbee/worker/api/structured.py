"""What an answer must look like: OpenAI's ``response_format``, and ``structured_outputs`` for what that lacks.

``structured_outputs`` has vLLM's name and shape: one of ``json`` (a schema), ``regex`` (the whole answer matches it) or
``choice`` (the answer is one of the texts).
"""

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from rbee.wire.errors import InvalidRequest
from rbee.worker.engine.grammar import GrammarKind, GrammarSpec, json_schema

Pattern = Annotated[str, Meta(min_length=1, max_length=65536)]
Alternative = Annotated[str, Meta(min_length=1, max_length=4096)]


class JsonSchemaFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named schema. Answers always keep to it, whatever ``strict`` says."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``text`` asks for nothing, ``json_object`` for any JSON object, ``json_schema`` for one that the schema fits."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Exactly one of the three."""

    json: dict[str, Any] | None = None
    regex: Pattern | None = None
    choice: Annotated[list[Alternative], Meta(min_length=1, max_length=256)] | None = None


def grammar_of(form: ResponseFormat | None, outputs: StructuredOutputs | None) -> GrammarSpec | None:
    """The grammar that the two fields ask for, or None; raises InvalidRequest where they do not make sense."""
    wanted = _format_grammar(form) if form is not None else None
    if outputs is None:
        return wanted
    if wanted is not None:
        raise InvalidRequest(
            "response_format and structured_outputs both ask for a shape: send one", param="structured_outputs"
        )
    return _outputs_grammar(outputs)


def _format_grammar(form: ResponseFormat) -> GrammarSpec | None:
    if form.type == "text":
        return None
    if form.type == "json_object":
        return json_schema({"type": "object"})
    if form.json_schema is None:
        raise InvalidRequest("response_format.json_schema is missing", param="response_format")
    # OpenAI's schema may be left out: any JSON then
    return json_schema(form.json_schema.schema or {})


def _outputs_grammar(outputs: StructuredOutputs) -> GrammarSpec:
    given = [each for each in (outputs.json, outputs.regex, outputs.choice) if each is not None]
    if len(given) != 1:
        raise InvalidRequest(
            "structured_outputs takes exactly one of json, regex and choice", param="structured_outputs"
        )
    if outputs.json is not None:
        return json_schema(outputs.json, "structured_outputs")
    pattern = outputs.regex or "|".join(re.escape(each) for each in outputs.choice or ())
    return GrammarSpec(GrammarKind.REGEX, pattern, "structured_outputs")
