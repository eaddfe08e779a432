"""`rbee catalog`: the catalogue of the models on a machine's disk."""

import time

import click

from rbee.keeper import models, session
from rbee.keeper.commands.model import node_option
from rbee.keeper.models import Place
from rbee.keeper.render import say, show_json, show_table
from rbee.keeper.session import json_option
from rbee.keeper.text import printable, size
from rbee.wire.model_messages import Backup, ModelRows
from rbee.wire.model_reference import Provider


@click.group("catalog")
def command() -> None:
    """See and back up the catalogue of a machine's models."""


@command.command("list")
@click.option("--provider", type=click.Choice([each.value for each in Provider]), help="Only models from there.")
@node_option
@json_option
def list_(provider: str | None, node: str | None, as_json: bool) -> None:
    """Show the models on the disk: size, last use, whether one is in use or pinned."""
    query = "" if provider is None else f"?provider={provider}"
    answer = session.run(Place(node).call("GET", f"models{query}", ModelRows))
    if as_json:
        show_json(answer)
        return
    now = time.time()
    rows = [models.row(model, now) for model in answer.models]
    show_table(models.HEADS, rows, "no models yet: fetch one with 'rbee model pull --help'")
    budget = "" if answer.budget_bytes is None else f", budget {size(answer.budget_bytes)}"
    say(f"{size(answer.used_bytes)} used, {size(answer.available_bytes)} available{budget}")
    if answer.problem is not None:
        say(f"attention: {answer.problem}")


@command.command("backup")
@node_option
@json_option
def backup(node: str | None, as_json: bool) -> None:
    """Write a copy of the catalogue, verify it, and print the command that puts it back."""
    answer = session.run(Place(node).call("POST", "catalog/backup", Backup))
    if as_json:
        show_json(answer)
        return
    click.echo(printable(answer.path))
    say(f"verified: {answer.models} models; to put it back, on that machine as root:")
    say(f"  {answer.restore}")
