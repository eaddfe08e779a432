"""OpenAI's parameters by OpenAI's own client, against a real worker process with the talking model."""

import json
import math
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest
from tests.unit.worker.process import TOKEN, serving

QUESTION: Any = [{"role": "user", "content": "What is a hive?"}]
ANSWER = "The hive reports the facts of its machine"
WILD: Any = {"model": "bee-talk", "messages": QUESTION, "temperature": 5, "max_tokens": 12, "seed": 3}
GREEDY: Any = {"model": "bee-talk", "messages": QUESTION, "temperature": 0, "max_tokens": 8}
SCHEMA: Any = {
    "type": "object",
    "properties": {"kind": {"enum": ["worker", "drone"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["kind", "age"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "place", "description": "Place a worker", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "stop", "parameters": {"type": "object", "properties": {},
                                                                     "additionalProperties": False}}},
]  # fmt: skip


@pytest.fixture
async def client(tmp_path: Path, models: Path) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        serving(tmp_path, model=str(models / "bee-talk")) as worker,
        openai.AsyncOpenAI(base_url=f"{worker.url}/v1", api_key=TOKEN, max_retries=0) as found,
    ):
        yield found


async def text_of(client: openai.AsyncOpenAI, **given: Any) -> str:  # noqa: ANN401 - parameters of any kind
    answer = await client.chat.completions.create(**given)
    return str(answer.choices[0].message.content)


async def test_a_seed_repeats_and_choices_differ(client: openai.AsyncOpenAI) -> None:
    three = await client.chat.completions.create(**WILD, n=3)
    texts = [choice.message.content for choice in three.choices]
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    # each choice has the seed that follows, so it can be had alone
    assert [await text_of(client, **(WILD | {"seed": 3 + index})) for index in range(3)] == texts
    assert three.usage is not None
    assert 3 < three.usage.completion_tokens <= 36
    stream = await client.chat.completions.create(
        **WILD, n=3, stream=True, stream_options={"include_usage": True}
    )  # fmt: skip
    streamed, ended = ["", "", ""], []
    async for chunk in stream:
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
            ended += [choice.index] * (choice.finish_reason is not None)
        usage = chunk.usage
    assert streamed == texts
    assert sorted(ended) == [0, 1, 2]
    assert usage == three.usage


async def test_log_probabilities_of_a_chat(client: openai.AsyncOpenAI) -> None:
    answer = await client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    assert choice.logprobs is not None
    told = choice.logprobs.content
    assert told is not None
    assert "".join(each.token for each in told) == choice.message.content
    assert b"".join(bytes(each.bytes or []) for each in told).decode() == choice.message.content
    for each in told:
        assert [other.logprob for other in each.top_logprobs] == sorted(
            (other.logprob for other in each.top_logprobs), reverse=True
        )
        assert len(each.top_logprobs) == 3
        assert (each.token, each.logprob) == (each.top_logprobs[0].token, each.top_logprobs[0].logprob)
        assert sum(math.exp(other.logprob) for other in each.top_logprobs) <= 1 + 1e-5
    stream = await client.chat.completions.create(**GREEDY, logprobs=True, stream=True)
    streamed = [
        each.token
        async for chunk in stream
        for choice in chunk.choices
        if choice.logprobs is not None
        for each in choice.logprobs.content or []
    ]
    assert streamed == [each.token for each in told]
    plain = await client.chat.completions.create(**GREEDY)
    assert plain.choices[0].logprobs is None


async def test_completions_with_log_probabilities_echo_and_stop(client: openai.AsyncOpenAI) -> None:
    given: Any = {"model": "bee-talk", "prompt": "What is a hive?", "temperature": 0, "max_tokens": 6}
    answer = await client.completions.create(**given, logprobs=2)
    told = answer.choices[0].logprobs
    assert told is not None
    assert told.tokens is not None
    assert told.text_offset is not None
    assert "".join(told.tokens) == answer.choices[0].text
    assert [
        answer.choices[0].text[at:].startswith(token) for at, token in zip(told.text_offset, told.tokens, strict=True)
    ]
    assert told.token_logprobs is not None
    assert told.top_logprobs is not None
    for token, value, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        assert top[token] == value == max(top.values())
        assert len(top) == 2
    echoed = await client.completions.create(**given, echo=True)
    assert echoed.choices[0].text == "What is a hive?" + answer.choices[0].text
    assert (await client.completions.create(**given, stop=["reports"])).choices[0].text == "The hive "
    chunks = [chunk async for chunk in await client.completions.create(**given, echo=True, n=2, stream=True)]
    texts = ["".join(c.text for chunk in chunks for c in chunk.choices if c.index == index) for index in (0, 1)]
    assert texts == [echoed.choices[0].text] * 2


async def test_penalties_bias_and_lengths_change_the_text(client: openai.AsyncOpenAI) -> None:
    plain = await text_of(client, **GREEDY)
    assert ANSWER.startswith(plain) or plain.startswith(ANSWER)
    told = (await client.chat.completions.create(**GREEDY, logprobs=True)).choices[0].logprobs
    assert told is not None
    words = await client.completions.create(model="bee-talk", prompt="The hive", max_tokens=1)
    assert words.usage is not None
    for extra in ({"repetition_penalty": 8.0}, {"top_k": 1, "min_p": 0.9}):
        text = await text_of(client, **(GREEDY | {"extra_body": extra}))
        assert (text == plain) == ("top_k" in extra)
    long: Any = GREEDY | {"max_tokens": 60}
    usual = await client.chat.completions.create(**long)
    assert usual.choices[0].finish_reason == "stop"
    for extra in ({"ignore_eos": True}, {"min_tokens": 60}):
        forced = await client.chat.completions.create(**long, extra_body=extra)
        assert forced.choices[0].finish_reason == "length"
        assert forced.usage is not None
        assert forced.usage.completion_tokens == 60
    everything = {str(token): 0.0 for token in range(3)}
    assert await text_of(client, **GREEDY, logit_bias=everything) == plain
    assert await text_of(client, **GREEDY, presence_penalty=2, frequency_penalty=2) != ""


@pytest.mark.parametrize("stream", [False, True])
async def test_answers_keep_to_a_shape(client: openai.AsyncOpenAI, stream: bool) -> None:
    given: Any = WILD | {"max_tokens": 200}

    async def text(**more: Any) -> str:  # noqa: ANN401 - parameters of any kind
        if not stream:
            return await text_of(client, **(given | more))
        chunks = await client.chat.completions.create(**(given | more), stream=True)
        return "".join([c.delta.content or "" async for chunk in chunks for c in chunk.choices])

    shape = {"type": "json_schema", "json_schema": {"name": "bee", "schema": SCHEMA, "strict": True}}
    for seed in range(3):
        bee = json.loads(await text(response_format=shape, seed=seed))
        assert bee["kind"] in ("worker", "drone")
        assert 0 <= bee["age"] <= 99
    pattern = "[a-c]{3}-(yes|no)"
    assert re.fullmatch(pattern, await text(extra_body={"structured_outputs": {"regex": pattern}}))
    choice = await text(extra_body={"structured_outputs": {"choice": ["a hive (1)", "a queen"]}})
    assert choice in ("a hive (1)", "a queen")
    assert json.loads(await text(extra_body={"structured_outputs": {"json": SCHEMA}}))["age"] >= 0
    assert (await text(response_format={"type": "json_object"})).lstrip().startswith("{")
    assert await text(response_format={"type": "text"}) == await text()


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "place"}}])
async def test_enforced_tool_calls(client: openai.AsyncOpenAI, choice: Any) -> None:  # noqa: ANN401 - OpenAI's union
    given: Any = WILD | {"max_tokens": 400, "tools": TOOLS, "tool_choice": choice, "parallel_tool_calls": False}
    answer = await client.chat.completions.create(**given)
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content is None
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.type == "function"
    assert call.function.name in ("place", "stop")
    assert choice == "required" or call.function.name == "place"
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "stop" or 0 <= arguments["age"] <= 99
    chunks = [chunk async for chunk in await client.chat.completions.create(**given, stream=True)]
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    assert {delta.index for delta in deltas} == {0}
    functions = [delta.function for delta in deltas if delta.function is not None]
    assert [function.name for function in functions if function.name] == [call.function.name]
    assert "".join(function.arguments or "" for function in functions) == call.function.arguments
    assert call.function.name == "stop" or len(deltas) > 2
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    # the call and its result go back as they came
    history = [*QUESTION, message, {"role": "tool", "tool_call_id": call.id, "content": "What is a hive?"}]
    again = await text_of(client, **(GREEDY | {"messages": history, "tools": TOOLS, "max_tokens": 40}))
    assert again.startswith(ANSWER)


