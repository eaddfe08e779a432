"""Reads a body strictly: a parameter that is not honoured is refused by its name, never ignored."""

from collections.abc import Mapping
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta

from rbee.wire.errors import UnsupportedParameter
from rbee.wire.http.server import decode_body, read_json
from rbee.worker.engine.sampling import SamplingParams

Temperature = Annotated[float, Meta(ge=0, le=10)]
TopP = Annotated[float, Meta(gt=0, le=1)]
TopK = Annotated[int, Meta(ge=0, le=1_000_000)]
Seed = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
MaxTokens = Annotated[int, Meta(ge=1, le=1_000_000)]
Stop = Annotated[str, Meta(min_length=1, max_length=256)]
Stops = Annotated[list[Stop], Meta(max_length=16)] | Stop

T = TypeVar("T", bound=msgspec.Struct)
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0, 0.0),
    "frequency_penalty": (0, 0.0),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "logit_bias": ({},),
    "tools": ([],),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "service_tier": ("auto", "default"),
}
"""Values of OpenAI's parameters that ask for nothing: a client may spell them out."""
LABELS = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key"})
"""OpenAI's parameters that tell a provider about the caller: no answer depends on them, and none is kept here."""


async def read_parameters(request: web.Request, kind: type[T]) -> T:
    """Decode the body into ``kind``; null counts as not given.

    Raises UnsupportedParameter for a field that ``kind`` lacks and whose value asks for something, InvalidRequest for
    a value that is not acceptable.
    """
    body = await read_json(request, dict[str, Any])
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
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


def _is_neutral(name: str, value: object) -> bool:
    return name in LABELS or any(value == neutral and type(value) is type(neutral) for neutral in NEUTRAL.get(name, ()))


class SamplingBody(Protocol):
    """A body whose sampling parameters may each be absent."""

    @property
    def temperature(self) -> float | None: ...

    @property
    def top_p(self) -> float | None: ...

    @property
    def top_k(self) -> int | None: ...

    @property
    def seed(self) -> int | None: ...


def sampling_of(body: SamplingBody, default: SamplingParams) -> SamplingParams:
    """What the request says; the model's own ``default`` for what it leaves open."""
    return SamplingParams(
        temperature=default.temperature if body.temperature is None else body.temperature,
        top_p=default.top_p if body.top_p is None else body.top_p,
        top_k=default.top_k if body.top_k is None else body.top_k,
        seed=body.seed,
    )


def stops_of(stop: str | list[str] | None) -> tuple[str, ...]:
    """Stop strings as a tuple."""
    if stop is None:
        return ()
    return (stop,) if isinstance(stop, str) else tuple(stop)
