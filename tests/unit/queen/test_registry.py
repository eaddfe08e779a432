"""The order of what hives say: whatever the order in which it arrives."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.queen.partners import MACHINE, report

from rbee.queen.registry.lives import REMEMBERED_LIVES, Lives, Verdict, judge
from rbee.queen.registry.registry import Change, Liveness, Registry, SilenceLimits
from rbee.queen.routing.decision import Key
from rbee.wire.errors import Conflict, WorkerNotFound
from rbee.wire.messages import Heartbeat, WorkerReport, WorkerState

Message = WorkerReport | Heartbeat
STATES = [WorkerState.LOADING, WorkerState.IDLE, WorkerState.DRAINING, WorkerState.STOPPED, WorkerState.FAILED]


def beat(revision: int, workers: list[WorkerReport], *, boot: str = "boot-1", hive: str = "bee") -> Heartbeat:
    return Heartbeat(hive, boot, revision, "0.1.0", 5.0, 0.0, None, MACHINE, workers)


def deliver(registry: Registry, message: Message, now: float = 0.0) -> Verdict:
    if isinstance(message, Heartbeat):
        return registry.heartbeat(message, now).verdict
    return registry.apply(message, now).verdict


def picture(registry: Registry, hive: str = "bee") -> dict[str, tuple[WorkerState, int]]:
    return {
        row.key.worker_id: (row.report.state, row.report.revision)
        for row in registry.workers()
        if row.key.hive_id == hive
    }


@st.composite
def lives(draw: st.DrawFn, boot: str = "boot-1") -> tuple[list[Message], dict[str, tuple[WorkerState, int]]]:
    """Everything that one life of a hive says, its last picture included, and what that picture is."""
    steps = draw(
        st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([*STATES, None]), st.booleans()), max_size=12)
    )
    current: dict[str, WorkerReport] = {}
    messages: list[Message] = []
    for revision, (name, state, also_beat) in enumerate(steps, start=1):
        if state is None:
            current.pop(name, None)
        else:
            current[name] = report(state, worker=name, boot=boot, revision=revision)
            messages.append(current[name])
        if also_beat:
            messages.append(beat(revision, list(current.values()), boot=boot))
    messages.append(beat(len(steps), list(current.values()), boot=boot))
    return messages, {name: (one.state, one.revision) for name, one in current.items()}


@given(lives(), st.randoms(use_true_random=False))
def test_one_life_ends_in_its_last_picture_whatever_the_order(
    life: tuple[list[Message], dict[str, tuple[WorkerState, int]]], order: random.Random
) -> None:
    messages, last = life
    shuffled = messages + order.sample(messages, len(messages) // 2)  # some arrive twice
    order.shuffle(shuffled)
    registry = Registry(SilenceLimits())
    for message in shuffled:
        deliver(registry, message)
    assert picture(registry) == last


@given(lives("old"), lives("new"), st.randoms(use_true_random=False))
def test_mail_of_a_superseded_life_changes_nothing(
    old: tuple[list[Message], dict[str, tuple[WorkerState, int]]],
    new: tuple[list[Message], dict[str, tuple[WorkerState, int]]],
    order: random.Random,
) -> None:
    registry = Registry(SilenceLimits())
    deliver(registry, beat(0, [], boot="old"))
    deliver(registry, beat(0, [], boot="new"))
    late = old[0] + new[0]
    order.shuffle(late)
    for message in late:
        verdict = deliver(registry, message)
        assert (verdict is Verdict.SUPERSEDED) == (message.boot_id == "old")
    assert picture(registry) == new[1]


@given(st.permutations(["bee-1", "bee-2", "bee-3"]), st.integers(1, 5))
def test_the_same_worker_id_on_three_hives_is_three_workers(hives: list[str], repeats: int) -> None:
    registry = Registry(SilenceLimits())
    for revision in range(1, repeats + 1):
        for hive in hives:
            registry.apply(report(worker="same", hive=hive, revision=revision), 0.0)
    assert sorted(row.key for row in registry.workers()) == [Key(f"bee-{n}", "same") for n in (1, 2, 3)]


def test_superseded_lives_are_remembered_in_bounds() -> None:
    lives_of_one = Lives()
    for number in range(REMEMBERED_LIVES * 3):
        assert lives_of_one.enter(f"boot-{number}") is Verdict.NEW_LIFE
    assert len(lives_of_one.superseded) == REMEMBERED_LIVES
    assert lives_of_one.enter(f"boot-{REMEMBERED_LIVES * 3 - 2}") is Verdict.SUPERSEDED


@pytest.mark.parametrize(
    ("known", "revision", "verdict"),
    [(None, 0, Verdict.NEWER), (1, 2, Verdict.NEWER), (2, 2, Verdict.SAME), (3, 2, Verdict.OLDER)],
)
def test_revisions_are_judged(known: int | None, revision: int, verdict: Verdict) -> None:
    assert judge(known, revision) is verdict


def test_silence_marks_stale_and_then_drops_and_a_word_revives() -> None:
    registry = Registry(SilenceLimits())
    registry.heartbeat(beat(1, [report(revision=1), report(WorkerState.STOPPED, worker="off", revision=1)]), 100.0)
    assert registry.sweep(114.9) == []
    assert registry.worker(Key("bee", "w")).state is WorkerState.IDLE  # type: ignore[union-attr]
    registry.sweep(115.0)
    assert registry.worker(Key("bee", "w")).state is WorkerState.STALE  # type: ignore[union-attr]
    assert registry.worker(Key("bee", "off")).state is WorkerState.STOPPED  # type: ignore[union-attr]
    registry.heartbeat(beat(1, [report(revision=1), report(WorkerState.STOPPED, worker="off", revision=1)]), 116.0)
    assert registry.worker(Key("bee", "w")).state is WorkerState.IDLE  # type: ignore[union-attr]
    assert [hive.hive_id for hive in registry.sweep(416.0)] == ["bee"]
    assert not registry.workers()


@pytest.mark.parametrize(
    ("silent_s", "found"),
    [(14.9, Liveness.LIVE), (15.0, Liveness.STALE), (299.9, Liveness.STALE), (300.0, Liveness.GONE)],
)
def test_limits_of_silence(silent_s: float, found: Liveness) -> None:
    assert SilenceLimits().liveness(silent_s, 5.0) is found


def test_cleanup_and_a_new_registration_interleave() -> None:
    registry = Registry(SilenceLimits())
    registry.apply(report(hive="old"), 0.0)
    registry.apply(report(hive="new", worker="fresh"), 400.0)
    registry.sweep(400.0)
    assert [row.key for row in registry.workers()] == [Key("new", "fresh")]


def test_a_hold_outlives_heartbeats_and_ends_with_the_life_of_the_worker() -> None:
    registry = Registry(SilenceLimits())
    registry.apply(report(revision=1, invocation_id="a"), 0.0)
    registry.hold(Key("bee", "w"), held=True)
    registry.heartbeat(beat(2, [report(revision=2, invocation_id="a")]), 1.0)
    assert registry.worker(Key("bee", "w")).held  # type: ignore[union-attr]
    registry.apply(report(revision=3, invocation_id="b"), 2.0)
    assert not registry.worker(Key("bee", "w")).held  # type: ignore[union-attr]


def test_doubt_ends_with_the_next_word_of_the_hive() -> None:
    registry = Registry(SilenceLimits())
    registry.apply(report(revision=1), 0.0)
    row = registry.worker(Key("bee", "w"))
    assert row is not None
    registry.doubt(row, "does not answer", 0.0)
    assert row.view().state is WorkerState.UNHEALTHY
    registry.heartbeat(beat(1, [report(revision=1)]), 1.0)
    assert row.view().state is WorkerState.IDLE


def test_changes_are_told_and_an_unchanged_picture_tells_nothing() -> None:
    registry = Registry(SilenceLimits())
    told: list[Change] = []
    registry.listen(told.append)
    workers = [report(worker=f"w{n}", revision=1) for n in range(3)]
    registry.heartbeat(beat(1, workers), 0.0)
    assert len(told) == 3
    registry.heartbeat(beat(1, workers), 5.0)
    assert len(told) == 3
    registry.heartbeat(beat(2, workers[:1]), 10.0)
    assert sorted(change.worker.key.worker_id for change in told[3:]) == ["w1", "w2"]
    assert all(change.removed for change in told[3:])


def test_load_is_told_to_those_alone_who_asked_for_it() -> None:
    registry = Registry(SilenceLimits())
    registry.apply(report(revision=1), 0.0)
    row = registry.worker(Key("bee", "w"))
    assert row is not None
    told: list[Change] = []
    loads: list[Change] = []
    registry.listen(told.append)
    registry.listen(loads.append, loads=True)
    registry.take(row)
    registry.take(row)
    registry.give_back(row)
    registry.give_back(row)
    assert (len(told), len(loads)) == (0, 2), "the first request and the last one"
    registry.hold(row.key, held=True)
    assert (len(told), len(loads)) == (1, 3)


def test_a_request_that_outlives_its_workers_row_is_no_news_of_the_worker() -> None:
    registry = Registry(SilenceLimits())
    registry.apply(report(revision=1), 0.0)
    row = registry.worker(Key("bee", "w"))
    assert row is not None
    registry.take(row)
    told: list[Change] = []
    registry.listen(told.append)
    registry.remove(row.key)
    registry.give_back(row)
    registry.doubt(row, "broke off", 0.0)
    registry.prove(row, 10.0)
    assert [change.removed for change in told] == [True]


def test_a_worker_is_found_by_the_name_it_has_now() -> None:
    registry = Registry(SilenceLimits())
    registry.apply(report(revision=1, model="before"), 0.0)
    registry.apply(report(revision=2, model="after"), 0.0)
    assert not registry.serving("before")
    assert not registry.serving("file:///models/before")
    assert len(registry.serving("after")) == len(registry.serving("file:///models/after")) == 1


def test_manual_workers_stay_apart_from_hives() -> None:
    registry = Registry(SilenceLimits())
    made = registry.register(report(hive="hand"), 0.0)
    assert made.report.revision == 1
    assert registry.register(report(hive="hand"), 0.0).report.revision == 2
    registry.sweep(1e6)
    assert registry.worker(Key("hand", "w")) is not None
    registry.apply(report(hive="bee"), 0.0)
    with pytest.raises(Conflict, match="reports its workers itself"):
        registry.register(report(hive="bee", worker="x"), 0.0)
    with pytest.raises(Conflict, match="several hives"):
        registry.find("w", None)
    with pytest.raises(WorkerNotFound):
        registry.find("nobody", None)


def test_doubt_about_a_worker_without_a_hive_ends_after_a_while() -> None:
    registry = Registry(SilenceLimits())
    row = registry.register(report(hive="hand"), 0.0)
    registry.doubt(row, "does not answer", 0.0)
    for now in (1.0, 4.9):
        registry.sweep(now)
        assert row.state is WorkerState.UNHEALTHY
    registry.sweep(5.0)
    assert row.state is WorkerState.IDLE
    assert (row.slots, row.on_trial) == (1, True)  # one request tries it


def test_workers_by_hand_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rbee.queen.registry.registry.MOST_MANUAL", 2)
    registry = Registry(SilenceLimits())
    for worker, hive in (("a", "x"), ("b", "y"), ("a", "x")):
        registry.register(report(worker=worker, hive=hive), 0.0)
    with pytest.raises(Conflict, match="remove one"):
        registry.register(report(worker="c", hive="z"), 0.0)
    assert sorted(hive.hive_id for hive in registry.hives()) == ["x", "y"]


def test_a_view_counts_what_the_queen_sent() -> None:
    registry = Registry(SilenceLimits())
    registry.apply(report(slots_total=2), 0.0)
    row = registry.worker(Key("bee", "w"))
    assert row is not None
    registry.take(row)
    assert (row.view().state, row.view().slots_available) == (WorkerState.BUSY, 1)
    registry.give_back(row)
    assert (row.view().state, row.view().slots_available) == (WorkerState.IDLE, 2)
    assert msgspec.json.decode(msgspec.json.encode(row.view()), type=WorkerReport) == row.view()


@pytest.mark.parametrize("state", [state for state in WorkerState if not state.ready])
def test_a_worker_that_takes_no_requests_shows_no_free_slot(state: WorkerState) -> None:
    registry = Registry(SilenceLimits())
    registry.apply(report(state, slots_total=2, slots_available=2), 0.0)
    row = registry.worker(Key("bee", "w"))
    assert row is not None
    assert (row.view().slots_total, row.view().slots_available) == (2, 0)


def test_one_that_was_away_takes_its_turn_and_no_more() -> None:
    registry = Registry(SilenceLimits())
    for name in "ab":
        registry.apply(report(worker=name, revision=1), 0.0)
    pool = registry.pool("talk")

    def serve(times: int) -> list[str]:
        given = []
        for _ in range(times):
            row = pool.least()
            assert row is not None
            registry.take(row)
            registry.give_back(row)
            given.append(row.key.worker_id)
        return given

    registry.apply(report(WorkerState.STOPPED, worker="b", revision=2), 1.0)
    assert set(serve(100)) == {"a"}
    registry.apply(report(worker="b", revision=3), 2.0)
    registry.apply(report(worker="c", revision=4), 2.0)
    given = serve(9)
    assert {name: given.count(name) for name in "abc"} == {"a": 3, "b": 3, "c": 3}
    assert registry.find("a", None).served == 103
