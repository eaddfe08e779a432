"""Taking the steps of a plan: several nodes at once, what fails stops its own node and all removals, nothing else."""

import threading
from collections.abc import Callable

import click
import pytest

from rbee.keeper.failure import CommandFailed
from rbee.keeper.fleet.file import FleetFile
from rbee.keeper.fleet.plan import Action, Step
from rbee.keeper.fleet.run import Apply, Outcome, Result

Way = Callable[[Step], str]


def taken(steps: list[Step], way: Way, at_once: int = 4) -> list[Result]:
    """Results of the steps, each taken by ``way``; what is told is what is returned."""
    told: list[Result] = []
    apply = Apply(FleetFile(), told.append)
    apply._ways = dict.fromkeys(Action, way)
    with click.Context(click.Command("apply")):
        results = apply.run(steps, at_once)
    assert sorted(map(repr, told)) == sorted(map(repr, results))
    return results


def outcomes(results: list[Result]) -> list[tuple[str, str | None, Outcome]]:
    return [(one.step.action.value, one.step.node, one.outcome) for one in results]


STEPS = [
    Step(Action.ADD, "a", "a"),
    Step(Action.INSTALL, "a", "a"),
    Step(Action.PULL, "m", "a"),
    Step(Action.INSTALL, "b", "b"),
    Step(Action.DECLARE, "m"),
    Step(Action.REMOVE_NODE, "c", "c"),
]


def test_every_step_is_taken_in_its_node_s_order_then_declarations_then_removals() -> None:
    done: list[tuple[Action, str | None]] = []
    results = taken(STEPS, lambda step: done.append((step.action, step.node)) or "well")
    assert [one.step for one in results] == STEPS
    assert {one.outcome for one in results} == {Outcome.DONE}
    assert {one.told for one in results} == {"well"}
    assert [action for action, node in done if node == "a"] == [Action.ADD, Action.INSTALL, Action.PULL]
    assert [action for action, _ in done[-2:]] == [Action.DECLARE, Action.REMOVE_NODE]


def test_a_failure_leaves_the_rest_of_its_node_and_removals_and_nothing_else() -> None:
    def way(step: Step) -> str:
        if step.action is Action.INSTALL and step.node == "a":
            raise CommandFailed("no disk")
        return ""

    results = taken(STEPS, way)
    assert outcomes(results) == [
        ("add", "a", Outcome.DONE),
        ("set up", "a", Outcome.FAILED),
        ("fetch", "a", Outcome.LEFT),
        ("set up", "b", Outcome.DONE),
        ("declare", None, Outcome.DONE),
        ("remove node", "c", Outcome.LEFT),
    ]
    assert results[1].told == "no disk (COMMAND_FAILED)"


RESTARTS = [
    Step(Action.INSTALL, "a", "a"),
    Step(Action.INSTALL, "b", "b"),
    *(Step(Action.RESTART, worker, node) for node, worker in (("a", "1"), ("a", "2"), ("b", "3"))),
    Step(Action.DECLARE, "m"),
]


def test_workers_are_restarted_one_after_the_other_once_all_nodes_are_set_up() -> None:
    done: list[tuple[Action, str]] = []
    results = taken(RESTARTS, lambda step: done.append((step.action, step.subject)) or "")
    assert [one.step for one in results] == RESTARTS
    assert {one.outcome for one in results} == {Outcome.DONE}
    assert done[2:] == [(Action.RESTART, "1"), (Action.RESTART, "2"), (Action.RESTART, "3"), (Action.DECLARE, "m")]


@pytest.mark.parametrize(("fails", "left"), [((Action.INSTALL, "a"), ["1", "2"]), ((Action.RESTART, "1"), ["2", "3"])])
def test_no_worker_is_restarted_on_a_node_that_is_not_set_up_or_after_one_that_did_not_come_up(
    fails: tuple[Action, str], left: list[str]
) -> None:
    def way(step: Step) -> str:
        if (step.action, step.subject) == fails:
            raise CommandFailed("no")
        return ""

    results = taken(RESTARTS, way)
    assert [one.step.subject for one in results if one.outcome is Outcome.LEFT] == left
    assert results[-1].outcome is Outcome.DONE


def test_a_step_with_an_obstacle_fails_with_it_and_is_not_tried() -> None:
    def never(step: Step) -> str:
        raise AssertionError(step)

    (result,) = taken([Step(Action.LOOK, "a", "a", obstacle="no SSH there")], never)
    assert (result.outcome, result.told) == (Outcome.FAILED, "no SSH there")


def test_so_many_nodes_are_worked_on_at_once_and_no_more() -> None:
    together = threading.Barrier(2, timeout=30)
    lock, now, most = threading.Lock(), 0, 0

    def way(step: Step) -> str:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        together.wait()  # breaks unless two are inside at the same time
        with lock:
            now -= 1
        return ""

    taken([Step(Action.INSTALL, name, name) for name in "abcdef"], way, at_once=2)
    assert most == 2


def test_ctrl_c_lets_what_runs_end_and_begins_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    begun: list[str] = []

    def way(step: Step) -> str:
        begun.append(step.subject)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        taken([Step(Action.ADD, "first", "a"), Step(Action.INSTALL, "second", "a"), Step(Action.DECLARE, "m")], way)
    assert begun == ["first"]
    assert "broken off" in capsys.readouterr().err
