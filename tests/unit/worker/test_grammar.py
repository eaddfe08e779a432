"""Answers that are held to a shape: grammars against scores that know nothing of them."""

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from rbee.wire.errors import GrammarFailed, InvalidRequest
from rbee.wire.worker_spec import ToolFormat
from rbee.worker.engine import grammar
from rbee.worker.engine.grammar import GrammarCompiler, GrammarKind, GrammarSpec, json_schema
from rbee.worker.engine.sampling import BatchSampler, Choice, SamplingParams
from rbee.worker.engine.tokens import TokenTexts
from rbee.worker.engine.tool_parser import MoreArguments, ToolCall, ToolCallParser
from rbee.worker.engine.tools import Tool, enforced

END, MARK = "<|end|>", "[TOOL_CALLS]"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    special = [AddedToken(text, special=True, normalized=False) for text in (END, MARK, "[ARGS]", "<|python_tag|>")]
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    found.train_from_iterator(['{"name": "bee", "arguments": {"a": 12}} true false null <tool_call>'] * 9, trainer)
    return found


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, frozenset({0}))


def written(compiler: GrammarCompiler, tokenizer: Tokenizer, spec: GrammarSpec, seed: int, most: int = 600) -> str:
    """A text of random scores, held to the grammar to its end."""
    random = np.random.default_rng(seed)
    sampler = BatchSampler(frozenset({0}))
    sampler.add(0, SamplingParams(grammar=compiler.compile(spec), seed=seed), ())
    tokens: list[int] = []
    while len(tokens) < most:
        # one id more than the tokenizer has: models pad their vocabulary
        (choice,) = sampler.choose([0], random.normal(0, 3, (1, tokenizer.get_vocab_size() + 1)).astype(np.float32))
        assert isinstance(choice, Choice)
        if choice.token_id == 0:
            return str(tokenizer.decode(tokens, skip_special_tokens=False))
        tokens.append(choice.token_id)
    pytest.fail(f"no end within {most} tokens: {tokenizer.decode(tokens)!r}")


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["worker", "drone"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "maxItems": 3},
    },
    "required": ["kind", "age", "tags"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "maxLength": 4}},
}


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_any_scores_give_what_the_schema_describes(compiler: GrammarCompiler, tokenizer: Tokenizer, seed: int) -> None:
    found = json.loads(written(compiler, tokenizer, json_schema(SCHEMA), seed))
    assert set(found) == {"kind", "age", "tags"}
    assert found["kind"] in ("worker", "drone")
    assert 0 <= found["age"] <= 99
    assert all(len(tag) <= 4 for tag in found["tags"])
    assert len(found["tags"]) <= 3


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_any_scores_give_what_the_regular_expression_matches(
    compiler: GrammarCompiler, tokenizer: Tokenizer, seed: int
) -> None:
    pattern = r"[a-c]{2,5}-(yes|no|häßlich)\d/\\?\n"
    spec = GrammarSpec(GrammarKind.REGEX, pattern)
    assert re.fullmatch(pattern, written(compiler, tokenizer, spec, seed))


@pytest.mark.filterwarnings("error")
def test_scores_at_the_edge_of_what_can_be_said_keep_to_the_grammar(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    compiled = compiler.compile(GrammarSpec(GrammarKind.REGEX, "[ab]{3}"))
    scores = np.full((1, tokenizer.get_vocab_size()), np.finfo(np.float32).min, np.float32)
    scores[0, tokenizer.token_to_id("c")] = 1e30
    scores[0, tokenizer.token_to_id("b")] = 0.0
    for temperature in (0.0, 1e-9, 10.0):
        sampler = BatchSampler(frozenset({0}))
        sampler.add(0, SamplingParams(temperature=temperature, grammar=compiled, seed=1), ())
        for _ in range(3):
            assert sampler.choose([0], scores) == [Choice(tokenizer.token_to_id("b"))]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (json_schema({"type": "objekt"}), "JSON schema cannot be honoured.*objekt"),
        (json_schema({"$ref": "#/nowhere"}), "does not exist"),
        (json_schema({"unevaluatedProperties": False}), "unevaluatedProperties"),
        (GrammarSpec(GrammarKind.REGEX, "(a", "structured_outputs"), "regular expression cannot be honoured.*unclosed"),
        (GrammarSpec(GrammarKind.REGEX, "(?=a)b"), "look-around"),
        (GrammarSpec(GrammarKind.LARK, "start: nothing"), "grammar cannot be honoured"),
    ],
)
def test_a_wrong_grammar_is_refused_with_its_reason(compiler: GrammarCompiler, spec: GrammarSpec, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason) as refused:
        compiler.compile(spec)
    assert refused.value.param == spec.param
    assert str(refused.value).isprintable()


def test_a_schema_that_is_nested_deeper_than_json_can_be_written_is_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(100_000):
        schema = {"properties": schema}
    for ask in (
        lambda: json_schema(schema, "tools"),
        lambda: enforced(ToolFormat.HERMES, (Tool("deep", None, schema),), 1, lambda _: None),
    ):
        with pytest.raises(
            InvalidRequest, match="tools: the JSON schema cannot be honoured: it is nested too"
        ) as caught:
            ask()
        assert caught.value.param == "tools"


