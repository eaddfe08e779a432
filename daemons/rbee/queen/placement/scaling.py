"""How many workers of a declared model there ought to be, and which start or end for it: pure decisions."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from rbee.queen.routing.decision import Key
from rbee.wire.messages import WorkerState

CROWDED_SWEEPS = 3
"""Requests have to wait at so many looks in a row, a second apart, before a further worker is started for them."""
SURPLUS_S = 60.0
"""There have to be more than may be for so long before one ends: a node that comes and goes moves nothing."""
SPARE = 0.5
"""One worker is one too many where the others would be used up to this share of their slots."""
_NO_KEY = Key("", "")


@dataclass(frozen=True, slots=True)
class Replica:
    """One worker of the model. ``number`` counts from 1, None where it is not of the declaration.

    ``may_start``: it has ended, and a start may help. ``by_person``: it was told to stop. ``former``: an earlier
    declaration of the model started it. ``load_s``: how long its start took, None where it is not ready. ``doubtful``:
    its node was silent lately. ``reason``: its row's, of its state.
    """

    number: int | None
    state: WorkerState
    may_start: bool = False
    by_person: bool = False
    former: bool = False
    key: Key = _NO_KEY
    in_flight: int = 0
    slots: int = 1
    idle_s: float = 0.0
    ready_unix: float = 0.0
    load_s: float | None = None
    doubtful: bool = False
    reason: str = ""

    @property
    def lost(self) -> bool:
        """Whether its node has been silent for too long to count on it."""
        return self.state is WorkerState.STALE

    @property
    def up(self) -> bool:
        """Whether it serves, or is about to."""
        return not self.lost and not self.state.ended

    def stays_stopped(self, least: int) -> bool:
        """Whether a person stopped it, it being one of the ``least`` that are kept otherwise."""
        return self.by_person and self.number is not None and self.number <= least


@dataclass(frozen=True, slots=True)
class Limits:
    """How many are kept, how many there may be, and seconds after which one that is not needed ends (0: never)."""

    least: int
    most: int
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Further:
    """Start the replica ``number``; ``ended``: it ran before. ``replaces`` ends once it is ready."""

    number: int
    ended: bool = False
    replaces: Key | None = None


class Why(enum.StrEnum):
    """Why a worker ends."""

    REPLACED = "replaced"
    SURPLUS = "surplus"
    IDLE = "idle"
    MAKES_WAY = "makes_way"


@dataclass(frozen=True, slots=True)
class Drain:
    """Give the worker no more requests, and stop it when those that it has are answered."""

    key: Key
    why: Why


def further(least: int, most: int, replicas: Sequence[Replica], *, crowded: bool) -> Further | None:
    """The replica to start next so that ``least`` are up, and one more while requests wait, up to ``most``.

    Of those that are kept, one that a person stopped stays stopped and counts as being there. While one loads no
    further one is started for requests that wait: it may be what they need. One on a silent node counts for nothing,
    and its number is free for another node.
    """
    up = [replica for replica in replicas if replica.up]
    loads = any(replica.state is WorkerState.LOADING for replica in up)
    wanted = min(most, max(least, len(up) + 1)) if crowded and not loads else least
    if len(up) + sum(replica.stays_stopped(least) for replica in replicas) >= wanted:
        return None
    for number in range(1, most + 1):
        there = [replica for replica in replicas if replica.number == number and not replica.lost]
        if not there:
            return Further(number)
        if any(one.may_start and not one.stays_stopped(least) for one in there) and not any(one.up for one in there):
            return Further(number, ended=True)
    return None


def replacement(limits: Limits, replicas: Sequence[Replica]) -> Further | Drain | None:
    """What is next so that workers of the declaration take the place of those of an earlier one, one at a time.

    A new one is started beside them, once none of the declaration loads; where there are more than may be already
    (another change, or another life of the queen, came in between) one of the earlier ones ends first.
    """
    former = [one for one in replicas if one.former and one.up and one.state is not WorkerState.DRAINING]
    current = [one for one in replicas if one.number is not None and one.up]
    if not former or any(one.state is WorkerState.LOADING for one in current):
        return None
    goes = min(former, key=lambda one: (one.state.ready, one.in_flight, -one.ready_unix, one.key))
    if len(former) + len(current) > limits.most:
        others = [one for one in (*former, *current) if one is not goes]
        return Drain(goes.key, Why.REPLACED) if any(one.state.ready for one in others) else None
    taken = {one.number for one in current}
    number = next(number for number in range(1, limits.most + 1) if number not in taken)
    return Further(number, ended=any(one.number == number for one in replicas), replaces=goes.key)


def makes_way(former: Key, replicas: Sequence[Replica], *, even_the_last: bool) -> Drain | None:
    """End ``former`` before its replacement starts, which fits only in its memory: while another one serves.

    ``even_the_last``: also where none does, and requests wait for as long as the new one takes to load.
    """
    others = any(one.state.ready for one in replicas if one.key != former)
    there = any(one.key == former and one.former and one.up for one in replicas)
    return Drain(former, Why.MAKES_WAY) if there and (others or even_the_last) else None


def pressed(replicas: Sequence[Replica]) -> bool:
    """Whether the requests of this moment would fill more than their share of all ready workers but one."""
    ready = [one for one in replicas if one.state.ready]
    slots = sum(one.slots for one in ready) - max((one.slots for one in ready), default=0)
    return sum(one.in_flight for one in ready) > SPARE * slots


def surplus(limits: Limits, replicas: Sequence[Replica], *, over_s: float, quiet_s: float) -> Drain | None:
    """The worker that is one too many, if one is: past the most, or past the least and not needed.

    ``over_s`` is for how many seconds there have been more than the most, ``quiet_s`` for how many they would have
    done with one less (see :func:`pressed`). The last one ends when it has had no request itself.
    """
    ready = [one for one in replicas if one.state.ready]
    ours = [one for one in ready if one.number is not None]
    if len(ready) > limits.most:
        return _least_useful(ours, Why.SURPLUS) if over_s >= SURPLUS_S else None
    if len(ready) <= limits.least or not limits.idle_s:
        return None
    if len(ready) > 1 and quiet_s >= limits.idle_s:
        return _least_useful(ours, Why.IDLE)
    return _least_useful([one for one in ours if not one.in_flight and one.idle_s >= limits.idle_s], Why.IDLE)


def _least_useful(replicas: Sequence[Replica], why: Why) -> Drain | None:
    """Of nodes that were silent lately first, then the least busy, then the newest."""
    found = min(replicas, key=lambda one: (not one.doubtful, one.in_flight, -one.ready_unix, one.key), default=None)
    return None if found is None else Drain(found.key, why)
