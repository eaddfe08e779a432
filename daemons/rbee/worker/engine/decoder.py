"""Runs a decoder graph with its key-value cache: one sequence, any number of tokens a step, on CPU or CUDA."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rbee.wire.errors import ConfigError, InferenceError
from rbee.worker.engine.onnx_file import GraphFacts, TensorInfo
from rbee.worker.engine.recognise import PAST_PREFIXES, FolderFacts
from rbee.worker.engine.runtime import runtime
from rbee.worker.engine.sampling import Scores
from rbee.worker.engine.sessions import Array, Binding, RunOptions, Session, numpy_type

PREFILL_CHUNK = 512
"""Prompt tokens a step: bounds the scores' memory and how long a cancelled prompt goes on."""
ROLES = ("input_ids", "attention_mask", "position_ids", "use_cache_branch")


@dataclass(frozen=True, slots=True)
class CachePair:
    """A past input, the present output that becomes it at the next step, and the shape of an empty past."""

    past: str
    present: str
    element: str
    empty_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DecoderLayout:
    """Names in the graph by role, the cache's pairs, and the element type of each plain input."""

    names: Mapping[str, str]
    elements: Mapping[str, str]
    scores: str
    pairs: tuple[CachePair, ...]


@dataclass(slots=True)
class Cache:
    """One sequence's past: device tensors by input name, and how many tokens they hold."""

    values: dict[str, Any] = field(default_factory=dict)
    length: int = 0


def read_layout(facts: FolderFacts) -> DecoderLayout:
    """Read the layout from genai_config.json's names where there is one, else by the names Optimum gives.

    Raises ConfigError naming what the graph lacks.
    """
    graph, declared = facts.graph, _declared(facts)
    names = {role: declared.get(role, role) for role in ROLES if declared.get(role, role) in graph.input_names}
    if "input_ids" not in names:
        raise ConfigError("the decoder has no input named input_ids; export it with past/present inputs")
    pairs = tuple(_pair(tensor, graph, declared, facts) for tensor in graph.inputs if _is_past(tensor, declared))
    known = set(names.values()) | {pair.past for pair in pairs}
    unknown = sorted(graph.input_names - known)
    if unknown or not pairs:
        what = f"inputs that are not served: {', '.join(unknown)}" if unknown else "no past inputs"
        raise ConfigError(f"the decoder has {what}; export it as a decoder with past/present inputs")
    scores = declared.get("logits", "logits")
    if scores not in graph.output_names:
        raise ConfigError(f"the decoder has no output named {scores}; export it for text generation")
    elements = {tensor.name: tensor.element for tensor in graph.inputs}
    return DecoderLayout(names, elements, scores, pairs)


def _declared(facts: FolderFacts) -> dict[str, str]:
    model = facts.config("genai_config.json").get("model")
    decoder = model.get("decoder") if isinstance(model, Mapping) else None
    if not isinstance(decoder, Mapping):
        return {}
    found: dict[str, str] = {}
    for section in ("inputs", "outputs"):
        part = decoder.get(section)
        if isinstance(part, Mapping):
            found.update({str(key): value for key, value in part.items() if isinstance(value, str)})
    return found


def _is_past(tensor: TensorInfo, declared: Mapping[str, str]) -> bool:
    prefixes = [declared[key].partition("%d")[0] for key in ("past_key_names", "past_value_names") if key in declared]
    return tensor.name.startswith((*prefixes, *PAST_PREFIXES))


def _pair(tensor: TensorInfo, graph: GraphFacts, declared: Mapping[str, str], facts: FolderFacts) -> CachePair:
    for candidate in _present_names(tensor.name, declared):
        if candidate in graph.output_names:
            return CachePair(tensor.name, candidate, tensor.element, _empty_shape(tensor, facts))
    raise ConfigError(f"the decoder's input {tensor.name} has no present output that goes with it; export it again")


def _present_names(past: str, declared: Mapping[str, str]) -> list[str]:
    names = []
    for kind in ("key", "value"):
        before, mark, after = declared.get(f"past_{kind}_names", "").partition("%d")
        if mark and past.startswith(before) and past.endswith(after):
            number = past[len(before) : len(past) - len(after)]
            names.append(declared.get(f"present_{kind}_names", "").replace("%d", number))
    return [*names, past.replace("past_key_values", "present", 1), past.replace("past", "present", 1)]


