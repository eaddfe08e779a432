"""What a worker is: the content of its definition ID.yaml, written by an operator or a hive, read by the worker."""

import enum
from typing import Annotated

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=1024, le=65535)]


class Backend(enum.StrEnum):
    """Execution providers that this build knows; the list is data, ready for more."""

    CPU = "cpu"
    CUDA = "cuda"


class Task(enum.StrEnum):
    """What a model does; ``auto`` reads it from the model's files."""

    AUTO = "auto"
    GENERATE = "generate"
    EMBED = "embed"
    RANK = "rank"
    TENSOR = "tensor"


class ToolFormat(enum.StrEnum):
    """How a model writes tool calls: the words of its family's chat templates."""

    HERMES = "hermes"
    LLAMA3_JSON = "llama3_json"
    MISTRAL = "mistral"
    MISTRAL_ARGS = "mistral_args"


class PortRange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """TCP ports to try, in order, both ends included."""

    first: Port = 8081
    last: Port = 9000


class WorkerSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One worker's definition.

    ``model`` is a folder (absolute path or file:///) under a model root. ``name`` is what clients call the model
    (default: the folder's name). ``device`` counts CUDA devices from 0. ``slots`` bounds the requests that run at
    once, ``queue`` those that wait for a slot; beyond both a request is refused. ``listen_host`` null means
    worker.yaml's. ``threads`` 0 means the cores this process may use; ``pin_cores`` keeps the worker on so many of
    them, the idlest at its start (0: none of its own). Durations are in seconds; ``idle_limit_s`` 0 means never
    stop for idleness, null means the hive's default. ``load_stall_s``: loading with no progress for this long ends
    the start. ``tool_format`` is how the model writes tool calls; without it the chat template tells.
    ``gpu_mem_limit_mb`` bounds the CUDA arena, ``use_tf32`` lets a GPU round single precision in matrix products.
    ``kv_cache_mb`` bounds the keys and values of the texts that run at once (null: half of the memory that is free
    at the start, on CUDA half of gpu_mem_limit_mb); ``prefix_cache_mb`` those kept of prompts for the next ones, 0
    keeps none. ``max_batch_tokens`` bounds the tokens, padding counted, of one run of texts; null means what suits
    the device. ``max_batch`` is how many rows (first axis) of a tensor model's requests may share a run; 1 means
    that each request runs by itself.
    """

    model: Annotated[str, Meta(min_length=1, max_length=4096)]
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/:-]{0,127}\Z")] | None = None
    task: Task = Task.AUTO
    backend: Backend = Backend.CPU
    device: Annotated[int, Meta(ge=0, le=63)] = 0
    slots: Annotated[int, Meta(ge=1, le=256)] = 4
    queue: Annotated[int, Meta(ge=0, le=4096)] = 0
    threads: Annotated[int, Meta(ge=0, le=1024)] = 0
    pin_cores: Annotated[int, Meta(ge=0, le=1024)] = 0
    listen_host: str | None = None
    ports: PortRange = PortRange()
    idle_limit_s: Annotated[float, Meta(ge=0)] | None = None
    load_stall_s: Annotated[float, Meta(gt=0)] = 300.0
    drain_limit_s: Annotated[float, Meta(gt=0)] = 27.0
    step_limit_s: Annotated[float, Meta(gt=0)] = 60.0
    max_context: Annotated[int, Meta(ge=1)] | None = None
    tool_format: ToolFormat | None = None
    gpu_mem_limit_mb: Annotated[int, Meta(ge=64)] | None = None
    use_tf32: bool = True
    kv_cache_mb: Annotated[int, Meta(ge=1)] | None = None
    prefix_cache_mb: Annotated[int, Meta(ge=0)] = 256
    max_batch_tokens: Annotated[int, Meta(ge=1, le=1 << 24)] | None = None
    max_batch: Annotated[int, Meta(ge=1, le=65536)] = 1
