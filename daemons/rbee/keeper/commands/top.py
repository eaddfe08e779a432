"""`rbee top`: the whole fleet on one live screen."""

import asyncio
import sys

import click

from rbee.keeper import session
from rbee.keeper.render import show_json, show_table
from rbee.keeper.session import json_option
from rbee.keeper.text import printable
from rbee.keeper.top import rows, watch
from rbee.keeper.top.picture import Fleet, Picture
from rbee.keeper.workers import all_workers

_BETWEEN_S = 1.0


@click.command("top")
@click.option("--once", is_flag=True, help="Print one picture and end; rates are those of one second.")
@click.option(
    "--every", "every_s", type=click.FloatRange(0.5, 60), default=2.0, show_default=True, metavar="SECONDS",
    help="How often figures are asked for; workers show at once what becomes of them.",
)  # fmt: skip
@json_option
def command(once: bool, every_s: float, as_json: bool) -> None:
    """Show nodes, GPUs, workers, queues and rates, live; q or Ctrl+C leaves."""
    if once or as_json or not sys.stdout.isatty():
        _print(session.run(_once()), as_json=as_json)
        return
    from rbee.keeper.top import screen

    session.run(screen.run(session.queen(), every_s))


async def _once() -> Picture:
    """One picture, with rates over a second."""
    fleet = Fleet()
    async with session.queen() as queen:
        fleet.looked(await watch.look(queen))
        await asyncio.sleep(_BETWEEN_S)
        for report in await all_workers(queen):
            fleet.told(report, removed=False)
        fleet.looked(await watch.look(queen))
    return fleet.picture()


def _print(picture: Picture, *, as_json: bool) -> None:
    if as_json:
        show_json(picture)
        return
    for line in (rows.headline(picture), *rows.troubles(picture)):
        click.echo(printable(line))
    for (heads, cells), nothing in zip(rows.tables(picture), ("no node reports", "no workers"), strict=True):
        click.echo()
        show_table(heads, cells, nothing)
