"""`rbee node start`, `stop`, `restart`, `logs`: a node's hive and workers by systemctl and journalctl over SSH."""

import sys
from pathlib import Path

import click

from rbee.keeper.commands.node.shown import key_option, known_node, not_installed
from rbee.keeper.nodes import preflight, reach
from rbee.keeper.nodes.install import HIVE_UNITS
from rbee.keeper.nodes.remote import Root
from rbee.keeper.render import show_json
from rbee.keeper.session import json_option
from rbee.keeper.text import printable
from rbee.wire import names

_ORDER_LIMIT_S = 120.0
_WORKERS = "rbee-worker@*.service"


@click.command("start")
@click.argument("name")
@key_option
@json_option
def start(name: str, key: Path | None, as_json: bool) -> None:
    """Start the hive of the node NAME."""
    _tell(name, key, [["systemctl", "reset-failed", *HIVE_UNITS], ["systemctl", "start", *HIVE_UNITS]], as_json)


@click.command("stop")
@click.argument("name")
@click.option("--workers", is_flag=True, help="Its workers too: each ends what it is at first.")
@key_option
@json_option
def stop(name: str, workers: bool, key: Path | None, as_json: bool) -> None:
    """Stop the hive of the node NAME; its workers go on serving, unless told otherwise."""
    orders = [["systemctl", "stop", *reversed(HIVE_UNITS)], *([["systemctl", "stop", _WORKERS]] if workers else [])]
    _tell(name, key, orders, as_json)


@click.command("restart")
@click.argument("name")
@key_option
@json_option
def restart(name: str, key: Path | None, as_json: bool) -> None:
    """Restart the hive of the node NAME; its workers do not notice."""
    _tell(name, key, [["systemctl", "restart", HIVE_UNITS[-1]]], as_json)


def _tell(name: str, key: Path | None, orders: list[list[str]], as_json: bool) -> None:
    """Give systemd there the orders, then say what it says of the hive."""
    node = known_node(name)
    with reach.connect(node, key) as ssh:
        root = Root(ssh)
        if not preflight.package_version(ssh, preflight.HIVE_PACKAGE):
            raise not_installed(name)
        for order in orders:
            root.run(order, limit_s=_ORDER_LIMIT_S, check=order[1] != "reset-failed")
        state = root.unit(HIVE_UNITS[-1])
    if as_json:
        show_json({"node": name, "active": state.active, "sub": state.sub, "result": state.result})
    else:
        click.echo(f"node {name}: rbee-hive is {printable(state.line)}")


@click.command("logs")
@click.argument("name")
@click.option("--worker", metavar="ID", help="The log of this worker, instead of the hive's.")
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl+C.")
@click.option("--lines", "-n", type=click.IntRange(1, 10_000), default=100, show_default=True)
@key_option
def logs(name: str, worker: str | None, follow: bool, lines: int, key: Path | None) -> None:
    """Print the journal of the hive, or of a worker, of the node NAME."""
    print_logs(name, worker, follow=follow, lines=lines, key=key)


def print_logs(name: str, worker: str | None, *, follow: bool, lines: int, key: Path | None) -> None:
    """Write the node's journal to stdout as it comes; raises what SSH and the queen raise."""
    unit = HIVE_UNITS[-1] if worker is None else names.unit_of(worker)
    argv = ["journalctl", "--no-pager", "--output=short-iso", f"--lines={lines}", f"--unit={unit}"]
    with reach.connect(known_node(name), key) as ssh:
        for chunk in Root(ssh).stream([*argv, *(["--follow"] if follow else [])]):
            sys.stdout.write(printable(chunk.decode(errors="replace")))
            sys.stdout.flush()
