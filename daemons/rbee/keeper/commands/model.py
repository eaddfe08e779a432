"""`rbee model`: the models that can be asked."""

import datetime
from typing import Any

import click

from rbee.keeper import session
from rbee.keeper.render import show_json, show_table
from rbee.keeper.session import json_option


@click.group("model")
def command() -> None:
    """List the models that can be asked."""


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
        (str(model.get("id", "")), _date(model.get("created")), str(model.get("owned_by", "")))
        for model in answer.get("data", [])
        if isinstance(model, dict)
    ]
    show_table(("MODEL", "SINCE", "BY"), rows, "no models yet: start a worker with 'rbee worker spawn --help'")


def _date(created: object) -> str:
    if not isinstance(created, int | float) or created <= 0:
        return "-"
    return datetime.datetime.fromtimestamp(created, tz=datetime.UTC).strftime("%Y-%m-%d %H:%M")
