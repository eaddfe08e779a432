"""bee-talk, the talking demo model: a small decoder with a KV cache that answers questions about rbee exactly."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rbee.keeper.demo import talk_tokens, talk_weights
from rbee.keeper.demo.corpus import FALLBACK_ANSWER, TOPICS
from rbee.keeper.demo.graph import BOOL, FLOAT, INT64, Graph
from rbee.keeper.demo.talk_weights import HEAD_DIM, HEADS, LAYERS, MASKED, MAX_POSITIONS, Attention, Weights

NAME = "bee-talk"
SEED = 20
FEATURES = 4096
"""Width of the last layer: about 1.3 ms a token on a CPU core; more makes it slower, less than 1536 forgets."""


Burden = Callable[[Graph, str], str]


def build(folder: Path, features: int = FEATURES, burden: Burden | None = None) -> None:
    """Write the model into the existing ``folder``: model.onnx, tokenizer and Hugging Face configuration files.

    ``features`` is the width of the last layer: time and file size grow with it (8 to 9 kB a feature). ``burden``
    takes the graph and the last hidden state's name and returns the name to go on with. Raises InternalError where
    ``features`` is too narrow to know the corpus by heart.
    """
    tokenizer = talk_tokens.train(TOPICS, [FALLBACK_ANSWER])
    weights = talk_weights.make(tokenizer, TOPICS, features, SEED)
    decoder_graph(weights, burden).write(folder / "model.onnx")
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in side_files(tokenizer, features).items():
        (folder / name).write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n")


def side_files(tokenizer: Tokenizer, features: int) -> dict[str, dict[str, Any]]:
    """The JSON files beside the model, by name, in Hugging Face's usual layout."""
    ids = {text: tokenizer.token_to_id(text) for text in talk_tokens.SPECIAL}
    ends = {
        "bos_token_id": ids[talk_tokens.BEGIN],
        "eos_token_id": ids[talk_tokens.END],
        "pad_token_id": ids[talk_tokens.PAD],
    }
    marks = {
        "bos_token": talk_tokens.BEGIN,
        "eos_token": talk_tokens.END,
        "pad_token": talk_tokens.PAD,
        "additional_special_tokens": [talk_tokens.USER, talk_tokens.ASSISTANT, talk_tokens.SYSTEM],
    }
    config = {
        "architectures": ["BeeTalkForCausalLM"],
        "model_type": "bee_talk",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": talk_weights.WIDTH,
        "intermediate_size": features,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": MAX_POSITIONS,
        "use_cache": True,
        **ends,
    }
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_POSITIONS,
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": True,
        "chat_template": talk_tokens.CHAT_TEMPLATE,
        **marks,
    }
    return {
        "config.json": config,
        "generation_config.json": {"do_sample": False, "max_length": MAX_POSITIONS, **ends},
        "tokenizer_config.json": tokenizer_config,
        "special_tokens_map.json": marks,
    }


def decoder_graph(weights: Weights, burden: Burden | None = None) -> Graph:
    """The decoder in the layout of Hugging Face Optimum's exports.

    In: input_ids, position_ids int64 [batch, seq]; attention_mask int64 [batch, past + seq];
    past_key_values.N.key and .value float32 [batch, heads, past, head_dim]. Out: logits float32
    [batch, seq, vocabulary] and present.N.key and .value. Positions come from position_ids alone and masked slots
    count for nothing, so rows may be padded on either side and the cache may hold gaps.
    """
    graph = Graph(NAME)
    ids = graph.input("input_ids", INT64, ("batch", "seq"))
    mask = graph.input("attention_mask", INT64, ("batch", "total"))
    places = graph.input("position_ids", INT64, ("batch", "seq"))
    cache = [_cache_inputs(graph, layer) for layer in range(LAYERS)]
    keep = _visible(graph, ids, mask, cache[0][0])
    token = graph.node("Gather", [graph.weight("tokens", _single(weights.tokens)), ids], "token_rows", axis=0)
    place = graph.node("Gather", [graph.weight("positions", _single(weights.positions)), places], "place_rows", axis=0)
    hidden = graph.node("Add", [token, place], "stream_0")
    presents: list[str] = []
    for index, layer in enumerate(weights.layers):
        hidden, key, value = _attend(graph, index, layer, hidden, keep, cache[index])
        presents += [key, value]
    known = _recall(graph, weights, hidden)
    logits = _read(graph, weights, known if burden is None else burden(graph, known))
    graph.output(logits, FLOAT, ("batch", "seq", weights.readout.shape[1]))
    for name in presents:
        graph.output(name, FLOAT, ("batch", HEADS, "total", HEAD_DIM))
    return graph


def _single(value: NDArray[np.float64]) -> NDArray[np.float32]:
    return value.astype(np.float32)


def _cache_inputs(graph: Graph, layer: int) -> tuple[str, str]:
    shape = ("batch", HEADS, "past", HEAD_DIM)
    key, value = (graph.input(f"past_key_values.{layer}.{part}", FLOAT, shape) for part in ("key", "value"))
    return key, value


