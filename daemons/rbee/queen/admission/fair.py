"""A queue that is fair between clients: two priorities, and in each the client that has had the least goes next.

Start-time fair queueing (Goyal, Vin and Cheng 1996) over clients: each has a virtual time that grows by the work of
what it was given; the one with the least goes next, and one that comes back after a pause starts at the present time,
not where it left. A client with a thousand requests so delays another by one of them, not by a thousand.
"""

import enum
import heapq
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
_SPARE = 16
BATCH_EVERY = 8
"""Where both priorities wait, one in so many goes to batch: it waits long and never for ever."""


class Priority(enum.StrEnum):
    """Who goes first: a person who waits, or work that nobody watches."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(slots=True, eq=False)
class Ticket(Generic[T]):
    """One place in the queue: ``work`` is what it will cost, ``weight`` the share of its client."""

    item: T
    client: str
    priority: Priority
    work: float
    weight: float = 1.0
    waits: bool = True


@dataclass(slots=True, eq=False)
class _Lane(Generic[T]):
    """One priority: clients that wait in a heap of virtual times, each with its requests in order of arrival."""

    now: float = 0.0
    waiting: int = 0
    times: dict[str, float] = field(default_factory=dict)
    lines: dict[str, deque[Ticket[T]]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    heap: list[tuple[float, int, str]] = field(default_factory=list)
    turns: Iterator[int] = field(default_factory=itertools.count)

    def push(self, ticket: Ticket[T]) -> None:
        line = self.lines.get(ticket.client)
        if line is None:
            line = self.lines[ticket.client] = deque()
            began = max(self.now, self.times.get(ticket.client, 0.0))
            heapq.heappush(self.heap, (began, next(self.turns), ticket.client))
        line.append(ticket)
        self.waiting += 1
        self.counts[ticket.client] = self.counts.get(ticket.client, 0) + 1

    def pop(self) -> Ticket[T] | None:
        while self.heap:
            began, _, client = heapq.heappop(self.heap)
            line = self.lines[client]
            while line and not line[0].waits:
                line.popleft()
            if not line:
                del self.lines[client]
                continue
            ticket = line.popleft()
            self.now = began
            after = began + ticket.work / ticket.weight
            if line:
                heapq.heappush(self.heap, (after, next(self.turns), client))
            else:
                del self.lines[client]
                self._note(client, after)
            self.forget(ticket)
            return ticket
        return None

    def _note(self, client: str, after: float) -> None:
        """Keep the time of a client that has nothing more here, until the present has passed it."""
        self.times[client] = after
        if len(self.times) > 2 * len(self.lines) + 64:
            self.times = {name: at for name, at in self.times.items() if at > self.now}

    def forget(self, ticket: Ticket[T]) -> None:
        ticket.waits = False
        self.waiting -= 1
        self.counts[ticket.client] -= 1
        if not self.counts[ticket.client]:
            del self.counts[ticket.client]
        self._shrink(ticket.client)

    def _shrink(self, client: str) -> None:
        """Let go of places that were given up: while nothing is popped they would pile up in the client's line."""
        line = self.lines.get(client)
        if line is not None and len(line) > 2 * self.counts.get(client, 0) + _SPARE:
            self.lines[client] = deque(ticket for ticket in line if ticket.waits)

    def last_of(self, client: str) -> Ticket[T] | None:
        return next((ticket for ticket in reversed(self.lines.get(client, ())) if ticket.waits), None)


class FairQueue(Generic[T]):
    """What waits for one model. Items that were placed before (``first``) go ahead of everything."""

    def __init__(self) -> None:
        self._first: deque[Ticket[T]] = deque()
        self._lanes: dict[Priority, _Lane[T]] = {priority: _Lane() for priority in Priority}
        self._turn = 0

    def __len__(self) -> int:
        return sum(ticket.waits for ticket in self._first) + sum(lane.waiting for lane in self._lanes.values())

    def __iter__(self) -> Iterator[T]:
        """Every item that waits, in no particular order."""
        yield from (ticket.item for ticket in self._first if ticket.waits)
        for lane in self._lanes.values():
            yield from (ticket.item for line in lane.lines.values() for ticket in line if ticket.waits)

    def waiting(self, priority: Priority) -> int:
        """How many of that priority wait."""
        return self._lanes[priority].waiting

    def push(self, ticket: Ticket[T], *, first: bool = False) -> None:
        """Take a place at the end of the client's line, or ahead of everybody."""
        if first:
            self._first.append(ticket)
        else:
            self._lanes[ticket.priority].push(ticket)

    def pop(self) -> Ticket[T] | None:
        """The next one, out of the queue; None when nothing waits."""
        while self._first:
            ticket = self._first.popleft()
            if ticket.waits:
                ticket.waits = False
                return ticket
        interactive, batch = self._lanes[Priority.INTERACTIVE], self._lanes[Priority.BATCH]
        if batch.waiting and interactive.waiting:
            self._turn = (self._turn + 1) % BATCH_EVERY
            return (interactive if self._turn else batch).pop()
        return interactive.pop() or batch.pop()

    def restore(self, tickets: list[Ticket[T]]) -> None:
        """Put back, ahead of everybody and in their order, what was popped and could not be placed."""
        for ticket in reversed(tickets):
            ticket.waits = True
            self._first.appendleft(ticket)

    def discard(self, ticket: Ticket[T]) -> None:
        """Give a place up; nothing happens for one that waits no more."""
        if not ticket.waits:
            return
        if any(one is ticket for one in self._first):
            self._first.remove(ticket)
            ticket.waits = False
        else:
            self._lanes[ticket.priority].forget(ticket)

    def ahead(self, client: str, priority: Priority) -> int:
        """How many go before one more request of the client: its own, and as many of each other that waits."""
        lane = self._lanes[priority]
        mine = lane.counts.get(client, 0)
        others = sum(min(count, mine + 1) for name, count in lane.counts.items() if name != client)
        sooner = self.waiting(Priority.INTERACTIVE) if priority is Priority.BATCH else 0
        return len(self._first) + mine + others + sooner

    def victim(self, client: str, priority: Priority) -> Ticket[T] | None:
        """Whose place one more request of the client should have when the queue is full; None where it has no claim.

        The latest of the client that has the most: of batch before interactive ones, and of the same priority only
        where that client has at least two more than this one.
        """
        batch, lane = self._lanes[Priority.BATCH], self._lanes[priority]
        if priority is Priority.INTERACTIVE and batch.waiting:
            return batch.last_of(max(batch.counts, key=batch.counts.__getitem__))
        greedy = max(lane.counts, key=lane.counts.__getitem__, default=None)
        if greedy is None or lane.counts[greedy] < lane.counts.get(client, 0) + 2:
            return None
        return lane.last_of(greedy)
