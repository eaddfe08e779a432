"""What servers and models of the Open Inference Protocol tell about themselves.

https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import msgspec

VERSION = "1"
"""The one version of a model."""
EXTENSIONS = ["binary_tensor_data"]


class ServerMetadata(msgspec.Struct, frozen=True):
    """GET /v2."""

    name: str
    version: str
    extensions: list[str]


class Live(msgspec.Struct, frozen=True):
    """GET /v2/health/live."""

    live: bool


class Ready(msgspec.Struct, frozen=True):
    """GET /v2/health/ready."""

    ready: bool


class ModelReady(msgspec.Struct, frozen=True):
    """GET /v2/models/M/ready."""

    name: str
    ready: bool


class TensorMetadata(msgspec.Struct, frozen=True):
    """An input or output of a model; -1 in ``shape`` is any size."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(msgspec.Struct, frozen=True):
    """GET /v2/models/M."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
