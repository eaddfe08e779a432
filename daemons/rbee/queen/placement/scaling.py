"""How many workers of a declared model there ought to be: a pure decision over those that there are."""

from collections.abc import Sequence
from dataclasses import dataclass

from rbee.wire.messages import WorkerState

CROWDED_SWEEPS = 3
"""Requests have to wait at so many looks in a row, a second apart, before a further worker is started for them."""
_ENDED = (WorkerState.STOPPED, WorkerState.FAILED)


@dataclass(frozen=True, slots=True)
class Replica:
    """One worker of the model. ``number`` counts from 1, None where it is not of the declaration.

    ``may_start``: it has ended, and a start may help. ``by_person``: it was told to stop.
    """

    number: int | None
    state: WorkerState
    may_start: bool = False
    by_person: bool = False

    @property
    def up(self) -> bool:
        """Whether it serves, or is about to; a silent node is given the time until its workers are dropped."""
        return self.state not in _ENDED

    def stays_stopped(self, least: int) -> bool:
        """Whether a person stopped it, it being one of the ``least`` that are kept otherwise."""
        return self.by_person and self.number is not None and self.number <= least


@dataclass(frozen=True, slots=True)
class Further:
    """Start the replica ``number``; ``ended``: it ran before."""

    number: int
    ended: bool = False


def further(least: int, most: int, replicas: Sequence[Replica], *, crowded: bool) -> Further | None:
    """The replica to start next so that ``least`` are up, and one more while requests wait, up to ``most``.

    Of those that are kept, one that a person stopped stays stopped and counts as being there. While one loads no
    further one is started for requests that wait: it may be what they need.
    """
    up = [replica for replica in replicas if replica.up]
    loads = any(replica.state is WorkerState.LOADING for replica in up)
    wanted = min(most, max(least, len(up) + 1)) if crowded and not loads else least
    if len(up) + sum(replica.stays_stopped(least) for replica in replicas) >= wanted:
        return None
    for number in range(1, most + 1):
        there = [replica for replica in replicas if replica.number == number]
        if not there:
            return Further(number)
        if any(one.may_start and not one.stays_stopped(least) for one in there) and not any(one.up for one in there):
            return Further(number, ended=True)
    return None
