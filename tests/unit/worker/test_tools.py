"""Tool calls read from the text of the common formats, however it is cut into pieces."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.wire.errors import InvalidRequest
from rbee.wire.worker_spec import ToolFormat
from rbee.worker.api.messages import CalledFunction, EarlierCall, Message, TextPart, plain_messages
from rbee.worker.api.tools import ChosenFunction, FunctionBody, NamedChoice, ToolBody, ToolChoice, tool_use
from rbee.worker.engine.chat import ChatTemplate, Conversation
from rbee.worker.engine.tool_parser import MoreArguments, ToolCall, ToolCallParser, new_call_id
from rbee.worker.engine.tools import detect

HERMES, LLAMA, MISTRAL = ToolFormat.HERMES, ToolFormat.LLAMA3_JSON, ToolFormat.MISTRAL
WEATHER = '{"name": "weather", "arguments": {"day": "mön"}}'
CALL = ("weather", {"day": "mön"})
STOP = ("stop", {})
Found = list[str | tuple[str, Any]]


def read(form: ToolFormat, pieces: list[str], most_calls: int = 16) -> Found:
    """Calls and text as they come out, texts that stand together as one; arguments that are cut off as their text."""
    parser = ToolCallParser(form, ("weather", "stop"), most_calls)
    found: list[str | list[str]] = []
    for each in [*(out for piece in pieces for out in parser.add(piece)), *parser.flush()]:
        if isinstance(each, ToolCall):
            found.append([each.name, each.arguments])
        elif isinstance(each, MoreArguments):
            assert isinstance(found[-1], list)
            found[-1][1] += each.text
        elif found and isinstance(found[-1], str):
            found[-1] += each
        else:
            found.append(each)
    return [each if isinstance(each, str) else (each[0], _arguments(each[1])) for each in found]


def _arguments(text: str) -> Any:  # noqa: ANN401 - JSON, or the text that is none
    try:
        return json.loads(text)
    except ValueError:
        return text


CASES: list[tuple[ToolFormat, str, Found]] = [
    (HERMES, "just text < not a call", ["just text < not a call"]),
    (HERMES, f"<tool_call>\n{WEATHER}\n</tool_call>", [CALL]),
    (HERMES, f"I look.\n<tool_call>{WEATHER}</tool_call>\n<tool_call>\n{{\"name\": \"stop\"}}\n</tool_call>\n",
     ["I look.", CALL, STOP]),
    (HERMES, f"<tool_call>{WEATHER}</tool_call> and more", [CALL, " and more"]),
    (HERMES, f"<tool_call>\n{WEATHER}", [CALL]),
    (HERMES, "<tool_call>\n{broken}\n</tool_call>", ["<tool_call>\n{broken}\n</tool_call>"]),
    (HERMES, '<tool_call>{"name": "weather", "argum', ['<tool_call>{"name": "weather", "argum']),
    (HERMES, "ends with <tool_", ["ends with <tool_"]),
    (HERMES, "blanks \n\n", ["blanks \n\n"]),
    (HERMES, '<tool_call>{"name": "other", "arguments": "{\\"a\\": 1}"}</tool_call>', [("other", {"a": 1})]),
    (LLAMA, '{"name": "weather", "parameters": {"day": "mön"}}', [CALL]),
    (LLAMA, '\n{"name": "weather", "parameters": {"day": "mön"}}; {"name": "stop", "parameters": {}}', [CALL, STOP]),
    (LLAMA, '<|python_tag|>{"name": "stop", "parameters": {}}', [STOP]),
    (LLAMA, '{"name": "unknown", "parameters": {}}', ['{"name": "unknown", "parameters": {}}']),
    (LLAMA, '{"answer": 42}', ['{"answer": 42}']),
    (LLAMA, "a { b", ["a { b"]),
    (LLAMA, "<|python_tag|>print(1)", ["<|python_tag|>print(1)"]),
    (MISTRAL, f"[TOOL_CALLS] [{WEATHER}, {{\"name\": \"stop\", \"arguments\": {{}}}}]", [CALL, STOP]),
    (MISTRAL, f"[TOOL_CALLS][{WEATHER}", [CALL]),
    (MISTRAL, "[TOOL_CALLS] I use {braces}", ["[TOOL_CALLS] I use {braces}"]),
    (MISTRAL, "no [TOOL", ["no [TOOL"]),
    (ToolFormat.MISTRAL_ARGS, '[TOOL_CALLS]weather[ARGS]{"day": "mön"}[TOOL_CALLS]stop[ARGS]{}', [CALL, STOP]),
    (ToolFormat.MISTRAL_ARGS, '[TOOL_CALLS]weather[CALL_ID]abc12[ARGS]{"day": "mön"}', [CALL]),
    (ToolFormat.MISTRAL_ARGS, "[TOOL_CALLS]weather[ARGS]{", [("weather", "{")]),
    (HERMES, '<tool_call>{"name": "stop", "arguments": {"a": "}\\\\\\"</tool_call>{", "b": [{}]}}</tool_call>',
     [("stop", {"a": '}\\"</tool_call>{', "b": [{}]})]),
    (HERMES, '<tool_call>{"arguments": {"day": "mön"}, "name": "weather"}</tool_call>', [CALL]),
    (HERMES, '<tool_call>{"name": "stop", "arguments": {}} and so on</tool_call>', [STOP, "and so on"]),
]  # fmt: skip


@pytest.mark.parametrize(("form", "text", "expected"), CASES)
def test_calls_and_text_are_told_apart(form: ToolFormat, text: str, expected: Found) -> None:
    assert read(form, [text]) == expected
    assert read(form, list(text)) == expected


@given(st.sampled_from(CASES), st.data())
def test_it_does_not_matter_how_the_text_is_cut(case: tuple[ToolFormat, str, Found], data: st.DataObject) -> None:
    form, text, expected = case
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert read(form, pieces) == expected


@given(st.sampled_from(list(ToolFormat)), st.text('ab {[<_toolcals>/\n]}"', max_size=40))
def test_text_without_a_call_is_not_changed(form: ToolFormat, text: str) -> None:
    assert "".join(str(each) for each in read(form, list(text))) == text


def test_only_so_many_calls_are_taken() -> None:
    assert read(HERMES, [f"<tool_call>{WEATHER}</tool_call>" * 3], most_calls=1) == [CALL]


def test_text_goes_out_before_the_answer_has_ended() -> None:
    parser = ToolCallParser(HERMES, ("weather",))
    assert parser.add("I look <tool") == ["I look"]
    assert parser.add('_call>{"name": "weather", "arguments": ') == []
    call, more = parser.add('{"day"')
    assert isinstance(call, ToolCall)
    assert (call.name, call.arguments, more) == ("weather", "", MoreArguments('{"day"'))
    assert parser.add(": 1}") == [MoreArguments(": 1}")]
    assert parser.add("}</tool_call>") == parser.flush() == []


def test_half_a_surrogate_pair_stays_escaped() -> None:
    parser = ToolCallParser(HERMES, ("f",))
    (call,) = parser.add('<tool_call>{"arguments": {"a": "\\ud800"}, "name": "f"}</tool_call>')
    assert isinstance(call, ToolCall)
    assert call.arguments == '{"a": "\\ud800"}'


def test_ids_are_unlike_each_other_and_as_long_as_the_template_takes() -> None:
    assert len({new_call_id(HERMES) for _ in range(20)}) == 20
    assert new_call_id(MISTRAL).isalnum()
    assert len(new_call_id(MISTRAL)) == 9


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{% for message in messages %}{{ message.content }}{% endfor %}", None),
        ("{% if tools %}<tool_call>{% endif %}", HERMES),
        ("{% if tools %}<tool_call><function=name>{% endif %}", None),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", MISTRAL),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]name[ARGS]", ToolFormat.MISTRAL_ARGS),
        ('{% if tools %}{"name": function name, "parameters": dictionary}{% endif %}', LLAMA),
        ("{% if tools %}{{ tools }}{% endif %}", None),
    ],
)
def test_the_chat_template_tells_the_format(template: str, form: ToolFormat | None) -> None:
    assert detect(template) == form


def _tool(name: str) -> ToolBody:
    return ToolBody("function", FunctionBody(name, None, {"type": "object"}))


@pytest.mark.parametrize(
    ("choice", "enforce", "names", "most"),
    [
        (None, False, ["a", "b"], 16),
        ("auto", False, ["a", "b"], 16),
        ("required", True, ["a", "b"], 16),
        (NamedChoice("function", ChosenFunction("b")), True, ["b"], 1),
    ],
)
def test_the_choice_of_a_tool(choice: ToolChoice | None, enforce: bool, names: list[str], most: int) -> None:
    use = tool_use([_tool("a"), _tool("b")], choice, HERMES, parallel=True)
    assert (use.enforce, [tool.name for tool in use.callable_tools], use.most_calls) == (enforce, names, most)
    assert [each["function"]["name"] for each in use.described()] == ["a", "b"]
    assert tool_use([_tool("a")], "required", HERMES, parallel=False).most_calls == 1


def test_tools_that_cannot_be_used_are_refused() -> None:
    for tools, choice, form, reason in (
        ([_tool("a")], None, None, "takes no tools"),
        ([_tool("a"), _tool("a")], None, HERMES, "same name"),
        ([_tool("a")], NamedChoice("function", ChosenFunction("c")), HERMES, "not among"),
    ):
        with pytest.raises(InvalidRequest, match=reason):
            tool_use(tools, choice, form, parallel=True)


def test_a_conversation_with_calls_reaches_the_template() -> None:
    messages = [
        Message("user", [TextPart("text", "Is it "), TextPart("text", "warm?")]),
        Message("assistant", None, tool_calls=[EarlierCall("c1", CalledFunction("weather", '{"day": "mon"}'))]),
        Message("tool", "yes", tool_call_id="c1", name="weather"),
    ]
    source = (
        "{{ tools | length }}{{ mood }}|{% for m in messages %}{{ m.role }}:{{ m.content }}"
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
        "{{ m.tool_call_id }}|{% endfor %}{{ add_generation_prompt }}"
    )
    conversation = Conversation(
        plain_messages(messages), [{"type": "function"}], False, {"mood": "calm", "messages": 1}
    )
    text = ChatTemplate(source, {}).render(conversation)
    assert text == '1calm|user:Is it warm?|assistant:weather{"day": "mon"}|tool:yesc1|False'
    assert ChatTemplate("{{ tools is none }}", {}).render(Conversation([])) == "True"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Message("user", None), "has content"),
        (Message("tool", "x"), "tool_call_id"),
        (Message("user", "x", tool_calls=[EarlierCall("c", CalledFunction("f", "{}"))]), "only an assistant"),
        (
            Message("assistant", None, tool_calls=[EarlierCall("c", CalledFunction("f", "[1]"))]),
            "JSON text of an object",
        ),
        (Message("assistant", None, tool_calls=[EarlierCall("c", CalledFunction("f", "{"))]), "JSON text of an object"),
        (Message("user", [TextPart("image_url")]), "text only"),
    ],
)
def test_a_message_that_lacks_something_is_refused(message: Message, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        plain_messages([message])
