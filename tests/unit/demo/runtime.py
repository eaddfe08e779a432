"""ONNX Runtime on the demo models, and a decoder's forward pass in NumPy that shares nothing with the builder."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import numpy_helper

Floats = NDArray[np.float32]
Session: TypeAlias = onnxruntime.InferenceSession
LAYERS, HEADS, HEAD_DIM = 2, 4, 64


def session(folder: Path) -> Session:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])


@dataclass
class Cached:
    """A batch being decoded: the cache, its mask, and how many real tokens each row has."""

    session: Session
    mask: NDArray[np.int64]
    lengths: NDArray[np.int64]
    cache: dict[str, Floats] = field(default_factory=dict)

    @classmethod
    def empty(cls, session: Session, rows: int) -> "Cached":
        cache = {
            f"past_key_values.{layer}.{part}": np.zeros((rows, HEADS, 0, HEAD_DIM), np.float32)
            for layer in range(LAYERS)
            for part in ("key", "value")
        }
        return cls(session, np.zeros((rows, 0), np.int64), np.zeros(rows, np.int64), cache)

    def step(self, ids: NDArray[np.int64], real: NDArray[np.int64]) -> Floats:
        """Run ``ids`` [batch, seq], of which ``real`` (1 or 0) are tokens at the left, and keep the cache."""
        places = self.lengths[:, None] + np.minimum(np.arange(ids.shape[1]), np.maximum(real.sum(1) - 1, 0)[:, None])
        self.mask = np.concatenate([self.mask, real], axis=1)
        self.lengths = self.lengths + real.sum(1)
        feeds = {"input_ids": ids, "attention_mask": self.mask, "position_ids": places, **self.cache}
        names = [f"present.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
        logits, *presents = self.session.run(["logits", *names], feeds)
        self.cache = {f"past_key_values{n.removeprefix('present')}": p for n, p in zip(names, presents, strict=True)}
        return np.asarray(logits)


def generate(session: Session, prompts: Sequence[list[int]], limit: int, end: int) -> list[list[int]]:
    """Greedy answers to all prompts in one right-padded batch, each with its end token if it came."""
    width = max(len(prompt) for prompt in prompts)
    ids = np.zeros((len(prompts), width), np.int64)
    real = np.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
        real[row, : len(prompt)] = 1
    state = Cached.empty(session, len(prompts))
    logits = state.step(ids, real)
    token = logits[np.arange(len(prompts)), real.sum(1) - 1].argmax(-1)
    answers: list[list[int]] = [[] for _ in prompts]
    for _ in range(limit):
        for answer, now in zip(answers, token, strict=True):
            if not answer or answer[-1] != end:
                answer.append(int(now))
        if all(answer[-1] == end for answer in answers):
            break
        token = state.step(token[:, None], np.ones((len(prompts), 1), np.int64))[:, -1].argmax(-1)
    return answers


def reference_logits(folder: Path, ids: Sequence[int]) -> NDArray[np.float64]:
    """The decoder in float64 without a cache, from the weights in the file: logits [seq, vocabulary]."""
    model = onnx.load(str(folder / "model.onnx"))
    weights = {w.name: numpy_helper.to_array(w).astype(np.float64) for w in model.graph.initializer}
    x = weights["tokens"][list(ids)] + weights["positions"][: len(ids)]
    for layer in range(LAYERS):
        mixed = np.zeros((len(ids), HEADS * HEAD_DIM))
        query, key, value = (x @ weights[f"layer_{layer}.{part}_weight"] for part in ("query", "key", "value"))
        for head in range(HEADS):
            own = slice(head * HEAD_DIM, (head + 1) * HEAD_DIM)
            for row in range(len(ids)):
                scores = key[: row + 1, own] @ query[row, own] / np.sqrt(HEAD_DIM)
                chances = np.exp(scores - scores.max())
                mixed[row, own] = chances @ value[: row + 1, own] / chances.sum()
        x = x + mixed @ weights[f"layer_{layer}.output_weight"]
    question = x[:, 576:768]
    question = question / np.maximum(np.linalg.norm(question, axis=1, keepdims=True), 1e-3)
    nearness = question @ weights["memory_keys"] + weights["memory_bias"]
    chosen = np.exp(nearness - nearness.max(1, keepdims=True))
    x = x + chosen / chosen.sum(1, keepdims=True) @ weights["memory_values"]
    features = np.maximum(x @ weights["hidden_weight"] + weights["hidden_bias"], 0.0)
    return np.asarray(features @ weights["readout"])
