"""Where a request was placed and why, with some of its model's workers as they were at that moment."""

import msgspec

from rbee.queen.routing.decision import Candidate, Key, Reason
from rbee.wire.messages import WorkerState


class Seen(msgspec.Struct, frozen=True, gc=False):
    """One worker of the model at the moment in which a request was placed."""

    key: Key
    state: WorkerState
    in_flight: int
    slots: int
    work: float
    weight: float

    @classmethod
    def of(cls, worker: Candidate) -> "Seen":
        """The worker as it is now."""
        return cls(worker.key, worker.state, worker.in_flight, worker.slots, worker.work, worker.weight)


MOST_SEEN = 4


class Placement(msgspec.Struct, frozen=True, gc=False):
    """Where a request was sent and why: ``considered`` are at most four of the model's ``workers`` as they were.

    ``waited_ms`` is its time in the queue, ``retries`` how many workers had failed or refused it before, and ``work``
    its estimated cost in tokens.
    """

    chosen: Key
    reason: Reason
    considered: tuple[Seen, ...]
    workers: int
    work: float
    waited_ms: float
    retries: int