def test_the_reason_does_not_repeat_the_request(compiler: GrammarCompiler) -> None:
    with pytest.raises(InvalidRequest, match=r": unclosed group$") as refused:
        compiler.compile(GrammarSpec(GrammarKind.REGEX, "(secret\n\x1b"))
    assert "secret" not in str(refused.value)


def test_compiled_grammars_are_kept_within_a_bound(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar, "MOST_KEPT", 2)
    compiler = GrammarCompiler(tokenizer, frozenset({0}))
    specs = [GrammarSpec(GrammarKind.REGEX, text) for text in "abc"]
    first, second = compiler.compile(specs[0]), compiler.compile(specs[1])
    assert compiler.compile(specs[0]) is first
    compiler.compile(specs[2])
    assert compiler.compile(specs[0]) is first
    assert compiler.compile(specs[1]) is not second


def test_a_text_that_would_take_memory_without_end_is_ended(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    matcher = compiler.compile(GrammarSpec(GrammarKind.REGEX, ".*a.{300}b.{300}c")).matcher()
    random = np.random.default_rng(0)
    letters = [tokenizer.token_to_id(each) for each in "abcdefg"]
    with pytest.raises(GrammarFailed, match="too many states"):
        for _ in range(20_000):
            matcher.accept(int(random.choice(letters)))
            matcher.allowed(500)


def test_texts_of_one_grammar_do_not_disturb_each_other(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    compiled = compiler.compile(GrammarSpec(GrammarKind.REGEX, "ab"))
    a, b = (tokenizer.token_to_id(letter) for letter in "ab")
    one, other = compiled.matcher(), compiled.matcher()
    one.accept(a)
    assert np.flatnonzero(one.allowed(500)).tolist() == [b]
    assert np.flatnonzero(other.allowed(500)).tolist() == [a]


def test_a_token_that_the_grammar_does_not_allow_is_an_error_and_not_text(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    matcher = compiler.compile(GrammarSpec(GrammarKind.REGEX, "ab")).matcher()
    matcher.accept(tokenizer.token_to_id("b"))
    with pytest.raises(GrammarFailed, match="could not be held"):
        matcher.allowed(500)


def test_a_schema_of_many_properties_is_held_to(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    schema = {
        "type": "object",
        "properties": {f"p{n}": {"type": "null"} for n in range(800)},
        "additionalProperties": False,
    }
    matcher = compiler.compile(json_schema(schema)).matcher()
    for token in tokenizer.encode('{"p7').ids:
        assert matcher.allowed(500)[token]
        matcher.accept(token)
    assert matcher.allowed(500)[tokenizer.token_to_id("7")]
    assert not matcher.allowed(500)[tokenizer.token_to_id("x")]


def test_a_model_without_an_end_takes_no_grammar(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="end-of-sequence"):
        GrammarCompiler(tokenizer, frozenset()).compile(json_schema({}))


TOOLS = (
    Tool("weather", "tells it", {"type": "object", "properties": {"day": {"enum": ["mon", "tue"]}}, "required": ["day"],
                                 "additionalProperties": False}),
    Tool("stop", None, {}),
)  # fmt: skip


@pytest.mark.parametrize("form", list(ToolFormat))
@pytest.mark.parametrize("seed", range(6))
def test_enforced_calls_are_read_back(
    compiler: GrammarCompiler, tokenizer: Tokenizer, form: ToolFormat, seed: int
) -> None:
    def special(text: str) -> int | None:
        token = tokenizer.token_to_id(text)
        return token if token is not None and compiler.is_special(token) else None

    most = 1 + seed % 2
    text = written(compiler, tokenizer, enforced(form, TOOLS[:1], most, special), seed)
    parser = ToolCallParser(form, ("weather", "stop"))
    found = [*parser.add(text), *parser.flush()]
    calls, parts = found[::2], found[1::2]
    assert 1 <= len(calls) == len(parts) <= most, text
    for call, part in zip(calls, parts, strict=True):
        assert isinstance(call, ToolCall), text
        assert call.name == "weather"
        assert isinstance(part, MoreArguments), text
        assert json.loads(part.text)["day"] in ("mon", "tue")


def test_single_tokens_are_spelt_in_bytes(tokenizer: Tokenizer) -> None:
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode("bee häß").ids
    assert b"".join(texts.of(token).raw for token in ids).decode() == "bee häß"
    assert texts.of(0).text == END
    half = tokenizer.encode("ä").ids
    assert len(half) == 2
    assert texts.of(half[0]).text == "\ufffd"
    assert texts.of(99_999).raw == b""
    pieces = Tokenizer(models.BPE({"<0xE2>": 0, "\u2581bee": 1, "x": 2}, [], byte_fallback=True))
    pieces.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    assert [TokenTexts(pieces).of(token).raw for token in range(3)] == [b"\xe2", b" bee", b"x"]
    plain = Tokenizer(models.WordLevel({"bee": 0}, "bee"))
    assert TokenTexts(plain).of(0).text == "bee"
