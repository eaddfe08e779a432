"""One request that waits, the lease that it is given in the end, and the queue of its model."""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec

from rbee.queen.admission.fair import FairQueue, Priority
from rbee.queen.registry.rows import Worker
from rbee.queen.routing.decision import Key
from rbee.queen.routing.placed import Placement
from rbee.wire.deadline import Deadline
from rbee.wire.errors import RbeeError
from rbee.wire.messages import WorkerReport, WorkerState

News = Callable[[WorkerReport], None]


class Want(msgspec.Struct):
    """One request's wish for a worker of ``model``.

    ``exclude`` are workers that failed it, ``again`` puts it in front (it has been given a worker before), ``news``
    is called with the report of a worker that it waits for, and ``patient`` False refuses to wait for a cold model.
    ``client`` names who asks, ``work`` is the estimated cost in tokens, ``prefixes`` hashes of the prompt's
    beginnings, the longest first, and ``retries`` how many workers failed or refused it so far. ``shun`` is the one
    that did so last, which is taken where no other one is free.
    """

    model: str
    deadline: Deadline | None = None
    exclude: set[Key] = msgspec.field(default_factory=set)
    again: bool = False
    news: News | None = None
    patient: bool = True
    client: str = ""
    priority: Priority = Priority.INTERACTIVE
    work: float = 1.0
    prefixes: tuple[int, ...] = ()
    retries: int = 0
    shun: Key | None = None


class Lease(msgspec.Struct, eq=False):
    """One slot of one worker, held until :meth:`release`; ``placement`` says why it is that one.

    ``answered`` is set once the worker has begun to answer: its time then counts as time of service.
    """

    worker: Worker
    url: str
    want: Want
    placement: Placement
    _release: Callable[["Lease"], None]
    answered: bool = False
    taken_at: float = msgspec.field(default_factory=time.monotonic)
    _held: bool = True

    def release(self) -> None:
        """Give the slot back; the next request that waits takes it within this call."""
        if self._held:
            self._held = False
            self._release(self)


@dataclass(slots=True, eq=False)
class Waiter:
    """A request in a queue since ``began`` (monotonic seconds)."""

    want: Want
    began: float
    granted: asyncio.Future[Lease]

    def refuse(self, error: RbeeError) -> None:
        """End its wait with an error, unless it has ended."""
        if not self.granted.done():
            self.granted.set_exception(error)


@dataclass(slots=True, eq=False)
class ModelQueue:
    """What waits for one model, which starts it has seen, and why one was refused."""

    waiters: FairQueue[Waiter] = field(default_factory=FairQueue)
    tried: set[Key] = field(default_factory=set)
    refused: dict[Key, RbeeError] = field(default_factory=dict)

    @classmethod
    def of(cls, workers: Iterable[Worker]) -> "ModelQueue":
        """A new queue for the model of ``workers``; it has seen the starts that are under way."""
        return cls(tried={worker.key for worker in workers if worker.state is WorkerState.LOADING})