def _empty_shape(tensor: TensorInfo, facts: FolderFacts) -> tuple[int, ...]:
    """(1, heads, 0, head size): heads and size from the graph, else from config.json."""
    if len(tensor.shape) != 4:
        raise ConfigError(f"the decoder's input {tensor.name} is not of the shape (batch, heads, length, size)")
    _, heads, _, size = tensor.shape
    config = facts.config("config.json")
    attention = config.get("num_attention_heads")
    if not isinstance(heads, int):
        heads = config.get("num_key_value_heads", attention)
    if not isinstance(size, int):
        hidden = config.get("hidden_size")
        derived = hidden // attention if isinstance(hidden, int) and isinstance(attention, int) else None
        size = config.get("head_dim", derived)
    if not isinstance(heads, int) or not isinstance(size, int):
        raise ConfigError(f"neither the graph nor config.json tells the heads of {tensor.name}; export the model again")
    return (1, heads, 0, size)


class Decoder:
    """A decoder's session. Every sequence has its own :class:`Cache`; several threads may advance one each."""

    def __init__(self, session: Session, layout: DecoderLayout, device: str, device_id: int) -> None:
        self._session = session
        self._layout = layout
        self._device = device
        self._device_id = device_id

    def advance(self, cache: Cache, tokens: Sequence[int], options: RunOptions) -> Scores:
        """Read ``tokens`` (at least one) after what ``cache`` holds; returns the scores that follow the last one.

        Raises InferenceError; the cache is not to be used after it.
        """
        scores: Array | None = None
        for start in range(0, len(tokens), PREFILL_CHUNK):
            scores = self._step(cache, tokens[start : start + PREFILL_CHUNK], options)
        if scores is None:
            raise InferenceError("no token was given to the decoder")
        last: Scores = scores[0, -1].astype(np.float32, copy=False)
        return last

    def _step(self, cache: Cache, tokens: Sequence[int], options: RunOptions) -> Array:
        binding = self._session.io_binding()
        for name, value in self._feeds(cache, tokens).items():
            binding.bind_cpu_input(name, value)
        for pair in self._layout.pairs:
            past = cache.values.get(pair.past)
            if past is None:
                binding.bind_cpu_input(pair.past, np.zeros(pair.empty_shape, numpy_type(pair.element)))
            else:
                binding.bind_ortvalue_input(pair.past, past)
        binding.bind_output(self._layout.scores, "cpu")
        for pair in self._layout.pairs:
            binding.bind_output(pair.present, self._device, self._device_id)
        self._run(binding, options)
        scores, *presents = binding.get_outputs()
        cache.values = {pair.past: present for pair, present in zip(self._layout.pairs, presents, strict=True)}
        cache.length += len(tokens)
        return scores.numpy()  # type: ignore[no-any-return]

    def _feeds(self, cache: Cache, tokens: Sequence[int]) -> dict[str, Array]:
        total = cache.length + len(tokens)
        values: dict[str, Array] = {
            "input_ids": np.array([tokens]),
            "attention_mask": np.ones((1, total)),
            "position_ids": np.arange(cache.length, total)[None],
            "use_cache_branch": np.array([cache.length > 0]),
        }
        names, elements = self._layout.names, self._layout.elements
        return {name: values[role].astype(numpy_type(elements[name])) for role, name in names.items()}

    def _run(self, binding: Binding, options: RunOptions) -> None:
        try:
            self._session.run_with_iobinding(binding, options)
        except Exception as error:
            raise InferenceError(
                "the model failed on this prompt; the worker's journal has the reason",
                details={"reason": type(error).__name__},
            ) from error


def device_name(backend: str) -> str:
    """The runtime's name of the device where the cache lives."""
    return "cuda" if backend == "cuda" else "cpu"


def run_options() -> RunOptions:
    """Options of a run that nobody cancels: the warm-up's."""
    options: RunOptions = runtime().RunOptions()
    return options
