"""Which tokens a text has used, and what its scores lose by it."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rbee.worker.engine.distribution import Scores

LEAST_REPETITION, MOST_REPETITION = 0.01, 10.0
"""The repetition penalties that are honoured: a smaller one divides a score past what a float holds."""
_FIRST_ROOM = 64


@dataclass(frozen=True, slots=True)
class Penalties:
    """``repetition`` divides a positive score and multiplies a negative one, for tokens of prompt and answer.

    ``presence`` is taken once, and ``frequency`` once a use, from the scores of the answer's own tokens.
    """

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0

    def __bool__(self) -> bool:
        return self.repetition != 1.0 or self.presence != 0.0 or self.frequency != 0.0


class UsedTokens:
    """The tokens of one text, each once, with how often the answer used it."""

    def __init__(self, penalties: Penalties, prompt: Iterable[int]) -> None:
        self._penalties = penalties
        self._place: dict[int, int] = {}
        self._ids: NDArray[np.int64] = np.zeros(_FIRST_ROOM, np.int64)
        self._uses: NDArray[np.float32] = np.zeros(_FIRST_ROOM, np.float32)
        if penalties.repetition != 1.0:
            for token in prompt:
                self._place_of(token)

    def add(self, token: int) -> None:
        """The answer used ``token``."""
        self._uses[self._place_of(token)] += 1

    def apply(self, scores: Scores) -> None:
        """Lower the scores of the used tokens, in place."""
        size = len(self._place)
        known = self._ids[:size] < len(scores)
        ids, uses = self._ids[:size][known], self._uses[:size][known]
        values = scores[ids]
        factor = np.float32(self._penalties.repetition)
        with np.errstate(over="ignore"):  # what overflows is told of by who chooses
            values = np.where(values > 0, values / factor, values * factor)
        values -= np.float32(self._penalties.frequency) * uses + np.float32(self._penalties.presence) * (uses > 0)
        scores[ids] = values

    def _place_of(self, token: int) -> int:
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
            self._uses = np.concatenate((self._uses, np.zeros_like(self._uses)))
        self._ids[place] = token
        return place
