"""Says what a model folder holds from its files: the task, the vocabulary, where text ends, how long it may be."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rbee.wire.errors import ConfigError
from rbee.wire.worker_spec import Task
from rbee.worker.engine.onnx_file import GraphFacts

T = TypeVar("T")
PAST_PREFIXES = ("past_key_values.", "past_key_", "past.")
INT4_OPERATORS = {"MatMulNBits", "MatMulBnb4", "GatherBlockQuantized"}
INT8_OPERATORS = {"MatMulInteger", "DynamicQuantizeLinear", "QLinearMatMul", "QLinearConv", "DequantizeLinear"}
UNBOUNDED_LENGTH = 1_000_000
MOST_TEXT = 16 << 20


@dataclass(frozen=True, slots=True)
class FolderFacts:
    """A model folder as read from disk: its file names, its JSON files by name, its graph, its template file's text."""

    files: frozenset[str]
    configs: Mapping[str, Mapping[str, Any]]
    graph: GraphFacts
    template: str | None = None

    def config(self, name: str) -> Mapping[str, Any]:
        """The JSON object of file ``name``; empty where the folder has none."""
        return self.configs.get(name, {})


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model is. ``context_length`` is in tokens; None where the files do not say."""

    task: Task
    precision: str
    vocabulary: int | None
    eos_ids: frozenset[int]
    context_length: int | None
    chat_template: str | None


def recognise(folder: FolderFacts, asked: Task = Task.AUTO) -> ModelFacts:
    """Read a folder's facts; ``asked`` other than auto overrides the task.

    Raises ConfigError for a model kind that this version does not serve (classifiers of several labels).
    """
    return ModelFacts(
        task_of(folder) if asked is Task.AUTO else asked,
        precision_of(folder.graph),
        _vocabulary(folder),
        _eos_ids(folder),
        _context_length(folder),
        _chat_template(folder),
    )


def task_of(folder: FolderFacts) -> Task:
    """What the files say: genai_config.json or past/present inputs generate; an encoder with a tokenizer embeds, or
    ranks where it ends in one score for a pair of texts; anything else is a tensor model.
    """
    names = folder.graph.input_names
    if "genai_config.json" in folder.files or any(name.startswith(PAST_PREFIXES) for name in names):
        return Task.GENERATE
    if "tokenizer.json" not in folder.files or "input_ids" not in names:
        return Task.TENSOR
    if _classifies(folder):
        labels = _labels(folder)
        if labels == 1:
            return Task.RANK
        raise ConfigError(
            f"the model sorts texts into {labels or 'several'} classes, which this version does not serve; "
            "set `task: tensor` in the worker's definition to feed its tensors yourself"
        )
    return Task.EMBED


def precision_of(graph: GraphFacts) -> str:
    """The precision of most weights: int4, int8, fp16 or fp32 (or the element type's own name)."""
    if graph.operators & INT4_OPERATORS or {"int4", "uint4"} & graph.weights.keys():
        return "int4"
    if graph.operators & INT8_OPERATORS and {"int8", "uint8"} & graph.weights.keys():
        return "int8"
    floats = {name: count for name, count in graph.weights.items() if "float" in name}
    if not floats:
        return "fp32"
    most = max(floats, key=lambda name: floats[name])
    return {"float16": "fp16", "float32": "fp32", "float64": "fp64", "bfloat16": "bf16"}[most]


def _classifies(folder: FolderFacts) -> bool:
    architectures: Iterable[object] = folder.config("config.json").get("architectures") or ()
    classifies = any(str(name).endswith("ForSequenceClassification") for name in architectures)
    hidden = {"last_hidden_state", "sentence_embedding", "token_embeddings"} & folder.graph.output_names
    return classifies and not hidden


def _labels(folder: FolderFacts) -> int | None:
    """How many scores a classifier gives, by its graph or its config.json; None where neither says."""
    for tensor in folder.graph.outputs:
        if tensor.name == "logits" and tensor.shape and isinstance(tensor.shape[-1], int):
            return tensor.shape[-1]
    config = folder.config("config.json")
    named, count = config.get("id2label"), config.get("num_labels")
    if isinstance(named, Mapping):
        return len(named)
    return count if isinstance(count, int) else None


def _model_section(folder: FolderFacts) -> Mapping[str, Any]:
    section = folder.config("genai_config.json").get("model")
    return section if isinstance(section, Mapping) else {}


def _vocabulary(folder: FolderFacts) -> int | None:
    for source in (_model_section(folder), folder.config("config.json")):
        if isinstance(size := source.get("vocab_size"), int):
            return size
    for tensor in folder.graph.outputs:
        if tensor.name == "logits" and tensor.shape and isinstance(tensor.shape[-1], int):
            return tensor.shape[-1]
    return None


def _eos_ids(folder: FolderFacts) -> frozenset[int]:
    """Every id that any of the files says ends a text: a chat model often has more than one."""
    found: set[int] = set()
    generation, config = folder.config("generation_config.json"), folder.config("config.json")
    for source in (_model_section(folder), generation, config):
        value = source.get("eos_token_id")
        values = value if isinstance(value, list) else [value]
        found.update(each for each in values if isinstance(each, int))
    return frozenset(found)


def _context_length(folder: FolderFacts) -> int | None:
    config = folder.config("config.json")
    candidates = [
        _model_section(folder).get("context_length"),
        config.get("max_position_embeddings"),
        config.get("n_positions"),
        config.get("max_seq_len"),
        folder.config("tokenizer_config.json").get("model_max_length"),
    ]
    for value in candidates:
        if isinstance(value, int) and 0 < value < UNBOUNDED_LENGTH:
            return value
    return None


def _chat_template(folder: FolderFacts) -> str | None:
    if folder.template is not None:
        return folder.template
    value = folder.config("tokenizer_config.json").get("chat_template")
    if isinstance(value, list):
        named = {str(each.get("name")): each.get("template") for each in value if isinstance(each, Mapping)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def read_text(path: Path) -> str:
    """The text in ``path``; raises ConfigError where it cannot be read, is no UTF-8, or is over 16 MiB."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_TEXT + 1)
        if len(data) > MOST_TEXT:
            raise ConfigError(f"{path.name}: over 16 MiB; fetch the model again")
        return data.decode()
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path.name}: cannot be read as text ({_why(error)}); fetch the model again") from None


def read_json(path: Path, kind: type[T]) -> T:
    """The JSON in ``path``, which must be of ``kind``; raises ConfigError naming the file and what is wrong."""
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name}: cannot be read as JSON ({_why(error)}); fetch the model again") from None
    if not isinstance(value, kind):
        raise ConfigError(f"{path.name}: must hold a JSON {kind.__name__}; fetch the model again")
    return value


def _why(error: Exception) -> str:
    return error.strerror or "it is not there" if isinstance(error, OSError) else str(error)
