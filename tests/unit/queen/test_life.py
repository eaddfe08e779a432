"""How a declared model's workers are replaced, and ended where they are too many: the decisions on their own."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.queen.placement.life import REPLACE_AGAIN_S, Failed, Life
from rbee.queen.placement.scaling import (
    SURPLUS_S,
    Drain,
    Further,
    Limits,
    Replica,
    Why,
    makes_way,
    replacement,
    surplus,
)
from rbee.queen.routing.decision import Key
from rbee.wire.messages import WorkerState

IDLE, LOADING, STALE, FAILED = WorkerState.IDLE, WorkerState.LOADING, WorkerState.STALE, WorkerState.FAILED
DRAINING = WorkerState.DRAINING
LIMIT_S = 60.0


def new(number: int, state: WorkerState = IDLE, node: str = "a", **more: object) -> Replica:
    return Replica(number, state, key=Key(node, f"new-{number}"), **more)  # type: ignore[arg-type]


def old(number: int, state: WorkerState = IDLE, node: str = "a", **more: object) -> Replica:
    return Replica(None, state, former=True, key=Key(node, f"old-{number}"), **more)  # type: ignore[arg-type]


FOREIGN = Replica(None, IDLE, key=Key("a", "mine"))


@pytest.mark.parametrize(
    ("limits", "replicas", "next_one"),
    [
        (Limits(1, 1), [old(1)], Further(1, replaces=old(1).key)),
        (Limits(0, 3), [old(1), old(2, in_flight=1)], Further(1, replaces=old(1).key)),
        (Limits(0, 3), [old(1), old(2, LOADING)], Further(1, replaces=old(2).key)),
        (Limits(1, 2), [old(1), new(1)], Further(2, replaces=old(1).key)),
        (Limits(1, 1), [old(1), new(1)], Drain(old(1).key, Why.REPLACED)),
        (Limits(1, 1), [old(1), new(1, LOADING)], None),
        (Limits(1, 1), [old(1), new(1, WorkerState.UNHEALTHY)], None),
        (Limits(1, 1), [old(1), new(1, FAILED)], Further(1, ended=True, replaces=old(1).key)),
        (Limits(1, 1), [old(1, STALE)], None),
        (Limits(1, 1), [old(1, DRAINING), new(1)], None),
        (
            Limits(1, 1),
            [old(1), Replica(None, IDLE, former=True, key=Key("b", "older"))],
            Drain(old(1).key, Why.REPLACED),
        ),
        (Limits(1, 1), [FOREIGN], None),
    ],
)
def test_what_takes_the_place_of_a_former_one(
    limits: Limits, replicas: list[Replica], next_one: Further | Drain | None
) -> None:
    assert replacement(limits, replicas) == next_one


@pytest.mark.parametrize(
    ("limits", "replicas", "over_s", "quiet_s", "goes"),
    [
        (Limits(1, 1, LIMIT_S), [new(1), new(1, node="b")], SURPLUS_S - 1, 0.0, None),
        (Limits(1, 1, LIMIT_S), [new(1, ready_unix=1.0), new(1, node="b", ready_unix=2.0)], SURPLUS_S, 0.0, "b"),
        (Limits(1, 1, LIMIT_S), [new(1, doubtful=True), new(1, node="b", ready_unix=2.0)], SURPLUS_S, 0.0, "a"),
        (Limits(1, 1, LIMIT_S), [new(1), FOREIGN], SURPLUS_S, 0.0, "a"),
        (Limits(1, 3, LIMIT_S), [new(1), new(2, node="b", ready_unix=2.0)], 0.0, LIMIT_S - 1, None),
        (Limits(1, 3, LIMIT_S), [new(1), new(2, node="b", ready_unix=2.0)], 0.0, LIMIT_S, "b"),
        (Limits(1, 3, 0.0), [new(1), new(2, node="b")], 0.0, 1e6, None),
        (Limits(1, 3, LIMIT_S), [new(1, idle_s=1e6)], 0.0, 1e6, None),
        (Limits(0, 3, LIMIT_S), [new(1, idle_s=LIMIT_S - 1)], 0.0, 1e6, None),
        (Limits(0, 3, LIMIT_S), [new(1, idle_s=LIMIT_S)], 0.0, 0.0, "a"),
        (Limits(0, 3, LIMIT_S), [new(1, idle_s=LIMIT_S, in_flight=1)], 0.0, 0.0, None),
    ],
)
def test_which_one_is_too_many(
    limits: Limits, replicas: list[Replica], over_s: float, quiet_s: float, goes: str | None
) -> None:
    found = surplus(limits, replicas, over_s=over_s, quiet_s=quiet_s)
    assert (None if found is None else found.key.hive_id) == goes


def test_a_replacement_that_fails_stops_and_is_tried_again_much_later() -> None:
    life, limits = Life(), Limits(1, 2, LIMIT_S)
    assert life.step(limits, [old(1), old(2)], 0.0) == Further(1, replaces=old(1).key)
    assert life.step(limits, [old(1), old(2), new(1, LOADING)], 1.0) is None
    assert life.step(limits, [old(1), old(2), new(1, FAILED, reason="exit 78")], 2.0) == Failed("exit 78")
    assert life.failed(2.0, "it did not come up")
    assert life.stuck and "go on" in life.problem
    stuck = [old(1), old(2), new(1, FAILED)]
    assert life.step(limits, stuck, 3.0 + REPLACE_AGAIN_S / 2) is None
    again = life.step(limits, stuck, 3.0 + REPLACE_AGAIN_S)
    assert isinstance(again, Further) and again.ended
    life.renew()
    assert not life.stuck and life.problem == ""


def test_load_that_needs_all_of_them_keeps_all() -> None:
    life, limits = Life(), Limits(1, 2, LIMIT_S)
    busy = [new(1, slots=4, in_flight=2), new(2, slots=4, in_flight=1)]
    quiet = [new(1, slots=4, in_flight=1), new(2, slots=4, in_flight=1)]
    for second in range(200):
        life.look(limits, busy, float(second), 0)
        assert life.step(limits, busy, float(second)) is None
    for second in range(200, 200 + int(LIMIT_S) - 1):
        life.look(limits, quiet, float(second), 0)
        assert life.step(limits, quiet, float(second)) is None
    life.look(limits, quiet, 260.0, 0)
    assert life.step(limits, quiet, 260.0) == Drain(new(1).key, Why.IDLE)


@dataclass
class Row:
    version: int
    number: int
    node: str
    state: WorkerState
    until: int
    made: int


@dataclass
class Fleet:
    """Two nodes, the workers of one model, and a clock: what a queen's orders do after two seconds."""

    limits: Limits
    life: Life = field(default_factory=Life)
    rows: list[Row] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    back: dict[str, int] = field(default_factory=dict)
    version: int = 0
    broken: bool = False
    now: int = 0
    orders: int = 0

    def replicas(self) -> list[Replica]:
        return [
            Replica(
                row.number if row.version == self.version else None,
                STALE if row.node in self.silent else row.state,
                may_start=row.state is FAILED,
                former=row.version != self.version,
                key=Key(row.node, f"{row.version}-{row.number}"),
                ready_unix=float(row.made),
                doubtful=row.node in self.back and self.now - self.back[row.node] < 600,
            )
            for row in self.rows
        ]

    def ready(self) -> int:
        return sum(replica.state.ready for replica in self.replicas())

    def tick(self) -> None:
        self.now += 1
        for row in self.rows:
            if row.state is LOADING and row.until <= self.now:
                row.state = FAILED if self.broken else IDLE
        self.rows = [row for row in self.rows if row.state is not DRAINING or row.until > self.now]
        replicas = self.replicas()
        self.life.look(self.limits, replicas, float(self.now), 0)
        heard = sorted({"a", "b"} - self.silent)
        if not heard or any(row.state is LOADING and row.until > self.now for row in self.rows):
            return  # a start is under way
        move = self.life.step(self.limits, replicas, float(self.now))
        if move is not None:
            self.orders += 1
            self.carry_out(move, heard)

    def carry_out(self, move: Further | Drain | Failed, heard: list[str]) -> None:
        if isinstance(move, Failed):
            self.life.failed(float(self.now), move.why)
        elif isinstance(move, Drain):
            (row,) = (row for row in self.rows if (row.node, f"{row.version}-{row.number}") == move.key)
            row.state, row.until = DRAINING, self.now + 2
            assert self.ready() >= (1 if move.why is Why.REPLACED else self.limits.least)
        else:
            taken = {(row.node, row.version, row.number) for row in self.rows if row.state is not FAILED}
            node = next((node for node in heard if (node, self.version, move.number) not in taken), None)
            assert node is not None, "it runs everywhere already"
            self.rows = [row for row in self.rows if (row.node, row.version, row.number)
                         != (node, self.version, move.number)]  # fmt: skip
            self.rows.append(Row(self.version, move.number, node, LOADING, self.now + 2, self.now))