PLACE = '{"name": "place", "arguments": {"kind": "drone", "age": 7}}'
SPOKEN: Any = {"structured_outputs": {"regex": f"I do[.]<tool_call>{re.escape(PLACE)}</tool_call>"}}
"""What a model would write of its own accord that calls a tool: the regular expression makes this one write it."""


async def test_calls_in_the_text_are_read_and_text_beside_them_kept(client: openai.AsyncOpenAI) -> None:
    given: Any = WILD | {"max_tokens": 200, "tools": TOOLS, "extra_body": SPOKEN}
    message = (await client.chat.completions.create(**given)).choices[0].message
    assert message.content == "I do."
    assert message.tool_calls is not None
    assert [call.id.startswith("call_") for call in message.tool_calls] == [True]
    async with client.chat.completions.stream(**given) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_completion()
    choice = final.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("I do.", "tool_calls")
    assert choice.message.tool_calls is not None
    assert choice.message.tool_calls[0].function.name == "place"
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"kind": "drone", "age": 7}
    # without tools the same text is text
    assert PLACE in await text_of(client, **(WILD | {"max_tokens": 200, "extra_body": SPOKEN}))


async def test_the_definition_may_name_the_format(tmp_path: Path, models: Path) -> None:
    async with (
        serving(tmp_path, model=str(models / "bee-talk"), tool_format="llama3_json") as worker,
        openai.AsyncOpenAI(base_url=f"{worker.url}/v1", api_key=TOKEN, max_retries=0) as client,
    ):
        given: Any = WILD | {"max_tokens": 200, "tools": TOOLS}
        text = '{"name": "stop", "parameters": {}}'
        found = await client.chat.completions.create(
            **given, extra_body={"structured_outputs": {"choice": [text]}}
        )  # fmt: skip
        calls = found.choices[0].message.tool_calls or []
        assert [(call.function.name, call.function.arguments) for call in calls if call.type == "function"] == [
            ("stop", "{}")
        ]


