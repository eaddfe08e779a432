"""Draws one token from one row of scores: temperature, min-p, top-k and top-p without sorting the vocabulary.

Every function works on one row alone and its result depends on nothing else, so a row's choice is the same whoever
shares its batch. Scores hold no NaN and no +inf; -inf leaves a token out.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Weights = NDArray[np.float32]
TokenIds = NDArray[np.int64]
LEAST_TEMPERATURE = 1e-5
_CHUNK = 64
_BLOCK = 1024
_SORTED_AT_ONCE = 2048
_BUCKETS = 2048


@dataclass(frozen=True, slots=True)
class Cut:
    """What may be drawn: ``temperature`` over 0; each of the others keeps a part of what the one before it left.

    ``min_p`` keeps the tokens at least that probable relative to the best one (0: all), ``top_k`` so many of the best
    ones (0: all, ties to the lower id), ``top_p`` the fewest of the best ones whose mass reaches it (1: all).
    """

    temperature: float = 1.0
    min_p: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


def best_tokens(scores: Scores, count: int) -> TokenIds:
    """The ids of the ``count`` best scores (at most all of them), best first, ties to the lower id."""
    size = len(scores)
    if count <= 0:
        return np.zeros(0, np.int64)
    count = min(count, size)
    chunks = size // _CHUNK
    if count * 4 <= chunks:
        # as many chunks as tokens are asked for have a best score of at least the bound, so enough tokens reach it
        bests = scores[: chunks * _CHUNK].reshape(_CHUNK, chunks).max(axis=0)
        bound = np.partition(bests, chunks - count)[chunks - count]
    else:
        bound = np.partition(scores, size - count)[size - count]
    ids = np.flatnonzero(scores > bound)
    if len(ids) < count:
        # whatever a grammar forbids has one and the same score: of like ones no more are taken than are wanted
        ids = np.concatenate((ids, np.flatnonzero(scores == bound)[: count - len(ids)]))
    return ids[np.argsort(-scores[ids], kind="stable")[:count]]


def draw(scores: Scores, best: float, cut: Cut, chance: float) -> int:
    """The token id that ``chance`` (at least 0, below 1) falls on; ``best`` is the highest score, which is finite."""
    if 0 < cut.top_k < len(scores):
        ids = best_tokens(scores, cut.top_k)
        return draw_from(ids, scores[ids], best, cut, chance)
    weights = _weights(scores, best, cut)
    if cut.top_p < 1.0:
        return _draw_nucleus(weights, cut.top_p, chance)
    return _draw_weighted(weights, chance)


def draw_from(ids: TokenIds, scores: Scores, best: float, cut: Cut, chance: float) -> int:
    """The same for the best tokens alone, given best first: ``ids`` and ``scores`` of one shape (tokens,)."""
    if 0 < cut.top_k < len(ids):
        ids, scores = ids[: cut.top_k], scores[: cut.top_k]
    weights = _weights(scores, best, cut)
    mass = weights.cumsum(dtype=np.float64)
    last = len(mass) - 1 if cut.top_p >= 1.0 else int(np.searchsorted(mass, cut.top_p * mass[-1]))
    return int(ids[_fall(mass[: last + 1], chance)])


def log_total(scores: Scores, best: float) -> float:
    """The logarithm of the sum of the exponentials of the scores."""
    return best + float(np.log(np.exp(scores - np.float32(best)).sum()))


def _weights(scores: Scores, best: float, cut: Cut) -> Weights:
    """Probabilities relative to the best token's: at most 1, and 0 for what is left out."""
    weights = scores - np.float32(best)
    with np.errstate(over="ignore"):  # far below the best is as good as nothing
        weights *= np.float32(1.0 / max(cut.temperature, LEAST_TEMPERATURE))
    np.exp(weights, out=weights)
    if cut.min_p > 0.0:
        weights *= weights >= np.float32(cut.min_p)
    return weights


def _fall(mass: NDArray[np.float64], chance: float) -> int:
    """Where ``chance`` falls in the cumulated ``mass``: never on a token without mass."""
    target = min(chance * mass[-1], np.nextafter(mass[-1], 0.0))
    return int(np.searchsorted(mass, target, side="right"))


def _draw_weighted(weights: Weights, chance: float) -> int:
    """Find the block first: cumulating the whole vocabulary costs several times as much as summing it."""
    whole = len(weights) // _BLOCK * _BLOCK
    sums = weights[:whole].reshape(-1, _BLOCK).sum(axis=1)
    mass = np.append(sums, weights[whole:].sum()).cumsum(dtype=np.float64)
    block = _fall(mass, chance)
    before = mass[block - 1] if block else 0.0
    inside = weights[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.float64)
    # the block's own sum is rounded otherwise than its cumulation
    target = min(max(chance * mass[-1] - before, 0.0), np.nextafter(inside[-1], 0.0))
    return block * _BLOCK + int(np.searchsorted(inside, target, side="right"))


def _draw_nucleus(weights: Weights, top_p: float, chance: float) -> int:
    total = float(weights.sum())
    # tokens below this have less than 1 - top_p among them all: none of them is in the nucleus
    least = max((1.0 - top_p) * total / len(weights), float(np.finfo(np.float32).tiny))
    ids = np.flatnonzero(weights >= np.float32(least))
    if len(ids) > _SORTED_AT_ONCE:
        return _draw_weighted(_nucleus(weights, ids, least, top_p * total), chance)
    ids = ids[np.argsort(-weights[ids], kind="stable")]
    mass = weights[ids].cumsum(dtype=np.float64)
    last = int(np.searchsorted(mass, top_p * total))
    return int(ids[_fall(mass[: last + 1], chance)])


def _nucleus(weights: Weights, ids: TokenIds, least: float, wanted: float) -> Weights:
    """The weights, 0 outside the nucleus whose mass is ``wanted``: only tokens about as likely as its last are sorted.

    ``ids`` are the tokens that weigh at least ``least``; the highest weight is 1.
    """
    kept, lowest = weights[ids], math.log(least)
    scaled = np.log(kept)
    scaled -= np.float32(lowest)
    scaled *= np.float32((_BUCKETS - 1) / max(-lowest, 1e-6))
    bucket = np.clip(scaled, 0, _BUCKETS - 1).astype(np.int64)
    mass = np.bincount(bucket, weights=kept, minlength=_BUCKETS)[::-1].cumsum()
    crossing = int(np.searchsorted(mass, min(wanted, mass[-1])))
    border = ids[bucket == len(mass) - 1 - crossing]
    border = border[np.argsort(-weights[border], kind="stable")]
    above = float(mass[crossing - 1]) if crossing else 0.0
    last = int(np.searchsorted(weights[border].cumsum(dtype=np.float64), wanted - above))
    last = min(last, len(border) - 1)
    inside: Weights = weights * (weights >= weights[border[last]])
    inside[border[last + 1 :]] = 0.0
    return inside
