"""The workers of one model, the least loaded first: an index, so that thousands cost a choice no more than a few."""

import heapq
import itertools
from collections.abc import Collection
from typing import Generic, TypeVar

from rbee.queen.routing import Candidate, Key, Load, load, routable

C = TypeVar("C", bound=Candidate)
_SPARE = 64
_FEW = 8
"""Up to so many candidates are looked through, which costs less than to keep a heap of them in order."""


class Pool(Generic[C]):
    """Candidates by key, and a heap of those that are free.

    ``slots`` counts those of candidates that take requests, ``turn`` is the latest of all turns. Whoever changes a
    candidate says so (:meth:`touch`). An entry of the heap that a later one replaced stays until it comes up, or the
    heap has grown to four times what counts.
    """

    def __init__(self) -> None:
        self._rows: dict[Key, C] = {}
        self._current: dict[Key, tuple[Load, int, C]] = {}
        self._heap: list[tuple[Load, int, C]] = []
        self._turns = itertools.count()
        self._room: dict[Key, int] = {}
        self.slots = 0
        self.turn = 0.0

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self) -> Collection[C]:
        """Every candidate, in any state."""
        return self._rows.values()

    def put(self, worker: C) -> None:
        """Take a candidate in."""
        self._rows[worker.key] = worker
        self.touch(worker)

    def remove(self, key: Key) -> None:
        """Leave a candidate out; nothing happens for one that is not here."""
        self._rows.pop(key, None)
        self._current.pop(key, None)
        self.slots -= self._room.pop(key, 0)

    def touch(self, worker: C) -> None:
        """Something about the candidate changed that :func:`routable` or :func:`load` look at."""
        key = worker.key
        if self._rows.get(key) is not worker:
            return
        self.turn = max(self.turn, worker.turn)
        room = worker.slots if routable(worker) else 0
        known = self._room.get(key, 0)
        if room != known:
            self.slots += room - known
            self._room[key] = room
        if worker.in_flight >= room:
            self._current.pop(key, None)
            return
        entry = (load(worker), next(self._turns), worker)
        self._current[key] = entry
        if len(self._rows) <= _FEW:
            self._heap.clear()
        elif not self._heap or len(self._heap) > 4 * len(self._current) + _SPARE:
            self._heap = list(self._current.values())
            heapq.heapify(self._heap)
        else:
            heapq.heappush(self._heap, entry)

    def least(self, exclude: Collection[Key] = ()) -> C | None:
        """The free candidate with the least load that is not in ``exclude``, or None."""
        if len(self._rows) <= _FEW:
            free = [entry for key, entry in self._current.items() if key not in exclude]
            return min(free)[2] if free else None
        return self._least_of_many(exclude)

    def _least_of_many(self, exclude: Collection[Key]) -> C | None:
        if not self._heap:  # there were few until now
            self._heap = list(self._current.values())
            heapq.heapify(self._heap)
        passed: list[tuple[Load, int, C]] = []
        found: C | None = None
        while self._heap and found is None:
            entry = self._heap[0]
            key = entry[2].key
            if self._current.get(key) is not entry:
                heapq.heappop(self._heap)
            elif key in exclude:
                passed.append(heapq.heappop(self._heap))
            else:
                found = entry[2]
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return found
