"""`rbee task`: what was asked for and runs."""

import uuid

import click

from rbee.keeper import session
from rbee.keeper.render import show_json
from rbee.keeper.session import json_option
from rbee.wire import names

_LIMIT_S = 10.0


@click.group("task")
def command() -> None:
    """Cancel a task."""


@command.command("cancel")
@click.argument("task_id")
@json_option
def cancel(task_id: str, as_json: bool) -> None:
    """Cancel the task TASK_ID; one that has ended already counts as cancelled."""
    identity = names.request_id(task_id)

    async def ask() -> None:
        async with session.queen() as queen:
            await queen.send("DELETE", f"/v2/tasks/{uuid.UUID(identity)}", timeout_s=_LIMIT_S)

    session.run(ask())
    if as_json:
        show_json({"task_id": identity, "state": "cancelled"})
    else:
        click.echo(f"task {identity}: cancelled")
