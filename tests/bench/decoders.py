"""Decoders with random weights for benches and tests: GroupQueryAttention, in fp32, fp16 or int4, of any size.

A folder that :func:`build` writes is loaded by a worker and by onnxruntime-genai alike: genai_config.json tells the
names.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.external_data_helper import convert_model_to_external_data
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from rbee.keeper.demo.graph import INT64, Graph

MICROSOFT = "com.microsoft"
BLOCK = 32
"""Weights that share a scale in an int4 file."""
END = 0
SEED = 7


@dataclass(frozen=True, slots=True)
class Size:
    """How large a decoder is; ``context`` in tokens."""

    vocabulary: int
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    context: int

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @property
    def parameters(self) -> int:
        """How many weights there are, the two small norms of a layer left out."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return 2 * self.vocabulary * self.hidden + self.layers * (attention + 3 * self.hidden * self.inner)


TINY = Size(vocabulary=256, hidden=64, inner=128, layers=2, heads=4, kv_heads=2, context=512)
SMALL = Size(vocabulary=16_000, hidden=768, inner=2_304, layers=12, heads=12, kv_heads=4, context=4_096)
"""About 107 million parameters."""
LARGE = Size(vocabulary=32_000, hidden=2_048, inner=6_144, layers=22, heads=32, kv_heads=8, context=4_096)
"""About 1.2 thousand million parameters."""


