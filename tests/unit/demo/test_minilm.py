"""The MiniLM graph computes what the published weights say, checked by a forward pass written separately."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tests.unit.demo import runtime
from tokenizers import Tokenizer

from rbee.keeper.demo import minilm

Floats = NDArray[np.float64]
TEXTS = (
    "A man is eating food.",
    "Someone is having a meal.",
    "The stock market fell sharply on Monday.",
    "systemd starts the worker, and the hive reports that it is ready to the queen of the whole fleet.",
)


@pytest.fixture(scope="session")
def encoder(models: dict[str, Path]) -> runtime.Session:
    return runtime.session(models[minilm.NAME])


@pytest.fixture(scope="session")
def tokenizer(models: dict[str, Path]) -> Tokenizer:
    loaded = Tokenizer.from_file(str(models[minilm.NAME] / "tokenizer.json"))
    loaded.no_padding()
    loaded.no_truncation()
    return loaded


def bert(ids: list[int]) -> Floats:
    """last_hidden_state [seq, 384] of one text in float64, one head at a time."""
    weights = {k: v.astype(np.float64) for k, v in load_file(minilm.package_folder() / "model.safetensors").items()}
    erf = np.vectorize(math.erf)

    def dense(x: Floats, name: str) -> Floats:
        return np.asarray(x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"])

    def norm(x: Floats, name: str) -> Floats:
        spread = np.sqrt(x.var(axis=-1, keepdims=True) + 1e-12)
        centred = (x - x.mean(axis=-1, keepdims=True)) / spread
        return np.asarray(centred * weights[f"{name}.weight"] + weights[f"{name}.bias"])

    table = "embeddings.{}_embeddings.weight"
    x = weights[table.format("word")][ids] + weights[table.format("position")][: len(ids)]
    x = norm(x + weights[table.format("token_type")][0], "embeddings.LayerNorm")
    for index in range(6):
        layer = f"encoder.layer.{index}"
        query, key, value = (dense(x, f"{layer}.attention.self.{part}") for part in ("query", "key", "value"))
        mixed = np.zeros_like(x)
        for start in range(0, 384, 32):
            own = slice(start, start + 32)
            chances = np.exp(query[:, own] @ key[:, own].T / math.sqrt(32))
            mixed[:, own] = chances / chances.sum(axis=1, keepdims=True) @ value[:, own]
        x = norm(x + dense(mixed, f"{layer}.attention.output.dense"), f"{layer}.attention.output.LayerNorm")
        wide = dense(x, f"{layer}.intermediate.dense")
        wide = 0.5 * wide * (1.0 + erf(wide / math.sqrt(2.0)))
        x = norm(x + dense(wide, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return x


def run(encoder: runtime.Session, rows: list[list[int]]) -> list[NDArray[np.float32]]:
    """last_hidden_state of each row of one right-padded batch, without the padding."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = row
        mask[index, : len(row)] = 1
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    (hidden,) = encoder.run(["last_hidden_state"], feeds)
    return [hidden[index, : len(row)] for index, row in enumerate(rows)]


def cosine(one: NDArray[Any], other: NDArray[Any]) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


def test_each_token_equals_the_reference(encoder: runtime.Session, tokenizer: Tokenizer) -> None:
    rows = [tokenizer.encode(text).ids for text in TEXTS]
    for row, hidden in zip(rows, run(encoder, rows), strict=True):
        expected = bert(row)
        assert all(cosine(a, b) >= 0.9999 for a, b in zip(hidden, expected, strict=True))
        np.testing.assert_allclose(hidden, expected, atol=2e-4)


def test_a_batch_equals_the_texts_alone(encoder: runtime.Session, tokenizer: Tokenizer) -> None:
    rows = [tokenizer.encode(text).ids for text in TEXTS]
    for together, row in zip(run(encoder, rows), rows, strict=True):
        np.testing.assert_allclose(together, run(encoder, [row])[0], atol=1e-4)


def test_a_paraphrase_is_nearer_than_a_stranger(encoder: runtime.Session, tokenizer: Tokenizer) -> None:
    food, meal, stocks, _ = (h.mean(axis=0) for h in run(encoder, [tokenizer.encode(t).ids for t in TEXTS]))
    assert cosine(food, meal) > 0.6 > 0.2 > cosine(food, stocks)


def test_the_longest_text_runs(encoder: runtime.Session) -> None:
    assert run(encoder, [[101, *[2003] * 510, 102]])[0].shape == (512, 384)


def test_the_folder_is_the_published_one(models: dict[str, Path]) -> None:
    folder = models[minilm.NAME]
    source = minilm.package_folder()
    for name in minilm.SIDE_FILES:
        assert (folder / name).read_bytes() == (source / name).read_bytes()
    kinds = [part["type"].rsplit(".", 1)[-1] for part in json.loads((folder / "modules.json").read_text())]
    assert kinds == ["Transformer", "Pooling", "Normalize"]
