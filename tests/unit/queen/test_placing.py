"""The choice of a worker by registry, policy and remembered prompts, held against one that looks at every worker."""

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.queen.partners import MODEL, report

from rbee.queen.admission.policy import Policy
from rbee.queen.admission.waiting import Want
from rbee.queen.metrics import QueenMetrics
from rbee.queen.registry.registry import Registry, SilenceLimits
from rbee.queen.registry.rows import Worker
from rbee.queen.routing.affinity import Affinity
from rbee.queen.routing.decision import Key, Reason, free, load, prefers
from rbee.queen.routing.placed import MOST_SEEN
from rbee.queen.routing.placing import Placer, looked_at
from rbee.wire.messages import WorkerState

NAMES = "abcdefghijkl"
"""More than are looked through one by one."""
POLICY = Policy(weights={"bee/b": 3.0, "bee/c": 0.5})
_WORDS = st.sampled_from(["ask", "ask", "ask", "end", "end", "report", "remove", "hold", "doubt", "answer"])


def registry_of(names: Iterable[str]) -> Registry:
    registry = Registry(SilenceLimits())
    registry.weigh(POLICY.weight)
    for name in names:
        registry.apply(report(worker=name, slots_total=2), 0.0)
    return registry


def placer_for(registry: Registry) -> Placer:
    return Placer(registry, POLICY, Affinity(64), QueenMetrics().placing)


def reference(registry: Registry, placer: Placer, want: Want) -> tuple[Reason, list[Worker]]:
    """Why a worker is to be chosen, and those that may be: the first with the prompt's beginning, else the least."""
    fit = [one for one in registry.serving(MODEL) if free(one) and one.key not in want.exclude]
    fit = [one for one in fit if one.key != want.shun] or fit
    if not fit:
        return Reason.LEAST_WORK, []
    lightest = min(load(one) for one in fit)
    least = [one for one in fit if load(one) == lightest]
    for key, life in placer.affinity.holders(want.prefixes):
        holder = registry.worker(key)
        if holder is None or holder.report.invocation_id != life or key in want.exclude or key == want.shun:
            continue
        if prefers(holder, least[0], POLICY.affinity_slack):
            return Reason.PREFIX, [holder]
    return Reason.TRIAL if least[0].on_trial else Reason.LEAST_WORK, least


@given(st.data(), st.lists(st.tuples(_WORDS, st.sampled_from(NAMES), st.integers(0, 3)), max_size=60))
def test_the_choice_is_that_of_a_look_at_every_worker(
    data: st.DataObject, happenings: list[tuple[str, str, int]]
) -> None:
    registry = registry_of(NAMES)
    placer = placer_for(registry)
    running: list[tuple[Worker, float]] = []
    for revision, (word, name, number) in enumerate(happenings, start=2):
        worker = registry.worker(Key("bee", name))
        if word == "ask":
            prefixes = tuple(range(number, 0, -1))
            failed = data.draw(st.sets(st.sampled_from(NAMES), max_size=3))
            shun = data.draw(st.sampled_from([None, *NAMES]))
            want = Want(MODEL, work=10.0 * (number + 1), prefixes=prefixes, shun=shun and Key("bee", shun))
            want.exclude = {Key("bee", one) for one in failed}
            reason, may = reference(registry, placer, want)
            placed = placer.place(want, 0.0)
            assert (placed is None) == (not may)
            if placed is not None:
                chosen, placement = placed
                assert chosen in may
                assert placement.reason is reason
                registry.take(chosen, want.work)
                running.append((chosen, want.work))
        elif word == "end" and running:
            registry.give_back(*running.pop(number % len(running)))
        elif word == "report":
            state = data.draw(st.sampled_from([WorkerState.IDLE, WorkerState.LOADING, WorkerState.STOPPED]))
            life = f"{number}".rjust(32, "0")
            registry.apply(report(state, worker=name, revision=revision, slots_total=2, invocation_id=life), 1.0)
        elif word == "remove" and worker is not None:
            registry.remove(worker.key)
        elif word == "hold" and worker is not None:
            registry.hold(worker.key, held=bool(number))
        elif word == "doubt" and worker is not None:
            registry.doubt(worker, "does not answer", 1.0)
        elif word == "answer" and worker is not None:
            registry.good_answer(worker)


@pytest.mark.parametrize("place", [0, 1, 500, 999])
def test_a_choice_among_a_thousand_looks_at_a_few_of_them(place: int) -> None:
    registry = registry_of(f"w{number}" for number in range(1000))
    rows = list(registry.serving(MODEL))
    taken: list[Worker] = []

    def counted() -> Iterator[Worker]:
        for worker in rows:
            taken.append(worker)
            yield worker

    seen = looked_at(rows[place], counted())
    assert [one.key for one in seen[:1]] == [rows[place].key]
    assert len({one.key for one in seen}) == MOST_SEEN
    assert len(taken) <= MOST_SEEN
