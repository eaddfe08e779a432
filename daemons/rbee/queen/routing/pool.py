"""The workers of one model, the least loaded first: an index, so that thousands cost a choice no more than a few."""

import heapq
import itertools
from collections.abc import Collection
from typing import Generic, TypeVar

from rbee.queen.routing.decision import Candidate, Key, Load, load, routable

C = TypeVar("C", bound=Candidate)
_SPARE = 64
_FEW = 8
"""Up to so many candidates are looked through, which costs less than to keep a heap of them in order."""
_Entry = tuple[Load, int, C]


class Pool(Generic[C]):
    """Candidates by key, and where they are many a heap of those that are free.

    ``slots`` counts those of candidates that take requests, ``turn`` is the latest of all turns. Whoever changes a
    candidate says so (:meth:`touch`, :meth:`load_changed`). An entry of the heap that a later one replaced stays until
    it comes up, or the heap has grown to four times what counts.
    """

    def __init__(self) -> None:
        self._rows: dict[Key, C] = {}
        self._open: dict[Key, tuple[int, C]] = {}  # those that take requests, and how many at once
        self._current: dict[Key, _Entry[C]] | None = None  # of those with a free slot; None where there is no heap
        self._heap: list[_Entry[C]] = []
        self._turns = itertools.count()
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
        if len(self._rows) > _FEW and self._current is None:
            self._current = {key: self._entry(one) for key, (room, one) in self._open.items() if one.in_flight < room}
            self._order(self._current)
        self.touch(worker)

    def remove(self, key: Key) -> None:
        """Leave a candidate out; nothing happens for one that is not here."""
        self._rows.pop(key, None)
        self._resize(key, 0, None)
        if len(self._rows) <= _FEW:
            self._current, self._heap = None, []
        elif self._current is not None:
            self._current.pop(key, None)

    def touch(self, worker: C) -> None:
        """Something about the candidate changed that :func:`routable` or :func:`load` look at."""
        key = worker.key
        if self._rows.get(key) is not worker:
            return
        self._resize(key, worker.slots if routable(worker) else 0, worker)
        self.load_changed(worker)

    def _resize(self, key: Key, room: int, worker: C | None) -> None:
        self.slots += room - self._open.pop(key, (0, worker))[0]
        if room and worker is not None:
            self._open[key] = (room, worker)

    def load_changed(self, worker: C) -> None:
        """Nothing of a candidate that is in here changed but what :func:`load` looks at."""
        if worker.turn > self.turn:
            self.turn = worker.turn
        if self._current is not None:
            self._sort_in(worker, self._current)

    def _sort_in(self, worker: C, current: dict[Key, _Entry[C]]) -> None:
        room, _ = self._open.get(worker.key, (0, worker))
        if worker.in_flight >= room:
            current.pop(worker.key, None)
            return
        entry = current[worker.key] = self._entry(worker)
        if len(self._heap) > 4 * len(current) + _SPARE:
            self._order(current)
        else:
            heapq.heappush(self._heap, entry)

    def _entry(self, worker: C) -> _Entry[C]:
        return (load(worker), next(self._turns), worker)

    def _order(self, current: dict[Key, _Entry[C]]) -> None:
        self._heap = list(current.values())
        heapq.heapify(self._heap)

    def any_free(self) -> bool:
        """Whether some candidate is free."""
        if self._current is not None:
            return bool(self._current)
        for room, worker in self._open.values():  # noqa: SIM110 - any() of a generator costs twice as much
            if worker.in_flight < room:
                return True
        return False

    def least(self, exclude: Collection[Key] = ()) -> C | None:
        """The free candidate with the least load that is not in ``exclude``, or None."""
        if self._current is not None:
            return self._least_of_many(self._current, exclude)
        found: C | None = None
        found_load: Load | None = None
        for key, (room, worker) in self._open.items():
            if worker.in_flight >= room or key in exclude:
                continue
            if found is None:
                found = worker
                continue
            found_load = found_load or load(found)
            its_load = load(worker)
            if its_load < found_load:
                found, found_load = worker, its_load
        return found

    def _least_of_many(self, current: dict[Key, _Entry[C]], exclude: Collection[Key]) -> C | None:
        passed: list[_Entry[C]] = []
        found: C | None = None
        while self._heap and found is None:
            entry = self._heap[0]
            key = entry[2].key
            counts = current.get(key)
            if counts is None or counts[1] != entry[1]:  # by number: where this is compiled a tuple is no one object
                heapq.heappop(self._heap)
            elif key in exclude:
                passed.append(heapq.heappop(self._heap))
            else:
                found = entry[2]
        for entry in passed:
            heapq.heappush(self._heap, entry)
        return found
