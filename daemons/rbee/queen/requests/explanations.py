"""What the queen says of a request's way and of a worker, when she is asked why."""

import enum

import msgspec

from rbee.queen.placement.decision import Decision
from rbee.wire.messages import WorkerReport


class What(enum.StrEnum):
    """Kinds of steps."""

    PLACED = "placed"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    BROKE_OFF = "broke_off"
    DENIED = "denied"
    ANSWERS = "answers"


class Considered(msgspec.Struct, frozen=True):
    """A worker of the model at the moment of a choice: its state, requests in flight there, its slots, and its weight.

    ``work`` is what those requests were estimated to cost, in tokens.
    """

    worker: str
    state: str
    in_flight: int
    slots: int
    work: float
    weight: float


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One step ``at_ms`` after the request had come in; ``candidates`` are some of those of a choice."""

    at_ms: float
    what: What
    worker: str | None = None
    why: str = ""
    status: int | None = None
    candidates: list[Considered] = []


class Explanation(msgspec.Struct, frozen=True, tag_field="kind", tag="request"):
    """A request's way through the queen; times in ms, ``worker_ms`` from sending to the first byte of the answer."""

    correlation_id: str | None
    request_id: str | None
    caller: str | None
    route: str
    model: str
    asked: str
    arrived_unix: float
    worker: str | None
    queue_ms: float
    worker_ms: float
    overhead_ms: float | None
    total_ms: float | None
    outcome: str
    code: str | None
    steps: list[Step]


class WorkerExplanation(msgspec.Struct, frozen=True, tag_field="kind", tag="worker"):
    """Why a worker gets requests or none: its report as the queen sees it, and the latest requests that met it.

    ``placement`` is the decision that put it on its node, where this life of the queen made it. ``warm`` is what the
    warm times of its model say now, empty where it has none.
    """

    worker: WorkerReport
    routable: bool
    held: bool
    doubt: str
    hive_silent: bool
    in_flight: int
    slots: int
    served: int
    requests: list[Explanation]
    placement: Decision | None = None
    warm: str = ""
