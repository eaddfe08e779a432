"""The messages of POST /v2/models/M/infer: JSON, or JSON with the tensors' bytes behind it, read and written.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md and
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
from msgspec import Meta

from rbee.wire.errors import InvalidRequest, UnsupportedParameter
from rbee.wire.http.server import decode_body
from rbee.worker.engine.datatypes import DATATYPES, FLOATING, invalid
from rbee.worker.engine.tensor import NamedTensor, TensorRequest
from rbee.worker.engine.tensor_data import from_binary, from_json, to_binary, to_json

BINARY_HEADER = "Inference-Header-Content-Length"
_FLAT_NUMBERS = msgspec.json.Decoder(list[float])
_ANY = msgspec.json.Decoder()
Name = Annotated[str, Meta(max_length=256)]
T = TypeVar("T", bound=msgspec.Struct)


class OfTensor(msgspec.Struct, frozen=True):
    """Parameters of a tensor: how many of the bytes behind the JSON are its data."""

    binary_data_size: Annotated[int, Meta(ge=0)] | None = None


class OfOutput(msgspec.Struct, frozen=True):
    """Parameters of an output: whether its data goes as bytes."""

    binary_data: bool | None = None


class OfRequest(msgspec.Struct, frozen=True):
    """Parameters of a request: whether the outputs that do not say so themselves go as bytes."""

    binary_data_output: bool | None = None


class InputTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One input: ``data`` flat or nested in row-major order, unless its bytes lie behind the JSON.

    What is in ``data`` is decoded by its datatype, which may come after it.
    """

    name: Name
    shape: Annotated[list[int], Meta(max_length=16)]
    datatype: Annotated[str, Meta(max_length=16)]
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parameters: dict[str, Any] = {}


class OutputWish(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An output that is asked for."""

    name: Name
    parameters: dict[str, Any] = {}


class InferBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The JSON of a request; ``id`` is given back as it came."""

    inputs: Annotated[list[InputTensor], Meta(max_length=1024)]
    outputs: Annotated[list[OutputWish], Meta(max_length=1024)] = []
    id: Annotated[str, Meta(max_length=256)] | None = None
    parameters: dict[str, Any] = {}


class OutputTensor(msgspec.Struct, frozen=True):
    """One output: ``data`` flat in row-major order, or in ``parameters`` how many of the bytes behind the JSON."""

    name: str
    datatype: str
    shape: list[int]
    data: list[Any] | msgspec.UnsetType = msgspec.UNSET
    parameters: OfTensor | msgspec.UnsetType = msgspec.UNSET


class InferAnswer(msgspec.Struct, frozen=True):
    """The JSON of an answer; ``id`` is the request's."""

    model_name: str
    model_version: str
    id: str
    outputs: list[OutputTensor]


class Asked(msgspec.Struct, frozen=True):
    """A request that was read; ``binary`` says of an output whether it goes as bytes."""

    id: str | None
    request: TensorRequest
    binary: Mapping[str, bool]
    binary_by_default: bool


class Written(msgspec.Struct, frozen=True):
    """An answer's body; ``json_length`` is that of its JSON where bytes follow it, None where there are none."""

    body: bytes
    json_length: int | None


def json_length(header: str | None, body: bytes) -> int:
    """Where the JSON of ``body`` ends, by the header of the binary extension; raises InvalidRequest."""
    if header is None:
        return len(body)
    length = int(header) if header.isascii() and header.isdigit() and len(header) <= 12 else -1
    if not 0 < length <= len(body):
        raise InvalidRequest(
            f"{BINARY_HEADER} is not the length of the JSON at the body's start",
            details={"header": BINARY_HEADER, "body_bytes": len(body)},
        )
    return length


def read(body: bytes, header: str | None) -> Asked:
    """Read a request; raises InvalidRequest, and UnsupportedParameter for a parameter that is not honoured."""
    view, end = memoryview(body), json_length(header, body)
    found = decode_body(view[:end], InferBody)
    if not found.inputs:
        raise InvalidRequest("inputs is empty: send the model's inputs", param="inputs")
    wishes = {wish.name: _parameters(wish.parameters, OfOutput).binary_data for wish in found.outputs}
    given, at = [], end
    for tensor in found.inputs:
        size = _parameters(tensor.parameters, OfTensor).binary_data_size
        given.append(_tensor(tensor, None if size is None else view[at : at + size], size or 0))
        at += size or 0
    if at != len(body):
        raise InvalidRequest(
            f"{len(body) - at} bytes follow the inputs' data: binary_data_size has to name each byte", param="inputs"
        )
    return Asked(
        found.id,
        TensorRequest(given, [wish.name for wish in found.outputs]),
        {name: wish for name, wish in wishes.items() if wish is not None},
        bool(_parameters(found.parameters, OfRequest).binary_data_output),
    )


def _tensor(tensor: InputTensor, raw: memoryview | None, size: int) -> NamedTensor:
    name, datatype = tensor.name, tensor.datatype
    if raw is None:
        if tensor.data is msgspec.UNSET:
            raise invalid(name, "it has neither data nor binary_data_size")
        return NamedTensor(
            name, datatype, from_json(name, datatype, tensor.shape, _values(name, datatype, tensor.data))
        )
    if tensor.data is not msgspec.UNSET:
        raise invalid(name, "it has both data and binary_data_size")
    if len(raw) != size:
        raise invalid(name, f"the body ends after {len(raw)} of its {size} bytes of binary data")
    return NamedTensor(name, datatype, from_binary(name, datatype, tensor.shape, raw))


def _values(name: str, datatype: str, raw: msgspec.Raw) -> object:
    """JSON values as they are; flat numbers of a floating-point type as an array, which takes half the time."""
    if datatype in FLOATING:
        with contextlib.suppress(msgspec.DecodeError):  # nested, or wrong: told of below
            numbers = _FLAT_NUMBERS.decode(raw)
            return np.fromiter(numbers, np.float64, len(numbers))
    try:
        return _ANY.decode(raw)
    except (msgspec.DecodeError, RecursionError):  # it is well-formed, as it was skipped over before
        raise invalid(name, "the data is nested too deep, or has a number out of every range") from None


def _parameters(given: Mapping[str, Any], kind: type[T]) -> T:
    """Parameters change what is done: one that is not honoured is not taken in silence."""
    if not given:
        return kind()
    known = kind.__struct_fields__
    for name in given:
        if name not in known:
            raise UnsupportedParameter(
                f"the parameter '{name[:64]}' is not honoured here: leave it out",
                details={"parameter": name[:64], "supported": list(known)},
                param=name[:64],
            )
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"a parameter is not acceptable: {str(error)[:200]}", param="parameters") from None


def write(asked: Asked, answer: InferAnswer, outputs: Sequence[NamedTensor]) -> Written:
    """The body of ``answer`` with its outputs. Raises InferenceError for a value that JSON cannot say."""
    described: list[OutputTensor] = []
    parts: list[bytes | memoryview] = []
    for output in outputs:
        element = DATATYPES.get(output.datatype, output.datatype)
        name, shape = output.name, list(output.values.shape)
        if asked.binary.get(name, asked.binary_by_default):
            parts.append(to_binary(element, output.values))
            described.append(OutputTensor(name, output.datatype, shape, parameters=OfTensor(len(parts[-1]))))
        else:
            described.append(OutputTensor(name, output.datatype, shape, to_json(name, element, output.values)))
    head = msgspec.json.encode(msgspec.structs.replace(answer, outputs=described))
    return Written(b"".join([head, *parts]), len(head)) if parts else Written(head, None)