class Bee(pydantic.BaseModel):
    """What OpenAI's client makes a schema of and reads the answer into."""

    kind: Literal["worker", "drone"]
    age: int | None
    homes: list["Home"]


class Home(pydantic.BaseModel):
    """A part of it, by reference."""

    tree: bool


async def test_the_clients_own_parser_reads_answers(client: openai.AsyncOpenAI) -> None:
    for seed in range(40):  # an integer has no greatest length: some texts end by theirs
        given: Any = WILD | {"max_tokens": 300, "seed": seed}
        try:
            found = await client.chat.completions.parse(**given, response_format=Bee)
        except openai.LengthFinishReasonError:
            continue
        bee = found.choices[0].message.parsed
        assert bee is not None
        assert bee.kind in ("worker", "drone")
        return
    pytest.fail("no answer was whole")


async def test_tools_that_need_not_be_called_leave_text_as_it_is(client: openai.AsyncOpenAI) -> None:
    plain = await text_of(client, **GREEDY)
    for choice in ("auto", "none"):
        assert await text_of(client, **GREEDY, tools=TOOLS, tool_choice=choice) == plain


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"frequency_penalty": -3}, "frequency_penalty"),
    ({"n": 0}, "n"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logit_bias": {"999999": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "x"}}}},
     "response_format"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "fly"}}}, "tool_choice"),
    ({"tools": TOOLS, "tool_choice": "required", "response_format": {"type": "json_object"}}, "tool_choice"),
    ({"extra_body": {"min_p": 2}}, "min_p"),
    ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty"),
    ({"extra_body": {"repetition_penalty": 1e-39}}, "repetition_penalty"),
    ({"extra_body": {"min_tokens": 9}, "max_tokens": 8}, "min_tokens"),
    ({"extra_body": {"min_tokens": 9}, "max_completion_tokens": 8}, "min_tokens"),
    ({"extra_body": {"ignore_eos": True}, "response_format": {"type": "json_object"}}, "ignore_eos"),
    ({"extra_body": {"structured_outputs": {"regex": "(a"}}}, "structured_outputs"),
    ({"extra_body": {"structured_outputs": {}}}, "structured_outputs"),
    ({"extra_body": {"structured_outputs": {"regex": "a"}}, "response_format": {"type": "json_object"}},
     "structured_outputs"),
    ({"extra_body": {"guided_regex": "a"}}, "guided_regex"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
]  # fmt: skip


async def test_texts_are_counted_by_their_end_and_their_grammar(tmp_path: Path, models: Path) -> None:
    async with serving(tmp_path, model=str(models / "bee-talk")) as worker, worker.session() as session:
        ask = {"prompt": "What is a hive?", "temperature": 0, "max_tokens": 2, "n": 2}
        for more in ({}, {"structured_outputs": {"choice": ["a"]}}):
            assert (await session.post("/v1/completions", json=ask | more)).status == 200
        metrics = await (await session.get("/metrics")).text()
    assert 'rbee_worker_texts_total{finish="length"} 2.0' in metrics
    assert 'rbee_worker_texts_total{finish="stop"} 2.0' in metrics
    assert 'rbee_worker_grammars_total{kind="regex"} 2.0' in metrics


async def test_what_cannot_be_honoured_is_refused_by_name(client: openai.AsyncOpenAI) -> None:
    for given, param in REFUSED:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**(GREEDY | given))
        assert refused.value.param is not None, given
        assert refused.value.param.removeprefix("$.").split(".")[0].split("[")[0] == param
        assert isinstance(refused.value.body, dict)
        assert param in refused.value.body["message"]


async def test_completions_refuse_by_name_as_well(client: openai.AsyncOpenAI) -> None:
    for given, param in (
        ({"suffix": "x"}, "suffix"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"tools": TOOLS}, "tools"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model="bee-talk", prompt="a", extra_body=given)
        assert refused.value.param == param


async def test_too_long_a_prompt_says_both_lengths(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match=r"the prompt has \d+ tokens and the model's context is \d+"):
        await client.completions.create(model="bee-talk", prompt="bee " * 9000)
