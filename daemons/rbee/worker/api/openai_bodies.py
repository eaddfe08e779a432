"""The bodies of OpenAI's chat completions and completions, and what of the engine they ask for.

https://platform.openai.com/docs/api-reference/chat and /completions; beyond them, by the names that vLLM uses: top_k,
min_p, repetition_penalty, min_tokens, ignore_eos, structured_outputs, chat_template_kwargs and add_generation_prompt.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from rbee.wire.errors import InvalidRequest
from rbee.worker.api.generation import Prompt, Wanted
from rbee.worker.api.messages import Message, plain_messages
from rbee.worker.api.parameters import (
    Choices,
    MaxTokens,
    SamplingBody,
    TopLogprobs,
    check_end,
    sampling_of,
    stops_of,
)
from rbee.worker.api.structured import grammar_of
from rbee.worker.api.tools import ToolChoice, Tools, ToolUse, tool_use
from rbee.worker.engine.chat import Conversation
from rbee.worker.engine.text_model import TextModel

COMPLETION_MAX_TOKENS = 16
"""OpenAI's own default of /v1/completions."""


class StreamOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``include_usage``: one more chunk with the token counts, before [DONE]."""

    include_usage: bool = False


class OpenAiBody(SamplingBody, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What both routes take."""

    n: Choices = 1
    stream_options: StreamOptions | None = None

    @property
    def with_usage(self) -> bool:
        """Whether the stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatBody(OpenAiBody, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/chat/completions; ``max_completion_tokens`` is the newer name of ``max_tokens``."""

    messages: list[Message]
    max_completion_tokens: MaxTokens | None = None
    logprobs: bool = False
    top_logprobs: TopLogprobs | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    add_generation_prompt: bool = True
    chat_template_kwargs: Annotated[dict[str, Any], Meta(max_length=64)] | None = None


class CompletionBody(OpenAiBody, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """POST /v1/completions; ``prompt`` is text, one text in a list, or token ids. ``echo`` begins with the prompt."""

    prompt: str | list[int | str]
    max_tokens: MaxTokens = COMPLETION_MAX_TOKENS
    logprobs: TopLogprobs | None = None
    echo: bool = False


def chat_wanted(body: ChatBody, text: TextModel) -> Wanted:
    """What a chat body asks for; raises InvalidRequest where its parts do not go together."""
    _check_stream(body)
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequest("top_logprobs goes with logprobs: true only", param="top_logprobs")
    tools = _tools(body, text)
    conversation = Conversation(
        plain_messages(body.messages),
        tools.described() if tools is not None else (),
        body.add_generation_prompt,
        body.chat_template_kwargs or {},
    )
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    return _wanted(body, text, Prompt(conversation=conversation), limit, logprobs, tools)


def completion_wanted(body: CompletionBody, text: TextModel) -> Wanted:
    """What a completion body asks for; raises InvalidRequest where its parts do not go together."""
    _check_stream(body)
    if body.echo and body.logprobs is not None:
        raise InvalidRequest("logprobs of the prompt are not computed: leave out echo or logprobs", param="echo")
    return _wanted(body, text, Prompt(_one_prompt(body.prompt)), body.max_tokens, body.logprobs, None)


def _wanted(
    body: OpenAiBody, text: TextModel, prompt: Prompt, limit: int | None, logprobs: int | None, tools: ToolUse | None
) -> Wanted:
    grammar = grammar_of(body.response_format, body.structured_outputs)
    enforce = tools is not None and tools.enforce
    if grammar is not None and enforce:
        raise InvalidRequest(
            f"tool_choice demands a call and {grammar.param} asks for another shape: send one", param="tool_choice"
        )
    if grammar is not None or enforce:
        check_end(body)
    sampling = sampling_of(body, text, limit, logprobs)
    return Wanted(prompt, limit, sampling, stops_of(body.stop), body.n, grammar, tools)


def _tools(body: ChatBody, text: TextModel) -> ToolUse | None:
    if not body.tools:
        if body.tool_choice not in (None, "none", "auto"):
            raise InvalidRequest("tool_choice demands a call and there are no tools", param="tool_choice")
        return None
    if body.tool_choice == "none":
        return None
    return tool_use(body.tools, body.tool_choice, text.tool_format, parallel=body.parallel_tool_calls)


def _check_stream(body: OpenAiBody) -> None:
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options goes with stream: true only", param="stream_options")


def _one_prompt(prompt: str | list[int | str]) -> str | list[int]:
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and isinstance(prompt[0], str):
        return prompt[0]
    ids = [each for each in prompt if isinstance(each, int)]
    if len(ids) != len(prompt):
        raise InvalidRequest("prompt holds several texts: send one text, or token ids, in each request", param="prompt")
    return ids
