"""`rbee node`: the machines of the fleet, over the person's own SSH key and agent."""

import click

from rbee.keeper.commands.node import life, registry, setup


@click.group("node")
def command() -> None:
    """Add machines to the fleet over SSH, set them up, and look after them."""


for _part in (
    *(registry.add, registry.update, registry.list_, registry.check, registry.remove),
    *(setup.install, setup.rotate, life.start, life.stop, life.restart, life.logs),
):
    command.add_command(_part)
