"""Which report is newer: the order of reports within one life of a hive, and of its lives among one another.

A life is a ``boot_id``. Within the current life a report counts when its revision is higher than the one known. A
life never seen wins over the current one, which is superseded for good; what still comes from a superseded life is
late mail.
"""

import enum
from collections import deque
from dataclasses import dataclass, field

REMEMBERED_LIVES = 64
"""Superseded lives that are remembered for each hive: more than the restarts that could have mail under way."""


class Verdict(enum.StrEnum):
    """What to do with a message."""

    NEW_LIFE = "new life"
    NEWER = "newer"
    SAME = "same"
    OLDER = "older"
    SUPERSEDED = "superseded"

    @property
    def counts(self) -> bool:
        """Whether the message changes what is known."""
        return self in (Verdict.NEW_LIFE, Verdict.NEWER)


@dataclass(slots=True)
class Lives:
    """The lives of one hive: the current one, and those that it superseded."""

    current: str | None = None
    superseded: deque[str] = field(default_factory=lambda: deque(maxlen=REMEMBERED_LIVES))

    def enter(self, boot_id: str) -> Verdict:
        """Take note of a message from ``boot_id``: NEW_LIFE (it is the current one now), SAME, or SUPERSEDED."""
        if boot_id == self.current:
            return Verdict.SAME
        if boot_id in self.superseded:
            return Verdict.SUPERSEDED
        if self.current is not None:
            self.superseded.append(self.current)
        self.current = boot_id
        return Verdict.NEW_LIFE


def judge(known: int | None, revision: int) -> Verdict:
    """Compare a revision with the one known in the same life (None: nothing is known)."""
    if known is None or revision > known:
        return Verdict.NEWER
    return Verdict.SAME if revision == known else Verdict.OLDER
