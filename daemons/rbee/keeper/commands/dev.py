"""`rbee dev`: a first look at everything, in one terminal."""

import asyncio

import click

from rbee.keeper.text import printable


@click.command("dev")
@click.option(
    "--port", type=click.IntRange(1024, 65535), default=8080, show_default=True, help="The queen's, or the next free."
)
@click.option("--once", is_flag=True, help="End after the demonstration.")
@click.option("--verbose", is_flag=True, help="Show what the daemons log, as it comes.")
def command(port: int, once: bool, verbose: bool) -> int:
    """Run queen, hive and two workers as children of this terminal, without root or systemd.

    Builds two small models on the first run, asks them, prints the lines to go on with, and waits for Ctrl+C.
    """
    from rbee.keeper.dev.run import Options, run

    return asyncio.run(run(Options(port, once, verbose), _say))


def _say(line: str) -> None:
    click.echo(printable(line))
