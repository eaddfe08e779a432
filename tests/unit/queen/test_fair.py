"""The queue that is fair between clients: nothing is lost, nobody starves, and who is greedy pays."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from rbee.queen.admission.fair import BATCH_EVERY, FairQueue, Priority, Ticket

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH


def ticket(
    item: int, client: str = "a", priority: Priority = INTERACTIVE, work: float = 1.0, weight: float = 1.0
) -> Ticket[int]:
    return Ticket(item, client, priority, work, weight)


def drained(queue: FairQueue[int]) -> list[Ticket[int]]:
    found = []
    while (one := queue.pop()) is not None:
        found.append(one)
    return found


TICKETS = st.lists(
    st.tuples(st.sampled_from("abcd"), st.sampled_from(list(Priority)), st.floats(1, 500), st.booleans()), max_size=40
)


@given(TICKETS, st.sets(st.integers(0, 39)))
def test_what_goes_in_comes_out_once_unless_it_left(
    entries: list[tuple[str, Priority, float, bool]], leavers: set[int]
) -> None:
    queue: FairQueue[int] = FairQueue()
    tickets = [ticket(n, client, priority, work) for n, (client, priority, work, _) in enumerate(entries)]
    for one, (_, _, _, first) in zip(tickets, entries, strict=True):
        queue.push(one, first=first)
    for number in leavers:
        if number < len(tickets):
            queue.discard(tickets[number])
            queue.discard(tickets[number])  # to leave twice changes nothing
    staying = [one.item for one in tickets if one.item not in leavers]
    assert len(queue) == len(staying)
    assert sorted(queue) == staying
    out = [one.item for one in drained(queue)]
    assert sorted(out) == staying
    assert len(queue) == 0
    firsts = [one.item for one, entry in zip(tickets, entries, strict=True) if entry[3] and one.item in staying]
    assert out[: len(firsts)] == firsts


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60))
def test_each_client_gets_its_turn(clients: list[str]) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, client in enumerate(clients):
        queue.push(ticket(number, client))
    left = Counter(clients)
    since: Counter[str] = Counter()
    order: dict[str, list[int]] = {client: [] for client in left}
    for one in drained(queue):
        order[one.client].append(one.item)
        left[one.client] -= 1
        since[one.client] = 0
        for other, waiting in left.items():
            if other != one.client and waiting:
                since[other] += 1
                assert since[other] <= len(left)
    for items in order.values():
        assert items == sorted(items)  # of one client in the order of their arrival


def test_a_client_with_a_thousand_delays_another_by_one() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(1000):
        queue.push(ticket(number, "greedy"))
    for _ in range(10):
        queue.pop()
    queue.push(ticket(5000, "modest"))
    assert queue.ahead("modest2", INTERACTIVE) == 2
    assert 5000 in [one.item for one in (queue.pop(), queue.pop()) if one is not None]


@given(st.sampled_from([1.0, 2.0, 4.0]))
def test_shares_go_by_work_and_weight(weight: float) -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(200):
        queue.push(ticket(number, "heavy", work=30.0, weight=weight))
        queue.push(ticket(number, "light", work=10.0))
    given_to: Counter[str] = Counter()
    for _ in range(160):
        one = queue.pop()
        assert one is not None
        given_to[one.client] += 1
    work = {"heavy": 30.0 * given_to["heavy"] / weight, "light": 10.0 * given_to["light"]}
    assert abs(work["heavy"] - work["light"]) <= 30.0


def test_one_that_comes_back_gets_no_credit_for_its_absence() -> None:
    queue: FairQueue[int] = FairQueue()
    queue.push(ticket(0, "guest"))
    assert queue.pop() is not None
    for number in range(100):
        queue.push(ticket(number, "regular"))
    for _ in range(50):
        queue.pop()
    for number in range(10):
        queue.push(ticket(1000 + number, "guest"))
    seen = [one.client for one in (queue.pop() for _ in range(10)) if one is not None]
    assert seen.count("regular") >= 4


def test_batch_gets_what_is_left_and_never_nothing() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(40):
        queue.push(ticket(number, priority=INTERACTIVE))
        queue.push(ticket(number, priority=BATCH))
    seen = [one.priority for one in (queue.pop() for _ in range(40)) if one is not None]
    assert seen.count(BATCH) == 40 // BATCH_EVERY
    assert queue.waiting(INTERACTIVE) == 5


def test_what_cannot_be_placed_goes_back_in_its_order() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(4):
        queue.push(ticket(number))
    taken = [one for one in (queue.pop(), queue.pop()) if one is not None]
    queue.restore(taken)
    assert len(queue) == 4
    assert [one.item for one in drained(queue)] == [0, 1, 2, 3]


def test_whose_place_a_full_queue_gives_away() -> None:
    queue: FairQueue[int] = FairQueue()
    for number in range(3):
        queue.push(ticket(number, "greedy"))
    queue.push(ticket(3, "modest"))
    assert queue.victim("greedy", INTERACTIVE) is None
    assert queue.victim("modest", INTERACTIVE) is not None
    victim = queue.victim("new", INTERACTIVE)
    assert victim is not None
    assert victim.item == 2  # the latest of the greediest
    queue.discard(victim)
    assert sorted(queue) == [0, 1, 3]
    queue.push(ticket(4, "night", BATCH))
    victim = queue.victim("greedy", INTERACTIVE)
    assert victim is not None
    assert victim.item == 4
    assert queue.victim("night", BATCH) is None


@given(TICKETS, st.sampled_from("abcde"), st.sampled_from(list(Priority)))
def test_no_more_go_ahead_than_was_said(
    entries: list[tuple[str, Priority, float, bool]], client: str, priority: Priority
) -> None:
    queue: FairQueue[int] = FairQueue()
    for number, (who, which, _, first) in enumerate(entries):
        queue.push(ticket(number, who, which), first=first)
    said = queue.ahead(client, priority)
    queue.push(ticket(99, client, priority))
    place = [one.item for one in drained(queue)].index(99)
    batch_turns = sum(entry[1] is BATCH for entry in entries) if priority is INTERACTIVE else 0
    assert place <= said + batch_turns


def test_places_given_up_do_not_pile_up_while_nothing_is_served() -> None:
    queue: FairQueue[int] = FairQueue()
    kept = ticket(0)
    queue.push(kept)
    for number in range(1, 1000):
        gone = ticket(number)
        queue.push(gone)
        queue.discard(gone)
    (line,) = queue._lanes[INTERACTIVE].lines.values()
    assert len(line) < 40
    assert [one.item for one in drained(queue)] == [0]
