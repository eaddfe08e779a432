"""`rbee node install` and `rotate`: what a node is given."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import click

from rbee.keeper.commands.node.shown import key_option, known_node
from rbee.keeper.nodes import reach
from rbee.keeper.nodes.install import install as set_up
from rbee.keeper.nodes.install import plan_of
from rbee.keeper.nodes.remote import Root
from rbee.keeper.nodes.rotate import rotate as renew
from rbee.keeper.nodes.steps import Steps
from rbee.keeper.render import show_json
from rbee.keeper.session import json_option
from rbee.keeper.text import duration
from rbee.wire.nodes import Node


@click.command("install")
@click.argument("name")
@key_option
@click.option("--packages", "given", metavar="FOLDER|LINE", help="A folder of .deb files, or an apt line 'deb ...'.")
@click.option("--keyring", type=click.Path(), help="With an apt line: the file of the key that signs its packages.")
@json_option
def install(name: str, key: Path | None, given: str | None, keyring: str | None, as_json: bool) -> None:
    """Set the node NAME up: packages, credentials, configuration, its hive; a second run changes nothing."""
    node = known_node(name)
    plan = plan_of(node, given, keyring)
    steps = Steps()
    with _connected(node, key, steps) as root:
        set_up(root, plan, steps)
    _show_steps(name, "set up" if steps.changed else "nothing to change", steps, as_json)


@click.command("rotate")
@click.argument("name")
@key_option
@json_option
def rotate(name: str, key: Path | None, as_json: bool) -> None:
    """Give the node NAME other tokens and another certificate, while it serves."""
    node = known_node(name)
    steps = Steps()
    with _connected(node, key, steps) as root:
        renew(root, name, steps)
    _show_steps(name, "rotated", steps, as_json)


@contextlib.contextmanager
def _connected(node: Node, key: Path | None, steps: Steps) -> Iterator[Root]:
    with contextlib.ExitStack() as stack:
        with steps.step("ssh") as note:
            ssh = stack.enter_context(reach.connect(node, key))
            note.told = f"{ssh.address} as {ssh.target.user}"
        yield Root(ssh)


def _show_steps(name: str, outcome: str, steps: Steps, as_json: bool) -> None:
    if as_json:
        show_json({"node": name, "changed": steps.changed, "steps": steps.done})
    else:
        click.echo(f"node {name}: {outcome}, {duration(sum(step.seconds for step in steps.done))}")
