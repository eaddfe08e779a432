"""Decides what one step does: which rows get a token, and how much of which prompts is read beside them. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

MOST_TOKENS = 512
"""Prompt tokens that one step reads at most: bounds the scores' memory and how long a step takes."""
LEAST_TOKENS = 4
"""Fewer tokens a step cost more in reading the weights than they gain."""
FIRST_TOKENS = 16.0
"""What is read beside decoding rows before it is known how long that takes."""
READING_SHARE = 1.3
"""Time that reading may take in a step, in decoding steps, where as many rows decode as wait to be read."""
MOST_SHARE = 8.0
"""At most so many times that where more wait than decode."""
SMOOTHING, SMOOTHING_BESIDE = 0.2, 0.02
"""Weight of a step's time in the pace: of one without reading, and of one with it, which drives weights from caches."""
SLOWEST_CHANGE, FASTEST_CHANGE = 0.7, 1.5


class RowView(NamedTuple):
    """A running row: tokens in its cache, tokens yet to be computed (at least 1), and whether it is held back."""

    key: int
    cached: int
    pending: int
    held: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """The next ``count`` tokens of a row's prompt."""

    key: int
    count: int


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Rows that get one token each, and parts of prompts to read, in ``reading_s`` seconds (None: however long)."""

    decode: tuple[int, ...]
    read: tuple[Part, ...]
    reading_s: float | None = None


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a decoding step takes here in seconds, smoothed (0: not known yet), and the tokens to read beside it.

    What a token costs to read depends on how many are read at once and on what lies before them: so ``tokens`` is not
    computed from a price, but grows and shrinks until reading takes the time that it may take.
    """

    decode_s: float = 0.0
    tokens: float = FIRST_TOKENS

    def decoded(self, seconds: float, *, alone: bool) -> "Pace":
        """The pace after a decoding step of ``seconds``, ``alone`` or with prompts read beside it."""
        if self.decode_s == 0:
            return Pace(seconds, self.tokens)
        return Pace(self.decode_s + (SMOOTHING if alone else SMOOTHING_BESIDE) * (seconds - self.decode_s), self.tokens)

    def read(self, tokens: int, seconds: float, allowed_s: float | None) -> "Pace":
        """The pace after ``tokens`` were read in ``seconds``, where ``allowed_s`` were allowed (None: no bound)."""
        if not allowed_s or (seconds < allowed_s and tokens < int(self.tokens)):
            return self  # it might have been more: that it was quick tells nothing
        change = min(FASTEST_CHANGE, max(SLOWEST_CHANGE, allowed_s / seconds))
        return Pace(self.decode_s, min(MOST_TOKENS, max(LEAST_TOKENS, self.tokens * change)))


def is_decoding(row: RowView) -> bool:
    """Whether the row needs one token's computation and then chooses."""
    return row.pending == 1 and row.cached > 0


def reading_time(decoding: int, reading: int, pace: Pace) -> float | None:
    """Seconds that reading may take in this step; None where nobody decodes, whom it would hold up.

    It grows with the square of the rows that wait for each that decodes: few are hardly held up by a few, a crowd is
    the sooner in one large batch, whose steps cost little more than a small one's.
    """
    if decoding == 0:
        return None
    return READING_SHARE * min(MOST_SHARE, max(1.0, reading / decoding) ** 2) * pace.decode_s


def plan_step(rows: Sequence[RowView], pace: Pace, *, most: int = MOST_TOKENS, whole: bool = False) -> StepPlan:
    """What to do next with ``rows``, oldest first.

    The oldest prompt comes first: the whole of it, or half of the budget where it is longer, so that long ones do not
    hold up short ones, nor short ones starve it; then come the shortest. With ``whole`` a prompt is read in one piece,
    one a step, whatever its length: for models whose results depend on how it is cut.
    """
    ready = [row for row in rows if not row.held]
    decode = tuple(row.key for row in ready if is_decoding(row))
    waiting = [row for row in ready if not is_decoding(row)]
    if whole:
        return StepPlan(decode, tuple(Part(row.key, row.pending) for row in waiting[:1]))
    allowed_s = reading_time(len(decode), len(waiting), pace)
    budget = most if allowed_s is None else min(most, int(pace.tokens))
    return StepPlan(decode, _share(waiting, budget), allowed_s)


def _share(waiting: Sequence[RowView], budget: int) -> tuple[Part, ...]:
    """Whole prompts where they fit: cut ones are read one by one, whole ones together."""
    if not waiting:
        return ()
    oldest, others = waiting[0], sorted(waiting[1:], key=lambda each: each.pending)
    counts = {oldest.key: oldest.pending if oldest.pending <= budget else max(1, budget // 2)}
    left = budget - counts[oldest.key]
    for row in others:
        if row.pending > left:
            break
        counts[row.key] = row.pending
        left -= row.pending
    counts[oldest.key] = min(oldest.pending, counts[oldest.key] + left)
    return tuple(Part(row.key, counts[row.key]) for row in waiting if row.key in counts)


def contiguous_runs(slots: Sequence[int], counts: Sequence[int], most_waste: float = 0.25) -> list[range]:
    """Cut first chunks in ascending ``slots`` into ranges of indices that are read together.

    Slots of a range follow one another, and padding to its longest count wastes at most ``most_waste`` of the whole.
    """
    runs: list[range] = []
    start = 0
    for index in range(1, len(slots) + 1):
        together = counts[start : index + 1]
        if index < len(slots) and slots[index] == slots[index - 1] + 1:
            padded = max(together) * len(together)
            if padded - sum(together) <= most_waste * padded:
                continue
        runs.append(range(start, index))
        start = index
    return runs