_EVENTS = st.lists(st.tuples(st.sampled_from(["silence a", "silence b", "back", "change", "break", "mend"]),
                             st.integers(1, 90)), max_size=12)  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 3), st.integers(1, 3), _EVENTS)
def test_whatever_happens_it_comes_to_rest_at_what_is_declared(
    least: int, most: int, events: list[tuple[str, int]]
) -> None:
    fleet = Fleet(Limits(min(least, most), most, 0.0))
    for event, seconds in events:
        match event:
            case "silence a" | "silence b":
                fleet.silent.add(event[-1])
            case "back":
                fleet.back |= dict.fromkeys(fleet.silent, fleet.now)
                fleet.silent.clear()
            case "change":
                fleet.version += 1
                fleet.life.renew()
            case "break" | "mend":
                fleet.broken = event == "break"
        for _ in range(seconds):
            fleet.tick()
    fleet.back |= dict.fromkeys(fleet.silent, fleet.now)
    fleet.silent.clear()
    fleet.broken = False
    for _ in range(int(REPLACE_AGAIN_S + 600)):
        fleet.tick()
    orders = fleet.orders
    ready = [replica for replica in fleet.replicas() if replica.state.ready]
    assert not any(replica.former for replica in ready)
    assert fleet.limits.least <= len(ready) <= fleet.limits.most
    for _ in range(700):
        fleet.tick()
    assert fleet.orders == orders


