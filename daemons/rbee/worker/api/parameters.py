"""Reads a body strictly: a parameter that is not honoured is refused by its name, never ignored."""

from collections.abc import Mapping
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta

from rbee.wire.errors import InvalidRequest, UnsupportedParameter
from rbee.wire.http.operations import SCHEMA
from rbee.wire.http.server import decode_body, read_json
from rbee.worker.api.structured import ResponseFormat, StructuredOutputs
from rbee.worker.engine.penalties import LEAST_REPETITION, MOST_REPETITION
from rbee.worker.engine.sampling import SamplingParams
from rbee.worker.engine.text_model import TextModel

Temperature = Annotated[float, Meta(ge=0, le=10)]
TopP = Annotated[float, Meta(gt=0, le=1)]
TopK = Annotated[int, Meta(ge=0, le=1_000_000)]
MinP = Annotated[float, Meta(ge=0, le=1)]
RepetitionPenalty = Annotated[float, Meta(ge=LEAST_REPETITION, le=MOST_REPETITION)]
UsePenalty = Annotated[float, Meta(ge=-2, le=2)]
Seed = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
LogitBias = Annotated[dict[Annotated[int, Meta(ge=0)], Bias], Meta(max_length=1024)]
MaxTokens = Annotated[int, Meta(ge=1, le=1_000_000)]
MinTokens = Annotated[int, Meta(ge=0, le=1_000_000)]
Choices = Annotated[int, Meta(ge=1, le=16)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
Stop = Annotated[str, Meta(min_length=1, max_length=256)]
Stops = Annotated[list[Stop], Meta(max_length=16)] | Stop

T = TypeVar("T", bound=msgspec.Struct)
_NULL_COUNTS_AS_ABSENT = {"additionalProperties": {"type": "null"}}
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "tools": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "service_tier": ("auto", "default"),
}
"""Values of OpenAI's parameters that ask for nothing: a client may spell them out."""
LABELS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
"""OpenAI's parameters that tell a provider about the caller: no answer depends on them, and none is kept here."""


class SamplingBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every route that generates takes: how tokens are chosen, when a text ends, what it must look like.

    Each may be absent: the model's own files (generation_config.json) then say how tokens are chosen.
    """

    model: str | None = None
    max_tokens: MaxTokens | None = None
    min_tokens: MinTokens = 0
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    presence_penalty: UsePenalty = 0.0
    frequency_penalty: UsePenalty = 0.0
    logit_bias: LogitBias | None = None
    seed: Seed | None = None
    stop: Stops | None = None
    ignore_eos: bool = False
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    stream: bool = False


async def read_parameters(request: web.Request, kind: type[T]) -> T:
    """Decode the body into ``kind``; null counts as not given.

    Raises UnsupportedParameter for a field that ``kind`` lacks and whose value asks for something, InvalidRequest for
    a value that is not acceptable.
    """
    body = await read_json(request, dict[str, Any])
    known = frozenset(kind.__struct_encode_fields__)  # msgspec.structs.fields evaluates every annotation, each time
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name not in known and not _is_neutral(name, value):
            raise UnsupportedParameter(
                f"the parameter '{name[:64]}' is not honoured here: leave it out",
                details={"parameter": name[:64], "supported": sorted(known)},
                param=name[:64],
            )
    kept = {name: value for name, value in given.items() if name in known}
    return decode_body(msgspec.json.encode(kept), kind)


def accepted(kind: type[T]) -> type[msgspec.Struct]:
    """``kind`` as :func:`read_parameters` takes it, for the OpenAPI document: null too, and what asks for nothing."""
    fields: list[tuple[str, Any, Any]] = []
    for field in msgspec.structs.fields(kind):
        optional = field.type if field.required else field.type | None
        fields.append((field.name, optional, field.default))
    known = frozenset(kind.__struct_encode_fields__)
    fields += [(name, _one_of((*values, None)), None) for name, values in NEUTRAL.items() if name not in known]
    fields += [(name, Any, None) for name in sorted(LABELS - known)]
    return msgspec.defstruct(
        kind.__name__, fields, namespace={"__doc__": kind.__doc__, SCHEMA: _NULL_COUNTS_AS_ABSENT}, kw_only=True
    )


def _one_of(values: tuple[object, ...]) -> Any:  # noqa: ANN401 - a type, as annotations write it
    return Annotated[Any, Meta(extra_json_schema={"enum": list(values)})]


def _is_neutral(name: str, value: object) -> bool:
    return name in LABELS or any(value == neutral and type(value) is type(neutral) for neutral in NEUTRAL.get(name, ()))


def sampling_of(body: SamplingBody, text: TextModel, limit: int | None, logprobs: int | None = None) -> SamplingParams:
    """What the request says; the model's own defaults for what it leaves open. ``limit`` is its most tokens.

    Raises InvalidRequest where parameters do not go together, or name a token that the model does not have.
    """
    default = text.sampling
    bias = tuple(sorted((body.logit_bias or {}).items()))
    if bias and bias[-1][0] >= text.vocabulary:
        _refuse("logit_bias", f"it names the token {bias[-1][0]}, and the model's last one is {text.vocabulary - 1}")
    if limit is not None and body.min_tokens > limit:
        _refuse("min_tokens", f"it is {body.min_tokens}, and the most tokens are {limit}")
    return SamplingParams(
        temperature=default.temperature if body.temperature is None else body.temperature,
        top_p=default.top_p if body.top_p is None else body.top_p,
        top_k=default.top_k if body.top_k is None else body.top_k,
        min_p=default.min_p if body.min_p is None else body.min_p,
        repetition_penalty=default.repetition_penalty if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        seed=body.seed,
        logit_bias=bias,
        logprobs=logprobs,
        ignore_eos=body.ignore_eos,
        min_tokens=body.min_tokens,
    )


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    """Stop strings as a tuple."""
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)


def check_end(body: SamplingBody) -> None:
    """A grammar says itself where a text ends; raises InvalidRequest where the request says otherwise."""
    for name, asked in (("ignore_eos", body.ignore_eos), ("min_tokens", body.min_tokens > 0)):
        if asked:
            _refuse(name, "the request's grammar says where the text ends: leave it out")


def _refuse(name: str, why: str) -> NoReturn:
    raise InvalidRequest(f"the field '{name}' is not acceptable: {why}", details={"field": name}, param=name)
