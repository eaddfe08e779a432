"""`rbee logs`: the journal of a node's hive or worker, from wherever the person is."""

from pathlib import Path

import click

from rbee.keeper.commands.node.life import print_logs
from rbee.keeper.commands.node.shown import key_option


@click.command("logs")
@click.option("--node", required=True, metavar="NAME", help="The node, as 'rbee node list' names it.")
@click.option("--worker", metavar="ID", help="The log of this worker, instead of the hive's.")
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl+C.")
@click.option("--lines", "-n", type=click.IntRange(1, 10_000), default=100, show_default=True)
@key_option
def command(node: str, worker: str | None, follow: bool, lines: int, key: Path | None) -> None:
    """Print the journal of a node's hive, or of one of its workers."""
    print_logs(node, worker, follow=follow, lines=lines, key=key)
