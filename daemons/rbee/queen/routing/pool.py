"""The workers of one model, the least loaded first: an index, so that thousands cost a choice no more than a few."""

import heapq
from collections.abc import Collection
from typing import Generic, TypeVar

from rbee.queen.routing.decision import Candidate, Key, Load, load, routable

C = TypeVar("C", bound=Candidate)
_SPARE = 64
_FEW = 8
"""Up to so many candidates are looked through, which costs less than to keep a heap of them in order."""


class _Entry(Generic[C]):
    """A free candidate in the heap, by a load that it had: what it has now is no less.

    ``rose`` tells that it has more now, ``counts`` is False once the entry was replaced or its candidate is not free.
    """

    __slots__ = ("_requests", "_turn", "_work", "counts", "rose", "worker")

    def __init__(self, worker: C, its_load: Load) -> None:
        self.worker = worker
        self.counts = True
        self.take_up(its_load)

    def take_up(self, its_load: Load) -> None:
        """The load that the candidate has now."""
        self._work, self._requests, self._turn = its_load
        self.rose = False

    def is_above(self, its_load: Load) -> bool:
        """Whether the entry says more than this load."""
        return its_load < (self._work, self._requests, self._turn)

    def __lt__(self, other: "_Entry[C]") -> bool:
        """Order of the heap."""
        if self._work != other._work:
            return self._work < other._work
        if self._requests != other._requests:
            return self._requests < other._requests
        return self._turn < other._turn


class Pool(Generic[C]):
    """Candidates by key, and where they are many a heap of those that are free.

    ``slots`` counts those of candidates that take requests, ``turn`` is the latest of all turns. Whoever changes a
    candidate says so (:meth:`touch`, :meth:`load_changed`). One with more to do than before moves when it comes up, so
    that a request that comes and goes moves it once. An entry that a later one replaced stays until it comes up, or the
    heap has grown to four times what counts.
    """

    def __init__(self) -> None:
        self._rows: dict[Key, C] = {}
        self._open: dict[Key, tuple[int, C]] = {}  # those that take requests, and how many at once
        self._current: dict[Key, _Entry[C]] | None = None  # of those with a free slot; None where there is no heap
        self._heap: list[_Entry[C]] = []
        self.slots = 0
        self.turn = 0.0

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self) -> Collection[C]:
        """Every candidate, in any state."""
        return self._rows.values()

    def row(self, key: Key) -> C | None:
        """The candidate of that key."""
        return self._rows.get(key)

    def put(self, worker: C) -> None:
        """Take a candidate in."""
        self._rows[worker.key] = worker
        if len(self._rows) > _FEW and self._current is None:
            free = ((key, one) for key, (room, one) in self._open.items() if one.in_flight < room)
            self._current = {key: _Entry(one, load(one)) for key, one in free}
            self._order(self._current)
        self.touch(worker)

    def remove(self, key: Key) -> None:
        """Leave a candidate out; nothing happens for one that is not here."""
        self._rows.pop(key, None)
        self._resize(key, 0, None)
        if len(self._rows) <= _FEW:
            self._current, self._heap = None, []
        elif self._current is not None:
            self._leave_out(key, self._current)

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
        key = worker.key
        room, _ = self._open.get(key, (0, worker))
        if worker.in_flight >= room:
            self._leave_out(key, current)
            return
        entry, its_load = current.get(key), load(worker)
        if entry is not None and entry.worker is worker and not entry.is_above(its_load):
            entry.rose = True
            return
        if entry is not None:
            entry.counts = False
        entry = current[key] = _Entry(worker, its_load)
        if len(self._heap) > 4 * len(current) + _SPARE:
            self._order(current)
        else:
            heapq.heappush(self._heap, entry)

    @staticmethod
    def _leave_out(key: Key, current: dict[Key, _Entry[C]]) -> None:
        entry = current.pop(key, None)
        if entry is not None:
            entry.counts = False

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
            return self._least_of_many(exclude)
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

    def _least_of_many(self, exclude: Collection[Key]) -> C | None:
        heap, passed = self._heap, list[_Entry[C]]()
        found: C | None = None
        while heap and found is None:
            entry = heap[0]
            if not entry.counts:
                heapq.heappop(heap)
            elif entry.rose:
                entry.take_up(load(entry.worker))
                heapq.heapreplace(heap, entry)
            elif exclude and entry.worker.key in exclude:
                passed.append(heapq.heappop(heap))
            else:
                found = entry.worker
        for entry in passed:
            heapq.heappush(heap, entry)
        return found