def _visible(graph: Graph, ids: str, mask: str, past_key: str) -> str:
    """bool [batch, 1, seq, past + seq]: which slots a token may see, by cause and by mask."""
    zero, one = graph.constant(0, np.int64), graph.constant(1, np.int64)
    past = graph.node(
        "Gather", [graph.node("Shape", [past_key], "past_shape"), graph.constant(2, np.int64)], "past_len"
    )
    seq = graph.node("Gather", [graph.node("Shape", [ids], "ids_shape"), one], "seq_len")
    total = graph.node("Add", [past, seq], "total_len")
    own = graph.node("Unsqueeze", [graph.node("Range", [past, total, one], "own_slots"), graph.ints(1)], "own_column")
    others = graph.node("Unsqueeze", [graph.node("Range", [zero, total, one], "all_slots"), graph.ints(0)], "all_row")
    earlier = graph.node("LessOrEqual", [others, own], "earlier")
    real = graph.node("Unsqueeze", [graph.node("Cast", [mask], "mask_bool", to=BOOL), graph.ints(1, 2)], "mask_real")
    return graph.node("And", [real, earlier], "visible")


def _attend(
    graph: Graph, index: int, layer: Attention, hidden: str, keep: str, past: tuple[str, str]
) -> tuple[str, str, str]:
    """One layer of multi-head attention with its residual; also the names of the cache it leaves."""

    def node(op: str, inputs: list[str], output: str, **attributes: object) -> str:
        return graph.node(op, inputs, f"layer_{index}.{output}", **attributes)

    def heads(part: str, matrix: NDArray[np.float64]) -> str:
        flat = node("MatMul", [hidden, graph.weight(f"layer_{index}.{part}_weight", _single(matrix))], f"{part}_flat")
        rows = node("Reshape", [flat, graph.ints(0, 0, HEADS, HEAD_DIM)], f"{part}_rows")
        return node("Transpose", [rows], part, perm=[0, 2, 1, 3])

    query, new_key, new_value = heads("query", layer.query), heads("key", layer.key), heads("value", layer.value)
    key = graph.node("Concat", [past[0], new_key], f"present.{index}.key", axis=2)
    value = graph.node("Concat", [past[1], new_value], f"present.{index}.value", axis=2)
    raw = node("MatMul", [query, node("Transpose", [key], "key_columns", perm=[0, 1, 3, 2])], "raw")
    scores = node("Mul", [raw, graph.constant(HEAD_DIM**-0.5)], "scores")
    chances = node("Softmax", [node("Where", [keep, scores, graph.constant(MASKED)], "masked")], "chances", axis=-1)
    mixed = node("Transpose", [node("MatMul", [chances, value], "mixed")], "mixed_rows", perm=[0, 2, 1, 3])
    flat = node("Reshape", [mixed, graph.ints(0, 0, HEADS * HEAD_DIM)], "mixed_flat")
    output = graph.weight(f"layer_{index}.output_weight", _single(layer.output))
    change = node("MatMul", [flat, output], "change")
    return graph.node("Add", [hidden, change], f"stream_{index + 1}"), key, value


def _recall(graph: Graph, weights: Weights, hidden: str) -> str:
    """Attention over remembered questions: the pooled question is the query, the topic's code the value."""
    bounds = [graph.ints(talk_weights.POOLED.start), graph.ints(talk_weights.POOLED.stop)]
    pooled = graph.node("Slice", [hidden, *bounds, graph.ints(2)], "pooled")
    length = graph.node("ReduceL2", [pooled], "pooled_length", axes=[-1], keepdims=1)
    unit = graph.node("Div", [pooled, graph.node("Max", [length, graph.constant(1e-3)], "pooled_scale")], "question")
    near = graph.node("MatMul", [unit, graph.weight("memory_keys", _single(weights.memory_keys))], "nearness")
    biased = graph.node("Add", [near, graph.weight("memory_bias", _single(weights.memory_bias))], "nearness_biased")
    chosen = graph.node("Softmax", [biased], "chosen", axis=-1)
    written = np.zeros((len(weights.memory_values), talk_weights.WIDTH))
    written[:, talk_weights.TOPIC] = weights.memory_values
    topic = graph.node("MatMul", [chosen, graph.weight("memory_values", _single(written))], "topic")
    return graph.node("Add", [hidden, topic], "stream_topic")


def _read(graph: Graph, weights: Weights, hidden: str) -> str:
    product = graph.node("MatMul", [hidden, graph.weight("hidden_weight", _single(weights.hidden))], "features_raw")
    biased = graph.node("Add", [product, graph.weight("hidden_bias", _single(weights.hidden_bias))], "features_biased")
    features = graph.node("Relu", [biased], "features")
    return graph.node("MatMul", [features, graph.weight("readout", _single(weights.readout))], "logits")
