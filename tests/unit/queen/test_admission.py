"""Admission as a whole: whatever comes and goes in whatever order, no slot is overrun and nothing is lost or kept."""

import asyncio
import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from tests.unit.queen.partners import MODEL, report

from rbee.queen.admission.admission import Admission
from rbee.queen.admission.clients import Clients
from rbee.queen.admission.fair import Priority
from rbee.queen.admission.policy import Policy, WaitLimits
from rbee.queen.admission.waiting import Lease, Want
from rbee.queen.config import ClientLimits
from rbee.queen.registry.registry import Registry
from rbee.queen.registry.rows import SilenceLimits
from rbee.queen.routing.affinity import Affinity
from rbee.queen.routing.decision import Key
from rbee.queen.routing.metrics import PlacingMetrics
from rbee.wire.errors import RbeeError, TooManyRequests
from rbee.wire.messages import WorkerState

S = WorkerState
NAMES, CLIENTS = "ab", ("greedy", "modest", "narrow")
SLOTS = {"a": 1, "b": 3}
CHANGES = (S.IDLE, S.IDLE, S.LOADING, S.DRAINING, S.STOPPED)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), st.sampled_from(CLIENTS), st.sampled_from(list(Priority))),
        st.tuples(st.just("end"), st.integers(0, 40), st.booleans()),
        st.tuples(st.just("leave"), st.integers(0, 40), st.none()),
        st.tuples(st.just("tell"), st.sampled_from(NAMES), st.sampled_from(CHANGES)),
    ),
    max_size=60,
)


class World:
    """An admission, and the requests that came to it."""

    def __init__(self) -> None:
        self.registry = Registry(SilenceLimits())
        self.clients = Clients({"narrow": ClientLimits(concurrent=2)})
        policy = Policy(WaitLimits(most_waiting=5))
        self.admission = Admission(
            self.registry, policy, Affinity(64), self.clients, PlacingMetrics(CollectorRegistry())
        )
        self.asked: list[asyncio.Task[Lease]] = []
        self.leases: list[Lease] = []
        self.revision = 0
        for name in NAMES:
            self.tell(name, S.IDLE)

    def tell(self, name: str, state: WorkerState) -> None:
        self.revision += 1
        url = f"http://127.0.0.1:{9000 + ord(name)}" if state.ready else None
        told = report(state, worker=name, url=url, slots_total=SLOTS[name], revision=self.revision, managed=False)
        self.registry.apply(told, 0.0)

    def collect(self) -> None:
        """Take the leases of requests that were given one."""
        for task in [one for one in self.asked if one.done()]:
            self.asked.remove(task)
            if not task.cancelled() and task.exception() is None:
                self.leases.append(task.result())

    def check(self) -> None:
        rows = {row.key.worker_id: row for row in self.registry.workers()}
        for name, row in rows.items():
            held = [lease for lease in self.leases if lease.worker is row]
            assert row.in_flight == len(held) <= SLOTS[name]
            assert row.work == sum(lease.want.work for lease in held)
        assert self.admission.in_flight == len(self.leases)
        assert self.admission.waiting == len(self.asked) <= 5
        if any(row.in_flight < SLOTS[name] and row.state.ready for name, row in rows.items()):
            assert not self.asked, "a slot is free while somebody waits"


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


async def play(steps: list[tuple[str, object, object]]) -> None:
    world = World()
    for what, first, second in steps:
        if what == "ask" and isinstance(first, str) and isinstance(second, Priority):
            want = Want(MODEL, client=first, priority=second, work=float(len(first)))
            world.asked.append(asyncio.create_task(world.admission.acquire(want)))
        elif what == "end" and isinstance(first, int) and world.leases:
            lease = world.leases.pop(first % len(world.leases))
            lease.answered = bool(second)
            lease.release()
            lease.release()  # giving back twice changes nothing
        elif what == "leave" and isinstance(first, int) and world.asked:
            world.asked[first % len(world.asked)].cancel()
        elif isinstance(first, str) and isinstance(second, WorkerState):
            world.tell(first, second)
        await settle()
        world.collect()
        world.check()
    for task in world.asked:
        task.cancel()
    await asyncio.gather(*world.asked, return_exceptions=True)
    for lease in world.leases:
        lease.release()
    assert (world.admission.in_flight, world.admission.waiting) == (0, 0)
    assert world.clients._clients == {}, "a client is counted that has nothing here"
    assert all(row.in_flight == 0 and row.work == 0.0 for row in world.registry.workers())


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_no_slot_is_overrun_and_nothing_is_lost(steps: list[tuple[str, object, object]]) -> None:
    asyncio.run(play(steps))


