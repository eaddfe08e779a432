"""Quantiles of what was measured."""

import math
from collections.abc import Iterable


def quantile(values: Iterable[float], share: float) -> float | None:
    """The nearest-rank quantile (a value that was measured, never one in between); None of nothing."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def median(values: Iterable[float]) -> float | None:
    """The middle value, or the mean of the two in the middle; None of nothing."""
    ordered = sorted(values)
    if not ordered:
        return None
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def minus(left: float | None, right: float | None) -> float | None:
    """left - right; None where one of them is not known."""
    return None if left is None or right is None else left - right


def ratio(left: float | None, right: float | None) -> float | None:
    """left / right; None where one of them is not known or right is 0."""
    return None if left is None or not right else left / right
