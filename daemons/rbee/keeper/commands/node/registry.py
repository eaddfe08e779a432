"""`rbee node add`, `update`, `list`, `check`, `remove`: the registry of nodes."""

import datetime
import time
from pathlib import Path

import click

from rbee.keeper.commands.node.shown import key_option, known_node, not_installed
from rbee.keeper.failure import CommandFailed
from rbee.keeper.nodes import enlist, preflight, queen, reach
from rbee.keeper.nodes import purge as purging
from rbee.keeper.nodes.remote import Root
from rbee.keeper.nodes.steps import Steps
from rbee.keeper.render import say, show_json, show_table
from rbee.keeper.session import json_option
from rbee.keeper.text import duration, printable
from rbee.wire import names
from rbee.wire.nodes import Node, NodeCheck, NodeTls, NodeUpdate

HEADS = ("NODE", "HOST", "STATUS", "LAST CONNECTED", "VERSION", "HIVE")
TLS = click.Choice([choice.value for choice in NodeTls])
host_key_option = click.option(
    "--host-key", metavar="SHA256:...", help="Fingerprint that the server's host key must have."
)


@click.command("add")
@click.argument("name")
@click.option("--host", required=True, help="The machine's name or address.")
@click.option("--port", type=click.IntRange(1, 65535), default=22, show_default=True)
@click.option("--user", default="root", show_default=True, help="Who logs in: root, or one who may use sudo.")
@key_option
@host_key_option
@click.option("--address", "addresses", multiple=True, help="An IP address of its workers; default: the one reached.")
@click.option("--packages", "packages", default="", metavar="FOLDER|LINE", help="Where its packages come from.")
@click.option("--tls", type=TLS, default="mutual", show_default=True, help="off: in clear, on a trusted network only.")
@json_option
def add(
    name: str,
    host: str,
    port: int,
    user: str,
    key: Path | None,
    host_key: str | None,
    addresses: tuple[str, ...],
    packages: str,
    tls: str,
    as_json: bool,
) -> None:
    """Prove SSH to the machine NAME, then save it in the queen's registry."""
    names.hive_id(name)
    wanted = enlist.Wanted(
        host, port, user, reach.checked_key(key), host_key, addresses, packages or None, NodeTls(tls)
    )  # fmt: skip
    if any(node.details.name == name for node in queen.all_nodes()):
        raise CommandFailed(
            f"a node {name} is in the registry: change it with 'rbee node update {name}', or take it out with "
            f"'rbee node remove {name}'"
        )
    _show_saved(enlist.add(name, wanted, confirm=reach.ask_person), as_json)


@click.command("update")
@click.argument("name")
@click.option("--host", help="The machine's name or address.")
@click.option("--port", type=click.IntRange(1, 65535))
@click.option("--user", help="Who logs in: root, or one who may use sudo.")
@key_option
@host_key_option
@click.option("--address", "addresses", multiple=True, help="An IP address of its workers, instead of those known.")
@click.option("--packages", "packages", metavar="FOLDER|LINE", help="Where its packages come from.")
@click.option("--tls", type=TLS, help="off: in clear, on a trusted network only.")
@json_option
def update(
    name: str,
    host: str | None,
    port: int | None,
    user: str | None,
    key: Path | None,
    host_key: str | None,
    addresses: tuple[str, ...],
    packages: str | None,
    tls: str | None,
    as_json: bool,
) -> None:
    """Change what is known of the node NAME; SSH is proven before anything is saved."""
    wanted = enlist.Wanted(
        host, port, user, key, host_key, addresses, packages, None if tls is None else NodeTls(tls)
    )  # fmt: skip
    _show_saved(enlist.update(known_node(name), wanted, confirm=reach.ask_person), as_json)


@click.command("list")
@click.option("--capability", metavar="BACKEND[:N]", help="Only nodes that can run it now: cpu, cuda, cuda:1.")
@json_option
def list_(capability: str | None, as_json: bool) -> None:
    """Show every node with its host, status, last connection and version."""
    nodes = queen.all_nodes() if capability is None else queen.nodes_with(capability)
    nothing = "no nodes yet: rbee node add NAME --host ADDRESS"
    if as_json:
        show_json({"nodes": nodes})
    else:
        show_table(HEADS, [_row(node) for node in nodes], nothing if capability is None else "no node has that now")


@click.command("check")
@click.argument("name")
@key_option
@json_option
def check(name: str, key: Path | None, as_json: bool) -> None:
    """Look at the node NAME over SSH, and have the queen ask its hive; exit 1 when something is wrong."""
    node = known_node(name)
    with reach.connect(node, key) as ssh:
        found = preflight.look(ssh, name)
    queen.update(NodeUpdate(name=name, version=found.hive_version, connected=True))
    result = NodeCheck(name, found.checks + (queen.check(name).checks if found.hive_version else []))
    if as_json:
        show_json({"node": name, "good": result.good, "checks": result.checks})
    else:
        for one in result.checks:
            say(enlist.line_of(one))
    if not found.hive_version:
        raise not_installed(name)
    if not result.good:
        raise CommandFailed(f"node {name} is not as it should be: see what is marked with '!'")


@click.command("remove")
@click.argument("name")
@click.option(
    "--purge", is_flag=True, help="First stop its hive and workers, and remove what the installation brought."
)
@key_option
@json_option
def remove(name: str, purge: bool, key: Path | None, as_json: bool) -> None:
    """Take the node NAME out of the registry: its credentials count no longer."""
    node = known_node(name)
    steps = Steps()
    if purge:
        if not node.enrolled:
            raise CommandFailed(
                f"node {name} was not set up by 'rbee node install': what runs there is not ours to remove"
            )
        with reach.connect(node, key) as ssh:
            purging.purge(Root(ssh), steps)
    queen.remove(name)
    if as_json:
        show_json({"node": name, "state": "removed", "steps": steps.done})
    else:
        click.echo(f"node {name}: removed from the registry{' and purged' if purge else ''}")


def _show_saved(node: Node, as_json: bool) -> None:
    if as_json:
        show_json(node)
        return
    details = node.details
    click.echo(f"node {printable(details.name)}: {node.status.value} at {printable(details.host)} port {details.port}")
    if not details.version:
        say(f"  next: rbee node install {details.name}")


def _row(node: Node) -> tuple[str, ...]:
    details = node.details
    moment = datetime.datetime.fromtimestamp(node.connected_unix, tz=datetime.UTC).astimezone()
    ago = duration(max(0.0, time.time() - node.connected_unix))
    hive = "-" if node.silent_s is None else f"{node.hive_version}, heard {duration(node.silent_s)} ago"
    return (
        details.name,
        details.host if details.port == 22 else f"{details.host}:{details.port}",
        node.status.value,
        f"{moment.strftime('%Y-%m-%d %H:%M')} ({ago} ago)",
        details.version or "not installed",
        hive,
    )
