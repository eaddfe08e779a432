"""Chooses the next token from a model's scores: greedy, or by temperature, top-k and top-p with a seed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """``temperature`` 0 is greedy. ``top_k`` 0 and ``top_p`` 1 leave every token in. ``seed`` None draws afresh."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


def default_sampling(generation_config: Mapping[str, Any]) -> SamplingParams:
    """What a model's generation_config.json asks for where a request does not say; ``do_sample`` false is greedy."""
    if generation_config.get("do_sample") is False:
        return SamplingParams(temperature=0.0)
    temperature, top_p = generation_config.get("temperature"), generation_config.get("top_p")
    top_k = generation_config.get("top_k")
    return SamplingParams(
        temperature=float(temperature) if isinstance(temperature, int | float) and temperature >= 0 else 1.0,
        top_p=float(top_p) if isinstance(top_p, int | float) and 0 < top_p <= 1 else 1.0,
        top_k=top_k if isinstance(top_k, int) and top_k >= 0 else 0,
    )


class Sampler:
    """The choice of one request: its parameters and its own random stream, so that a seed gives the same text."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._random = np.random.Generator(np.random.PCG64(params.seed))

    def choose(self, scores: Scores) -> int:
        """The next token's id from ``scores`` (vocabulary,)."""
        if self._params.temperature == 0.0:
            return int(scores.argmax())
        probabilities = distribution(scores, self._params)
        cumulated = probabilities.cumsum()
        drawn = self._random.random() * cumulated[-1]
        return int(min(np.searchsorted(cumulated, drawn, side="right"), len(scores) - 1))


def distribution(scores: Scores, params: SamplingParams) -> NDArray[np.float64]:
    """Probabilities after temperature, top-k, then top-p (the smallest set whose mass reaches it); sum 1."""
    scaled = scores.astype(np.float64) / max(params.temperature, 1e-5)
    if 0 < params.top_k < len(scaled):
        threshold = np.partition(scaled, -params.top_k)[-params.top_k]
        scaled = np.where(scaled < threshold, -np.inf, scaled)
    weights: NDArray[np.float64] = np.exp(scaled - scaled.max())
    weights /= weights.sum()
    if params.top_p < 1.0:
        order = np.argsort(-weights, kind="stable")
        mass = weights[order].cumsum()
        dropped = order[1:][mass[:-1] >= params.top_p]
        weights[dropped] = 0.0
        weights /= weights.sum()
    return weights
