"""Holds a text to a JSON schema, a regular expression or a grammar: which tokens may come next (llguidance).

llguidance was chosen because it is one wheel for every CPython without further dependencies, compiles in under a
millisecond, refuses the schema keywords that it does not honour, and bounds its own work; xgrammar needs PyTorch and
transformers, outlines-core turns a schema into a regular expression, so that none may refer to itself.
"""

import enum
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark
from numpy.typing import NDArray

from rbee.wire.errors import GrammarFailed, InvalidRequest
from rbee.worker.engine.sampling import Matcher

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MOST_KEPT = 32
"""Compiled grammars that are kept for the next request that has the same."""
MOST_REASON = 300
_MOST_STATES = 50_000
"""Of a lexer: some 13 MB. Schemas need a few thousand."""
_MOST_IN_ROW = 20_000
"""An object of some thousand properties that may all be left out needs so many alternatives at one place."""
WHITESPACE = r"[\x20\x0A\x0D\x09]{1,64}"
"""Bounded: a model that likes to go on with blanks would otherwise fill its answer with them."""


class GrammarKind(enum.Enum):
    """What a grammar's text is."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """A grammar as a request says it; ``param`` names the request's field in errors."""

    kind: GrammarKind
    text: str
    param: str = "response_format"


def json_schema(schema: Mapping[str, Any], param: str = "response_format") -> GrammarSpec:
    """The grammar of JSON texts that ``schema`` describes; raises InvalidRequest as :func:`schema_text` does."""
    return GrammarSpec(GrammarKind.JSON_SCHEMA, schema_text(schema, param), param)


def schema_text(schema: Mapping[str, Any], param: str) -> str:
    """The schema as JSON; raises InvalidRequest where it is nested deeper than JSON can be written."""
    try:
        return json.dumps(schema)
    except RecursionError:
        raise InvalidRequest(
            f"{param}: the JSON schema cannot be honoured: it is nested too deeply",
            details={"field": param},
            param=param,
        ) from None


class CompiledGrammar:
    """A compiled grammar; implements sampling.Grammar."""

    def __init__(self, start: LLMatcher) -> None:
        self._start = start

    def matcher(self) -> Matcher:
        """The state of a new text."""
        return _TextMatcher(self._start.deep_copy())


class _TextMatcher:
    """The place of one text in its grammar; implements sampling.Matcher."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    def allowed(self, size: int) -> NDArray[np.bool_]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        found = np.zeros(size, np.bool_)
        known = np.unpackbits(bits, bitorder="little", count=min(size, bits.size * 8))
        found[: len(known)] = known
        return found

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _reason(self._matcher.get_error())
            raise GrammarFailed(
                f"the answer could not be held to the request's grammar: {reason}; make the grammar simpler"
            )


class GrammarCompiler:
    """Compiles grammars for one tokenizer and keeps the latest. May be called from several threads."""

    def __init__(self, tokenizer: "Tokenizer", eos_ids: frozenset[int]) -> None:
        self._vocabulary = LLTokenizer(tokenizer.to_str(), eos_token=sorted(eos_ids) or None)
        self._limits = LLParserLimits(
            verbose_errors=False, max_items_in_row=_MOST_IN_ROW, max_lexer_states=_MOST_STATES
        )
        self._ends = bool(eos_ids)
        self._kept: OrderedDict[GrammarSpec, CompiledGrammar] = OrderedDict()
        self._lock = threading.Lock()

    def is_special(self, token: int) -> bool:
        """Whether the token stands for itself alone, and not for the text that it is spelt with."""
        return self._vocabulary.is_special_token(token)

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """The compiled grammar. Takes up to seconds; raises InvalidRequest with the reason for one that is wrong."""
        with self._lock:
            found = self._kept.get(spec)
            if found is not None:
                self._kept.move_to_end(spec)
                return found
        compiled = CompiledGrammar(self._compiled(spec))
        with self._lock:
            self._kept[spec] = compiled
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return compiled

    def _compiled(self, spec: GrammarSpec) -> LLMatcher:
        if not self._ends:
            raise InvalidRequest(
                "the model's files name no end-of-sequence token, so that no grammar can end its text", param=spec.param
            )
        try:
            matcher = LLMatcher(self._vocabulary, _source(spec), log_level=0, limits=self._limits)
        except ValueError as error:
            raise _refused(spec, str(error)) from None
        if not matcher.is_error():
            matcher.compute_bitmask()  # a grammar that is too large shows at its first step
        if matcher.is_error():
            raise _refused(spec, matcher.get_error())
        return matcher


def _source(spec: GrammarSpec) -> str:
    if spec.kind is GrammarKind.JSON_SCHEMA:
        return LLMatcher.grammar_from_json_schema(spec.text, defaults={"whitespace_pattern": WHITESPACE})
    if spec.kind is GrammarKind.REGEX:
        # a digit is 0-9: Unicode's others are what nobody means by \d
        return LLMatcher.grammar_from_lark(f"start: /{regex_to_lark(spec.text, use_ascii='d')}/")
    return LLMatcher.grammar_from_lark(spec.text)


def _refused(spec: GrammarSpec, reason: str) -> InvalidRequest:
    what = {
        GrammarKind.JSON_SCHEMA: "JSON schema",
        GrammarKind.REGEX: "regular expression",
        GrammarKind.LARK: "grammar",
    }[spec.kind]
    return InvalidRequest(
        f"{spec.param}: the {what} cannot be honoured: {_reason(reason)}",
        details={"field": spec.param},
        param=spec.param,
    )


def _reason(told: str) -> str:
    """The reason alone, on one line without control characters: what stands around it repeats the request."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reason = (errors or lines or ["no reason given"])[0]
    return "".join(each if each.isprintable() else " " for each in reason)[:MOST_REASON]
