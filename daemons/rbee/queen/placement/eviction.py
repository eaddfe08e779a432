"""Which idle workers end so that another one fits: a pure decision."""

from collections.abc import Sequence
from dataclasses import dataclass

from rbee.queen.placement.decision import Decision, Obstacle

_SHORT = (Obstacle.RAM, Obstacle.VRAM)


@dataclass(frozen=True, slots=True)
class Idle:
    """A worker that may end: where it is, the bytes that it holds, seconds without a request and to load it again."""

    node: str
    worker_id: str
    device: int | None
    held_bytes: int
    idle_s: float
    load_s: float

    @property
    def worth(self) -> float:
        """What its end costs: the longer it has been idle, and the sooner it is back, the less."""
        return max(self.load_s, 0.1) / max(self.idle_s, 1.0)


def wants_memory(decision: Decision) -> bool:
    """Whether there is no place, and one has too little memory: what workers that end may change."""
    return decision.chosen is None and any(option.obstacle in _SHORT for option in decision.options)


def make_room(decision: Decision, idle: Sequence[Idle]) -> list[Idle]:
    """The workers that end, on the place where that costs least; empty where no place gets room by it."""
    plans = []
    for option in decision.options:
        if option.obstacle in _SHORT and option.required_bytes is not None:
            there = [one for one in idle if (one.node, one.device) == (option.node, option.device)]
            plans.append(_plan(option.required_bytes - option.available_bytes, there))
    return min((plan for plan in plans if plan), key=lambda plan: sum(one.worth for one in plan), default=[])


def _plan(short_bytes: int, idle: Sequence[Idle]) -> list[Idle]:
    """The least worth of ``idle`` that hold what is short, none of them in vain; empty where all are not enough."""
    plan: list[Idle] = []
    for one in sorted(idle, key=lambda one: (one.worth, one.worker_id)):
        if short_bytes > 0 and one.held_bytes > 0:
            plan.append(one)
            short_bytes -= one.held_bytes
    if short_bytes > 0:
        return []
    for one in sorted(plan, key=lambda one: -one.worth):
        if one.held_bytes <= -short_bytes:
            plan.remove(one)
            short_bytes += one.held_bytes
    return plan
