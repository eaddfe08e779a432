"""Reads from a decoder's files how it is fed: its inputs by role, its cache, its scores, and how it may be batched."""

from collections.abc import Mapping
from dataclasses import dataclass

from rbee.wire.errors import ConfigError
from rbee.worker.engine.onnx_file import GraphFacts, TensorInfo
from rbee.worker.engine.recognise import PAST_PREFIXES, FolderFacts
from rbee.worker.engine.runtime import runtime
from rbee.worker.engine.sessions import RunOptions, numpy_type

ROLES = ("input_ids", "attention_mask", "position_ids", "use_cache_branch")


@dataclass(frozen=True, slots=True)
class CachePair:
    """A past input, the present output that becomes it at the next step, and the shape of an empty past."""

    past: str
    present: str
    element: str
    empty_shape: tuple[int, ...]

    @property
    def token_bytes(self) -> int:
        """Bytes of one token."""
        return self.empty_shape[1] * self.empty_shape[3] * numpy_type(self.element).itemsize


@dataclass(frozen=True, slots=True)
class DecoderLayout:
    """Names in the graph by role, the cache's pairs, and the element types of the plain inputs and of the scores.

    ``vocabulary`` is the scores' width, None where the graph leaves it open.
    ``shares_buffers``: attention reads and writes one buffer in place (GroupQueryAttention), so that rows of different
    lengths decode together. ``scales_by_content``: activations are quantised by what is computed together, so that
    results depend on it.
    """

    names: Mapping[str, str]
    elements: Mapping[str, str]
    scores: str
    scores_element: str
    vocabulary: int | None
    pairs: tuple[CachePair, ...]
    shares_buffers: bool
    scales_by_content: bool

    @property
    def token_bytes(self) -> int:
        """Bytes of keys and values of one token."""
        return sum(pair.token_bytes for pair in self.pairs)


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
    output = next(tensor for tensor in graph.outputs if tensor.name == scores)
    return DecoderLayout(
        names,
        elements={tensor.name: tensor.element for tensor in graph.inputs},
        scores=scores,
        scores_element=output.element,
        vocabulary=width if output.shape and isinstance(width := output.shape[-1], int) else None,
        pairs=pairs,
        shares_buffers="GroupQueryAttention" in graph.operators,
        scales_by_content="DynamicQuantizeLinear" in graph.operators,
    )


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


def run_options() -> RunOptions:
    """Options of the batch's runs; what fails is told by its error, not by the runtime's own log."""
    options: RunOptions = runtime().RunOptions()
    options.log_severity_level = 4
    return options
