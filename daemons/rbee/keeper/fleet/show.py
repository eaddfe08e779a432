"""A plan and its results as a person reads them, and as JSON."""

from collections.abc import Sequence

import msgspec

from rbee.keeper.fleet.plan import Action, Difference, Step
from rbee.keeper.fleet.run import Outcome, Result
from rbee.keeper.text import duration

_SIGNS = {Action.ADD: "+", Action.PULL: "+", Action.LOOK: "!"}
_MARKS = {Outcome.DONE: "ok", Outcome.FAILED: " !", Outcome.LEFT: " -"}


class Report(msgspec.Struct, frozen=True):
    """What `rbee apply --json` prints; ``results`` is empty for a dry run."""

    file: str
    changed: bool
    dry_run: bool
    steps: Sequence[Step]
    results: Sequence[Result] = ()


def name_of(step: Step) -> str:
    """A step in a few words: set up bee-1, fetch hf:org/repo on bee-1."""
    place = "" if step.node in (None, step.subject) else f" on {step.node}"
    return f"{step.action.value} {step.subject}{place}"


def line_of(step: Step) -> str:
    """A step of a plan as one line: a sign, its name, and what is otherwise."""
    sign = "!" if step.obstacle else _SIGNS.get(step.action, "-" if step.action.removes else "~")
    told = step.obstacle or "; ".join(_of(one) for one in step.differences)
    return f"{sign} {name_of(step)}" + (f": {told}" if told else "")


def result_line(result: Result) -> str:
    """A result as one line: a mark, the step's name, its time, and what it said."""
    took = f", {duration(result.seconds)}" if result.outcome is not Outcome.LEFT else ""
    return f"{_MARKS[result.outcome]} {name_of(result.step)}{took}" + (f": {result.told}" if result.told else "")


def _of(one: Difference) -> str:
    return f"{one.field} {one.before} -> {one.after}" if one.before else f"{one.field} {one.after}"