async def test_a_lease_granted_in_the_turn_in_which_its_client_leaves_is_taken_back() -> None:
    world = World()
    held = [world.admission.take_now(Want(MODEL, client="greedy")) for _ in range(4)]
    leaver = asyncio.create_task(world.admission.acquire(Want(MODEL, client="modest")))
    await settle()
    assert world.admission.waiting == 1
    lease = held.pop()
    assert lease is not None
    lease.release()  # grants it to the one that waits, whose task has not run yet
    leaver.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await leaver
    assert world.admission.in_flight == 3
    assert world.admission.take_now(Want(MODEL, client="modest")) is not None


async def test_a_client_at_its_limit_is_refused_and_takes_nothing_now() -> None:
    world = World()
    narrow = Want(MODEL, client="narrow")
    assert all(world.admission.take_now(narrow) is not None for _ in range(2))
    assert world.admission.take_now(narrow) is None
    refusal: RbeeError | None = None
    try:
        await world.admission.acquire(narrow)
    except TooManyRequests as error:
        refusal = error
    assert refusal is not None
    assert refusal.details["limit"] == "concurrent"
    assert world.admission.in_flight == 2


async def test_what_failed_a_request_is_not_chosen_for_it_again() -> None:
    world = World()
    for _ in range(8):
        lease = await world.admission.acquire(Want(MODEL, exclude={Key("bee", "b")}, again=True))
        assert lease.worker.key.worker_id == "a"
        lease.release()


async def test_what_waits_is_bounded_over_all_models() -> None:
    world = World()
    world.admission.configure(Policy(most_waiting=2))
    for number, model in enumerate(("x", "y", "z")):
        told = report(S.LOADING, worker=model, url=None, model=model, revision=100 + number)
        world.registry.apply(told, 0.0)
    waiting = [asyncio.create_task(world.admission.acquire(Want(model, client=model))) for model in ("x", "y")]
    await settle()
    assert world.admission.waiting == 2
    refusal: RbeeError | None = None
    try:
        await world.admission.acquire(Want("z", client="z"))
    except TooManyRequests as error:
        refusal = error
    assert refusal is not None
    assert refusal.retry_after_s == 5  # nothing is known of the model's rate
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert world.admission.waiting == 0


async def test_one_that_is_refused_for_its_wait_leaves_no_queue_that_turns_others_away() -> None:
    world = World()
    for name in NAMES:
        world.tell(name, S.STOPPED)
    world.tell("a", S.IDLE)
    for _ in range(9):
        world.admission.times.note(MODEL, 100.0)
    lease = await world.admission.acquire(Want(MODEL, client="greedy"))
    refused = await asyncio.gather(world.admission.acquire(Want(MODEL, client="modest")), return_exceptions=True)
    assert isinstance(refused[0], TooManyRequests)
    lease.release()
    assert world.admission.at_once(MODEL)
    taken = world.admission.take_now(Want(MODEL, client="modest"))
    assert taken is not None
    taken.release()


async def test_what_failed_a_request_last_is_taken_only_where_no_other_is_free() -> None:
    world = World()
    want = Want(MODEL, shun=Key("bee", "b"), again=True)
    first = await world.admission.acquire(want)
    assert first.worker.key.worker_id == "a"  # its one slot
    second = await world.admission.acquire(want)
    assert second.worker.key.worker_id == "b"
