"""`rbee apply`: brings about the fleet that a file describes."""

import sys
from collections.abc import Sequence
from pathlib import Path

import click

from rbee.keeper.failure import CommandFailed
from rbee.keeper.fleet import file, look, show
from rbee.keeper.fleet.plan import Step, plan
from rbee.keeper.fleet.run import Apply, Outcome, Result
from rbee.keeper.render import say, show_json
from rbee.keeper.session import json_option
from rbee.keeper.text import printable


@click.command("apply")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Only tell what is otherwise than FILE says.")
@click.option("--prune", is_flag=True, help="Remove what the sections of FILE do not name, too.")
@click.option("--yes", "-y", "agreed", is_flag=True, help="Remove without a question.")
@click.option(
    "--at-once", type=click.IntRange(1, 32), default=4, show_default=True, help="Nodes that are worked on at a time."
)
@json_option
def command(path: Path, dry_run: bool, prune: bool, agreed: bool, at_once: int, as_json: bool) -> None:
    """Bring about the fleet that FILE describes: its nodes, the models on them, and the declared models.

    The difference is told first. A second run changes nothing; after a failure, run it again and it goes on.
    """
    fleet = file.load(path)
    steps = plan(fleet, look.look(fleet, at_once), prune=prune)
    if not as_json:
        for step in steps:
            click.echo(printable(show.line_of(step)))
    if dry_run or not steps:
        _show_plan(path, steps, dry_run=dry_run, as_json=as_json)
        return
    _agree(steps, agreed=agreed)
    results = Apply(fleet, lambda result: say(show.result_line(result))).run(steps, at_once)
    if as_json:
        show_json(
            show.Report(str(path), any(result.outcome is Outcome.DONE for result in results), False, steps, results)
        )
    elif all(result.outcome is Outcome.DONE for result in results):
        click.echo(f"done: the fleet is as {path} says, {len(results)} steps")
    _raise_undone(results)


def _show_plan(path: Path, steps: Sequence[Step], *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        show_json(show.Report(str(path), False, dry_run, steps))
    elif not steps:
        click.echo(f"nothing to change: the fleet is as {path} says")
    else:
        removals = sum(step.action.removes for step in steps)
        click.echo(f"{len(steps) - removals} to do, {removals} to remove: nothing was changed")
    obstructed = [step for step in steps if step.obstacle]
    if obstructed:
        raise CommandFailed(
            f"{len(obstructed)} of the steps cannot be taken: see what is marked with '!'",
            details={"steps": [show.name_of(step) for step in obstructed]},
        )


def _agree(steps: Sequence[Step], *, agreed: bool) -> None:
    """Raise CommandFailed unless whoever runs this agrees to what is removed."""
    removals = [show.name_of(step) for step in steps if step.action.removes]
    if not removals or agreed:
        return
    if sys.stdin.isatty():
        say(f"to be removed: {', '.join(removals)}")
        if click.confirm("Go on?", default=False, err=True):
            return
    raise CommandFailed(
        f"nothing was changed, because {len(removals)} would be removed: agree with --yes, or leave out --prune",
        details={"removals": removals},
    )


def _raise_undone(results: Sequence[Result]) -> None:
    undone = [result for result in results if result.outcome is not Outcome.DONE]
    if undone:
        names = [show.name_of(result.step) for result in undone]
        raise CommandFailed(
            f"{len(undone)} of {len(results)} steps are left undone: {', '.join(names)}\n"
            "  next: mend what is marked with '!', and run it again: it goes on from here",
            details={"undone": names},
        )
