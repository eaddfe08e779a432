"""Parameters of text generation by OpenAI's client through queen and worker, and `rbee bench`."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest
from pytest_bdd import given, scenarios, then, when

from rbee.keeper.demo.corpus import TOPICS
from tests.behaviour.support.person import Done, Person
from tests.behaviour.support.stack import Stack

scenarios("features/generation.feature")

WORKER = "talk"
QUESTION, ANSWER = TOPICS[4].questions[0], TOPICS[4].answer
ASK: Any = {"model": "bee-talk", "messages": [{"role": "user", "content": QUESTION}]}
WILD: Any = ASK | {"temperature": 5, "max_tokens": 12, "seed": 40}
SCHEMA: Any = {
    "type": "object",
    "properties": {"kind": {"enum": ["worker", "drone"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["kind", "age"],
    "additionalProperties": False,
}
PATTERN = "[a-c]{3}-(yes|no)"


@pytest.fixture(scope="module")
def stack(models: Path) -> Iterator[Stack]:
    made = Stack(models)
    try:
        made.start()
        made.run_worker(WORKER, "bee-talk", name="bee-talk", slots=8, idle_limit_s=0)
        made.wait_state(WORKER, "idle")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def client(stack: Stack) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(
        base_url=f"{stack.queen_url}/v1", api_key=stack.tokens["api_token"], max_retries=0
    ) as made:  # fmt: skip
        yield made


@dataclass
class Story:
    """What a scenario has seen so far."""

    texts: list[str] = field(default_factory=list)
    tools: list[Any] = field(default_factory=list)
    message: Any = None
    chunks: list[Any] = field(default_factory=list)
    answer: Any = None
    refused: openai.BadRequestError | None = None
    done: Done | None = None


@pytest.fixture
def story() -> Story:
    return Story()


def text(client: openai.OpenAI, **asked: Any) -> str:  # noqa: ANN401 - parameters of any kind
    return str(client.chat.completions.create(**asked).choices[0].message.content)


def streamed(client: openai.OpenAI, **asked: Any) -> dict[int, str]:  # noqa: ANN401 - parameters of any kind
    texts: dict[int, str] = {}
    with client.chat.completions.create(**asked, stream=True) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return texts


# seeds and choices


@when("the client asks for three choices with a seed, while others ask as well")
def three_choices(client: openai.OpenAI, story: Story) -> None:
    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(text, client, **(WILD | {"seed": seed})) for seed in (1, 2)]
        whole = pool.submit(client.chat.completions.create, **WILD, n=3).result()
        assert all(other.result() for other in others)
    story.texts = [str(choice.message.content) for choice in whole.choices]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]


@then("each choice is the text that its own seed gives alone")
def alone(client: openai.OpenAI, story: Story) -> None:
    assert [text(client, **(WILD | {"seed": 40 + index})) for index in range(3)] == story.texts
    assert len(set(story.texts)) == 3


@then("a stream of the same request brings the same texts, each with its number")
def same_streamed(client: openai.OpenAI, story: Story) -> None:
    assert streamed(client, **WILD, n=3) == dict(enumerate(story.texts))


# log probabilities


@when("the client asks for log probabilities, whole and streamed")
def log_probabilities(client: openai.OpenAI, story: Story) -> None:
    asked: Any = ASK | {"temperature": 0, "logprobs": True, "top_logprobs": 2}
    story.answer = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.create(**asked, stream=True) as stream:
        story.chunks = [
            token
            for chunk in stream
            for choice in chunk.choices
            if choice.logprobs is not None
            for token in choice.logprobs.content or []
        ]


@then("their tokens make the text, and each is the best of those told beside it")
def tokens_make_text(story: Story) -> None:
    told = story.answer.logprobs.content
    assert "".join(each.token for each in told) == story.answer.message.content == ANSWER
    assert [each.token for each in story.chunks] == [each.token for each in told]
    for each in told:
        assert len(each.top_logprobs) == 2
        assert each.top_logprobs[1].logprob <= each.logprob == each.top_logprobs[0].logprob <= 0


# shapes


@when("the client asks at a high temperature for a JSON object of a schema, whole and streamed")
def objects(client: openai.OpenAI, story: Story) -> None:
    shape = {"type": "json_schema", "json_schema": {"name": "bee", "schema": SCHEMA, "strict": True}}
    for seed in (1, 2):
        asked = WILD | {"max_tokens": 300, "response_format": shape, "seed": seed}
        story.texts += [text(client, **asked), streamed(client, **asked)[0]]


@then("each answer is an object that the schema describes")
def objects_fit(story: Story) -> None:
    assert story.texts[0] == story.texts[1]
    for found in map(json.loads, story.texts):
        assert set(found) == {"kind", "age"}
        assert found["kind"] in ("worker", "drone")
        assert 0 <= found["age"] <= 99


@then("an answer to a regular expression matches it")
def pattern_fits(client: openai.OpenAI) -> None:
    assert re.fullmatch(PATTERN, text(client, **WILD, extra_body={"structured_outputs": {"regex": PATTERN}}))


# tools


@given("a tool that the client offers")
def a_tool(story: Story) -> None:
    story.tools = [{"type": "function", "function": {"name": "place", "description": "x", "parameters": SCHEMA}}]


@when("the client demands a call, whole and streamed")
def demand(client: openai.OpenAI, story: Story) -> None:
    asked = WILD | {"tools": story.tools, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 400}
    answer = client.chat.completions.create(**asked)
    assert answer.choices[0].finish_reason == "tool_calls"
    story.message = answer.choices[0].message
    with client.chat.completions.create(**asked, stream=True) as stream:
        story.chunks = [choice for chunk in stream for choice in chunk.choices]


@then("it gets the same call with arguments that fit the tool's schema")
def the_call(story: Story) -> None:
    (call,) = story.message.tool_calls
    assert call.function.name == "place"
    assert json.loads(call.function.arguments)["kind"] in ("worker", "drone")
    deltas = [delta for choice in story.chunks for delta in choice.delta.tool_calls or []]
    assert [delta.function.name for delta in deltas if delta.function.name] == ["place"]
    assert "".join(delta.function.arguments for delta in deltas) == call.function.arguments
    assert len(deltas) > 2
    assert story.chunks[-1].finish_reason == "tool_calls"


@then("the model goes on once the client sends the tool's result")
def goes_on(client: openai.OpenAI, story: Story) -> None:
    call = story.message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": QUESTION}
    messages = [*ASK["messages"], story.message, result]
    assert text(client, **(ASK | {"messages": messages, "tools": story.tools, "temperature": 0})) == ANSWER


# refusals


@then("the client gets its own error for a bad value of each parameter, with the parameter's name")
def refusals(client: openai.OpenAI) -> None:
    for asked, param in (
        ({"temperature": -1}, "temperature"),
        ({"top_p": 2}, "top_p"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"n": 99}, "n"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}},
         "response_format"),
        ({"extra_body": {"min_p": -1}}, "min_p"),
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, "structured_outputs"),
        ({"extra_body": {"beams": 2}}, "beams"),
        ({"tool_choice": "required"}, "tool_choice"),
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(**(ASK | asked))
        assert isinstance(refused.value.body, dict)
        assert param in refused.value.body["message"], asked
        assert param in str(refused.value.param)


# the model's own files


@when("the client sends a prompt that is longer than the model's context")
def too_long(client: openai.OpenAI, story: Story) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="bee-talk", prompt="bee " * 9000)
    story.refused = refused.value


@then("it is refused with both lengths")
def both_lengths(stack: Stack, story: Story) -> None:
    assert story.refused is not None
    found = re.search(r"the prompt has (\d+) tokens and the model's context is (\d+)", story.refused.message)
    assert found is not None
    config = json.loads((stack.models / "bee-talk/config.json").read_text())
    assert int(found[1]) >= 9000 > int(found[2]) == config["max_position_embeddings"]


@then("a text that is left alone ends at the model's end of sequence, and goes on past it with ignore_eos")
def ends(client: openai.OpenAI) -> None:
    asked = ASK | {"temperature": 0, "max_tokens": 200}
    alone = client.chat.completions.create(**asked)
    assert (alone.choices[0].message.content, alone.choices[0].finish_reason) == (ANSWER, "stop")
    past = client.chat.completions.create(**asked, extra_body={"ignore_eos": True})
    assert past.choices[0].finish_reason == "length"
    assert past.usage is not None
    assert past.usage.completion_tokens == 200


# measuring


@when("a person runs rbee bench with 1 and 4 clients")
def bench(stack: Stack, story: Story, tmp_path: Path) -> None:
    person = Person(tmp_path, "--queen-url", stack.queen_url, "--token-file", stack.token_file("api_token"))
    ask = ("bench", "bee-talk", "--clients", "1,4", "--requests", "8", "--max-tokens", "8", "--prompt-words", "10")
    story.done = person.rbee(*ask)


@then("the table has a row for each, with every request done")
def table(story: Story) -> None:
    assert story.done is not None
    assert story.done.code == 0, story.done.err
    _, *rows = [line.split("\t") for line in story.done.out.splitlines()]
    assert [(row[0], row[1], row[2]) for row in rows] == [("1", "8/8", "0"), ("4", "8/8", "0")]
    assert all(float(cell) > 0 for row in rows for cell in row[3:7])
    # tokens of a model as small as this one may come several at a time
    assert all(float(cell) >= 0 for row in rows for cell in row[7:])
