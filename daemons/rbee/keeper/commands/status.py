"""`rbee status`: the whole picture in one screen."""

from typing import Any

import click

from rbee.keeper import session
from rbee.keeper.render import show_json, show_table
from rbee.keeper.session import json_option
from rbee.keeper.text import printable
from rbee.keeper.workers import HEADS, all_workers, row
from rbee.wire.messages import WorkerReport


@click.command("status")
@json_option
def command(as_json: bool) -> None:
    """Show the queen, its hives and its workers."""
    health, workers = session.run(_ask())
    if as_json:
        show_json({"queen": health, "workers": workers})
        return
    click.echo(f"queen: {printable(str(health.get('status', 'unknown')))}, version {health.get('version', 'unknown')}")
    hives = sorted({worker.hive_id for worker in workers})
    none = "none with a worker" if health.get("hives") else "none has reported: systemctl status rbee-hive tells why"
    click.echo(f"hives: {', '.join(hives) or none}")
    show_table(HEADS, [row(worker) for worker in workers], "no workers yet: rbee worker spawn --help")


async def _ask() -> tuple[dict[str, Any], list[WorkerReport]]:
    async with session.queen() as queen:
        return await queen.call("GET", "/health", dict[str, Any]), await all_workers(queen)