@pytest.mark.parametrize(
    ("replicas", "even_the_last", "ends"),
    [
        ([old(1), old(2)], False, True),
        ([old(1), new(2)], False, True),
        ([old(1), new(2, LOADING)], False, False),
        ([old(1), old(2, STALE)], False, False),
        ([old(1)], False, False),
        ([old(1)], True, True),
        ([old(1, DRAINING), old(2)], True, True),
        ([old(1, FAILED), old(2)], True, False),
        ([old(2)], True, False),
    ],
)
def test_a_former_one_ends_first_while_another_serves_or_where_progress_is_wanted(
    replicas: list[Replica], even_the_last: bool, ends: bool
) -> None:
    assert makes_way(old(1).key, replicas, even_the_last=even_the_last) == (
        Drain(old(1).key, Why.MAKES_WAY) if ends else None
    )


def test_after_one_made_way_the_new_one_starts_in_its_place_and_no_second_one_ends_meanwhile() -> None:
    life, limits = Life(), Limits(2, 2)
    assert life.make_way([old(1), old(2)], even_the_last=True) is None  # nothing is being replaced
    assert life.step(limits, [old(1), old(2)], 0.0) == Further(1, replaces=old(1).key)
    assert life.make_way([old(1), old(2)], even_the_last=False) == Drain(old(1).key, Why.MAKES_WAY)
    assert life.step(limits, [old(1, DRAINING), old(2)], 1.0) is None
    assert life.step(limits, [old(2)], 2.0) == Further(1)
    assert life.step(limits, [old(2), new(1, LOADING)], 3.0) is None
    assert life.step(limits, [old(2), new(1)], 4.0) == Further(2, replaces=old(2).key)
