"""`rbee model`: the models that can be asked, and those on a machine's disk."""

import datetime
import sys
from typing import Any

import click

from rbee.keeper import models, session
from rbee.keeper.failure import CommandFailed
from rbee.keeper.models import Place, PullScreen
from rbee.keeper.render import say, show_json, show_table
from rbee.keeper.session import json_option
from rbee.keeper.text import duration, printable, size
from rbee.wire.errors import InvalidRequest
from rbee.wire.model_messages import ModelProgress, ModelRow, Pin, PullRequest, Removed, Verified
from rbee.wire.model_reference import MODEL_ID, parse

node_option = click.option("--node", metavar="HIVE", help="The node whose models are meant, instead of this machine.")


@click.group("model")
def command() -> None:
    """List the models that can be asked; fetch, remove, verify and pin models on a machine."""


@command.command("list")
@json_option
def list_(as_json: bool) -> None:
    """Show every model that a worker serves or could serve."""

    async def ask() -> dict[str, Any]:
        async with session.queen() as queen:
            return await queen.call("GET", "/v1/models", dict[str, Any])

    answer = session.run(ask())
    if as_json:
        show_json(answer)
        return
    rows = [
        (
            str(model.get("id", "")),
            _date(model.get("created")),
            str(model.get("owned_by", "")),
            str(model.get("state", "")),
            f"{model.get('ready', 0)} of {model.get('workers', 0)}",
            "; ".join(str(words) for words in (model.get("note"), model.get("warm")) if words),
        )
        for model in answer.get("data", [])
        if isinstance(model, dict)
    ]
    show_table(
        ("MODEL", "SINCE", "BY", "STATE", "READY", "NOTE"),
        rows,
        "no models yet: start a worker with 'rbee worker spawn --help'",
    )


@command.command("pull")
@click.argument("reference")
@node_option
@click.option("--from", "from_node", metavar="HIVE", help="Copy it from this node, which has it; with --node.")
@click.option("--copy", is_flag=True, help="Copy it from whichever node has it, if one has; with --node.")
@json_option
def pull(reference: str, node: str | None, from_node: str | None, copy: bool, as_json: bool) -> None:
    """Fetch the model REFERENCE: hf:org/repo[@rev][:pattern], https://host/folder/, or file:///folder."""
    parse(reference)
    if node is None and (copy or from_node is not None):
        raise click.UsageError("--from and --copy copy between nodes: name the one that gets the model with --node")
    wanted = PullRequest(reference, from_node, copy)

    async def follow() -> ModelProgress:
        with PullScreen(terminal=sys.stderr.isatty()) as screen:
            return await models.pull(Place(node), wanted, screen)

    last = session.run(follow())
    if as_json:
        show_json(last)
        return
    click.echo(printable(last.local_path or ""))
    took = f", {duration(last.duration_s)}" if last.duration_s else ", it was here already"
    say(f"model {last.model}: {size(last.bytes_total)}, verified{took}")


@command.command("rm")
@click.argument("model")
@node_option
@json_option
def remove(model: str, node: str | None, as_json: bool) -> None:
    """Remove MODEL from the disk, or stop its download; refused while a worker uses it."""
    answer = session.run(Place(node).call("DELETE", f"models/{_id_of(model)}", Removed))
    if as_json:
        show_json(answer)
    else:
        click.echo(f"model {printable(answer.id)}: {printable(answer.message)}, {size(answer.freed_bytes)} freed")


@command.command("verify")
@click.argument("model")
@node_option
@json_option
def verify(model: str, node: str | None, as_json: bool) -> None:
    """Read every file of MODEL and compare it with what was fetched; exit 1 where one differs."""
    answer = session.run(
        Place(node).call("POST", f"models/{_id_of(model)}/verify", Verified, timeout_s=models.VERIFY_LIMIT_S)
    )
    if as_json:
        show_json(answer)
    elif answer.ok:
        said = "recorded, there was nothing to compare with yet" if answer.recorded else "as fetched"
        click.echo(f"model {printable(answer.id)}: {answer.files} files, {said}")
    if not answer.ok:
        raise CommandFailed(
            f"model {answer.id} is not what it was: {'; '.join(answer.problems[:5])}\n"
            f"  next: rbee model rm {answer.id}, then pull it again",
            details={"problems": answer.problems},
        )


@command.command("pin")
@click.argument("model")
@node_option
@json_option
def pin(model: str, node: str | None, as_json: bool) -> None:
    """Keep MODEL from being removed to make room."""
    _pin(model, node, as_json, pinned=True)


@command.command("unpin")
@click.argument("model")
@node_option
@json_option
def unpin(model: str, node: str | None, as_json: bool) -> None:
    """Let MODEL be removed again when room is needed."""
    _pin(model, node, as_json, pinned=False)


def _pin(model: str, node: str | None, as_json: bool, *, pinned: bool) -> None:
    answer = session.run(Place(node).call("PUT", f"models/{_id_of(model)}/pin", ModelRow, body=Pin(pinned)))
    if as_json:
        show_json(answer)
    else:
        click.echo(f"model {printable(answer.id)}: {'pinned' if answer.pinned else 'not pinned'}")


def _id_of(model: str) -> str:
    """The id of a model that is named by it or by its reference; raises InvalidRequest, InvalidModelReference."""
    if ":" in model:
        return parse(model).model_id
    if not MODEL_ID.fullmatch(model):
        raise InvalidRequest("that is no model's id: 'rbee catalog list' shows them", details={"field": "model"})
    return model


def _date(created: object) -> str:
    if not isinstance(created, int | float) or created <= 0:
        return "-"
    return datetime.datetime.fromtimestamp(created, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M")