class _Writer:
    """One decoder's graph as it is written."""

    def __init__(self, size: Size, precision: str) -> None:
        self.size = size
        self._int4 = precision == "int4"
        self.numpy: type[np.generic] = np.float16 if precision == "fp16" else np.float32
        self.onnx = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
        self.graph = Graph("random-decoder")
        self._random = np.random.default_rng(SEED)

    def node(self, op: str, inputs: list[str], output: str, **attributes: object) -> str:
        return self.graph.node(op, inputs, output, **attributes)

    def random(self, *shape: int, scale: float) -> NDArray[Any]:
        values = self._random.standard_normal(shape, dtype=np.float32) * np.float32(scale)
        return values.astype(self.numpy)

    def linear(self, inputs: str, rows: int, columns: int, name: str) -> str:
        """inputs @ a random matrix (rows, columns)."""
        scale = rows**-0.5
        if not self._int4:
            weight = self.graph.weight(f"{name}.weight", self.random(rows, columns, scale=scale))
            return self.node("MatMul", [inputs, weight], name)
        blocks = rows // BLOCK
        packed = self._random.integers(0, 256, (columns, blocks, BLOCK // 2), dtype=np.uint8)
        scales = (self._random.random((columns * blocks,), dtype=np.float32) + 0.5) * np.float32(scale / 4.6)
        weights = [
            self.graph.weight(f"{name}.packed", packed),
            self.graph.weight(f"{name}.scales", scales.astype(self.numpy)),
        ]
        sizes = {"K": rows, "N": columns, "bits": 4, "block_size": BLOCK, "accuracy_level": 4}
        return self.node("MatMulNBits", [inputs, *weights], name, domain=MICROSOFT, **sizes)

    def norm(self, inputs: str, name: str) -> str:
        weight = self.graph.weight(f"{name}.weight", np.ones(self.size.hidden, self.numpy))
        return self.node("SimplifiedLayerNormalization", [inputs, weight], name, epsilon=1e-5, axis=-1)

    def lengths(self, mask: str) -> tuple[str, str]:
        """Tokens of each row less one, and the mask's width, as GroupQueryAttention wants them."""
        held = self.node("ReduceSum", [mask, self.graph.ints(1)], "mask_sum", keepdims=0)
        last = self.node("Sub", [held, self.graph.ints(1)], "mask_last")
        shape = self.node("Shape", [mask], "mask_shape")
        width = self.node("Gather", [shape, self.graph.constant(1, np.int64)], "mask_width")
        cast = {"to": TensorProto.INT32}
        return self.node("Cast", [last], "seqlens_k", **cast), self.node("Cast", [width], "total_length", **cast)

    def rotary(self) -> list[str]:
        size = self.size
        angles = np.outer(np.arange(size.context), 10_000.0 ** -np.linspace(0, 1, size.head_dim // 2, endpoint=False))
        waves = {"cos_cache": np.cos(angles), "sin_cache": np.sin(angles)}
        return [self.graph.weight(name, wave.astype(self.numpy)) for name, wave in waves.items()]

    def layer(self, index: int, stream: str, shared: list[str]) -> tuple[str, list[str]]:
        """One layer: what flows on, and the two outputs of its cache."""
        size, name = self.size, f"layer.{index}"
        kv_width = size.kv_heads * size.head_dim
        cache = ("batch", size.kv_heads, "past", size.head_dim)
        past = [self.graph.input(f"past_key_values.{index}.{part}", self.onnx, cache) for part in ("key", "value")]
        normed = self.norm(stream, f"{name}.before_attention")
        query = self.linear(normed, size.hidden, size.hidden, f"{name}.query")
        key, value = (self.linear(normed, size.hidden, kv_width, f"{name}.{part}") for part in ("key", "value"))
        presents = [f"present.{index}.{part}" for part in ("key", "value")]
        heads = {"num_heads": size.heads, "kv_num_heads": size.kv_heads, "do_rotary": 1}
        inputs = [query, key, value, *past, *shared]
        outputs = [f"{name}.mixed", *presents]
        mixed = self.graph.nodes("GroupQueryAttention", inputs, outputs, domain=MICROSOFT, **heads)[0]
        change = self.linear(mixed, size.hidden, size.hidden, f"{name}.output")
        stream = self.node("Add", [stream, change], f"{name}.attended")
        normed = self.norm(stream, f"{name}.before_inner")
        gate, wide = (self.linear(normed, size.hidden, size.inner, f"{name}.{part}") for part in ("gate", "up"))
        opened = self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{name}.sigmoid")], f"{name}.opened")
        inner = self.node("Mul", [opened, wide], f"{name}.inner")
        return self.node("Add", [stream, self.linear(inner, size.inner, size.hidden, f"{name}.down")], name), presents

    def write(self) -> onnx.ModelProto:
        size, graph = self.size, self.graph
        ids = graph.input("input_ids", INT64, ("batch", "seq"))
        mask = graph.input("attention_mask", INT64, ("batch", "total"))
        shared = [*self.lengths(mask), *self.rotary()]
        table = graph.weight("embedding", self.random(size.vocabulary, size.hidden, scale=1.0))
        stream, presents = self.node("Gather", [table, ids], "embedded"), []
        for index in range(size.layers):
            stream, found = self.layer(index, stream, shared)
            presents += found
        self.linear(self.norm(stream, "last_norm"), size.hidden, size.vocabulary, "logits")
        graph.output("logits", self.onnx, ("batch", "seq", size.vocabulary))
        for name in presents:
            graph.output(name, self.onnx, ("batch", size.kv_heads, "total", size.head_dim))
        model = graph.model()
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
        return model


def build(folder: Path, size: Size, precision: str) -> Path:
    """Write a decoder of ``precision`` (fp32, fp16 or int4) and its side files into ``folder``; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    model = _Writer(size, precision).write()
    convert_model_to_external_data(model, location="model.onnx.data", size_threshold=4_096)
    onnx.save(model, str(folder / "model.onnx"))
    words = {f"w{number}": number for number in range(size.vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "genai_config.json").write_text(json.dumps(_genai_config(size), indent=1))
    return folder


def _genai_config(size: Size) -> dict[str, Any]:
    caches = {f"{role}_{part}_names": f"{name}.%d.{part}" for role, name in _CACHES for part in ("key", "value")}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "model.onnx",
        "head_size": size.head_dim,
        "hidden_size": size.hidden,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "num_hidden_layers": size.layers,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            **{key: name for key, name in caches.items() if key.startswith("past")},
        },
        "outputs": {"logits": "logits", **{key: name for key, name in caches.items() if key.startswith("present")}},
    }
    model = {
        "type": "llama",
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": END,
        "vocab_size": size.vocabulary,
        "context_length": size.context,
        "decoder": decoder,
    }
    search = {"do_sample": False, "max_length": size.context, "past_present_share_buffer": True}
    return {"model": model, "search": search}


_CACHES = (("past", "past_key_values"), ("present", "present"))
