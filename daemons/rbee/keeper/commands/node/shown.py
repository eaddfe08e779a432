"""What the commands about nodes share: finding one, and saying what is missing."""

from pathlib import Path

import click

from rbee.keeper import placement
from rbee.keeper.nodes import queen
from rbee.keeper.nodes.failures import NotInstalled
from rbee.wire import names
from rbee.wire.errors import NodeNotFound
from rbee.wire.http.client import RemoteError
from rbee.wire.nodes import Node

key_option = click.option(
    "--key", type=click.Path(path_type=Path), help="File of your private key; without it your agent and usual keys."
)


def known_node(name: str) -> Node:
    """The node of that name; raises NodeNotFound with the command that adds it."""
    try:
        return queen.one(names.hive_id(name))
    except RemoteError as error:
        if error.code == NodeNotFound.code:
            raise placement.node_unknown(name) from None
        raise


def not_installed(name: str) -> NotInstalled:
    """The error of a node without rbee-hive."""
    return NotInstalled(
        f"SSH to node {name} works, but rbee-hive is not installed there: run 'rbee node install {name}'",
        details={"node": name},
    )
