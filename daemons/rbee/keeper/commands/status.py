"""`rbee status`: the whole fleet on one screen."""

import asyncio

import click
import msgspec

from rbee.keeper import session
from rbee.keeper.render import show_json, show_table
from rbee.keeper.session import json_option
from rbee.keeper.text import printable
from rbee.keeper.top.picture import QueenFacts
from rbee.keeper.top.rows import HIVE_HEADS, hive_row
from rbee.keeper.workers import HEADS, all_workers, row
from rbee.wire.machines import HiveList, HiveView
from rbee.wire.messages import WorkerReport
from rbee.wire.nodes import Node, NodeList, NodeStatus


class Status(msgspec.Struct, frozen=True):
    """The queen, the machines whose hives report, the nodes of the registry, and every worker."""

    queen: QueenFacts
    hives: list[HiveView]
    nodes: list[Node]
    workers: list[WorkerReport]


@click.command("status")
@json_option
def command(as_json: bool) -> None:
    """Show the queen, the machines with their memory and GPUs, and every worker."""
    found = session.run(_ask())
    if as_json:
        show_json(found)
        return
    facts = found.queen
    click.echo(printable(f"queen: {facts.status}, version {facts.version or 'unknown'}"))
    for line in facts.degraded:
        click.echo(printable(f"attention: {line}"))
    heard = {hive.hive_id for hive in found.hives}
    machines = [hive_row(hive) for hive in found.hives]
    machines += [_unheard(node) for node in found.nodes if node.details.name not in heard]
    click.echo()
    show_table(HIVE_HEADS, machines, "hives: none has reported: systemctl status rbee-hive tells why")
    click.echo()
    show_table(HEADS, [row(worker) for worker in found.workers], "no workers yet: rbee worker spawn --help")


def _unheard(node: Node) -> tuple[str, ...]:
    """A node of the registry whose hive has not reported to this queen."""
    state = "not heard" if node.status is NodeStatus.REACHABLE else node.status.value
    return (node.details.name, state, node.details.version or "not installed", *("-" * 6))


async def _ask() -> Status:
    async with session.queen() as queen:
        facts, hives, nodes, workers = await asyncio.gather(
            queen.call("GET", "/health", QueenFacts),
            queen.call("GET", "/v2/hives", HiveList),
            queen.call("GET", "/v2/registry/beehives/list", NodeList),
            all_workers(queen),
        )
    return Status(facts, hives.hives, nodes.nodes, workers)
