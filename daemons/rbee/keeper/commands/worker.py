"""`rbee worker`: see, start, stop, follow and remove workers."""

import sys

import aiohttp
import click

from rbee.keeper import lifecycle, session
from rbee.keeper.failure import CommandFailed
from rbee.keeper.render import show_json, show_table
from rbee.keeper.session import json_option
from rbee.keeper.text import printable
from rbee.keeper.workers import (
    HEADS,
    HEALTH_HEADS,
    HealthList,
    all_workers,
    checked_backend,
    health_row,
    one_worker,
    row,
)
from rbee.wire import names
from rbee.wire.messages import SpawnRequest, WorkerReport
from rbee.wire.worker_spec import Task

_LOG_HEAD_LIMIT_S = 10.0

node_option = click.option("--node", metavar="HIVE", help="The hive whose worker it is.")
wait_option = click.option("--wait/--no-wait", default=True, show_default=True, help="Wait for the new state.")


@click.group("worker")
def command() -> None:
    """List, start, stop, follow and remove workers."""


@command.command("list")
@click.option("--hive", "ask_hive", is_flag=True, help="Ask this machine's hive instead of the queen.")
@node_option
@json_option
def list_(ask_hive: bool, node: str | None, as_json: bool) -> None:
    """Show every worker with its state."""

    async def ask() -> list[WorkerReport]:
        async with session.hive() if ask_hive else session.queen() as daemon:
            return await all_workers(daemon, node)

    workers = session.run(ask())
    if as_json:
        show_json({"workers": workers})
    else:
        show_table(HEADS, [row(worker) for worker in workers], "no workers yet: rbee worker spawn --help")


@command.command("spawn")
@click.argument("worker_id")
@click.option(
    "--model", "model_ref", help="hf:org/repo, https://host/folder/ or file:///folder; fetched where it is not there."
)
@click.option("--name", help="What clients call the model.")
@click.option("--task", type=click.Choice([task.value for task in Task]), default="auto", show_default=True)
@click.option("--backend", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--device", type=click.IntRange(min=0), help="The GPU; without it the one with the most memory free.")
@click.option("--slots", type=click.IntRange(1, 256), default=4, show_default=True)
@click.option("--ephemeral", is_flag=True, help="Forget the worker at the next start of the machine.")
@node_option
@wait_option
@json_option
def spawn(
    worker_id: str,
    model_ref: str | None,
    name: str | None,
    task: str,
    backend: str,
    device: int | None,
    slots: int,
    ephemeral: bool,
    node: str | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Define the worker WORKER_ID (with --model) and start it."""
    names.worker_id(worker_id)
    if model_ref is not None:
        names.model_reference(model_ref)
    request = SpawnRequest(
        worker_id=worker_id,
        model_ref=model_ref,
        name=name,
        task=Task(task),
        backend=checked_backend(backend) or "cpu",
        device=device,
        slots=slots,
        ephemeral=ephemeral,
        hive_id=node,
    )
    _show_outcome(session.run(lifecycle.spawn(session.queen(), request, wait=wait)), as_json)


@command.command("start")
@click.argument("worker_id")
@node_option
@wait_option
@json_option
def start(worker_id: str, node: str | None, wait: bool, as_json: bool) -> None:
    """Start the worker WORKER_ID, which is defined already."""
    request = SpawnRequest(worker_id=names.worker_id(worker_id), hive_id=node)
    _show_outcome(session.run(lifecycle.spawn(session.queen(), request, wait=wait)), as_json)


@command.command("stop")
@click.argument("worker_id")
@node_option
@wait_option
@json_option
def stop(worker_id: str, node: str | None, wait: bool, as_json: bool) -> None:
    """Drain the worker WORKER_ID (30 s at most) and stop it."""
    _stop(worker_id, node, wait, as_json)


@command.command("shutdown")
@click.option("--id", "worker_id", required=True, metavar="WORKER_ID", help="The worker to shut down.")
@node_option
@wait_option
@json_option
def shutdown(worker_id: str, node: str | None, wait: bool, as_json: bool) -> None:
    """Drain a worker, unload its model and end its process: what `stop` does."""
    _stop(worker_id, node, wait, as_json)


def _stop(worker_id: str, node: str | None, wait: bool, as_json: bool) -> None:
    worker_id = names.worker_id(worker_id)
    _show_outcome(session.run(lifecycle.stop(session.queen(), worker_id, node, wait=wait)), as_json)


@command.command("restart")
@click.argument("worker_id")
@node_option
@wait_option
@json_option
def restart(worker_id: str, node: str | None, wait: bool, as_json: bool) -> None:
    """Drain and stop the worker WORKER_ID, then start it again."""
    worker_id = names.worker_id(worker_id)
    _show_outcome(session.run(lifecycle.restart(session.queen(), worker_id, node, wait=wait)), as_json)


@command.command("health")
@node_option
@json_option
def health(node: str | None, as_json: bool) -> None:
    """Ask each worker through the queen; exit 1 when one has failed or does not answer."""

    async def ask() -> HealthList:
        async with session.queen() as queen:
            return await queen.call("GET", "/v2/workers/health", HealthList)

    workers = [worker for worker in session.run(ask()).workers if node in (None, worker.hive_id)]
    bad = [worker.worker_id for worker in workers if worker.bad]
    if as_json:
        show_json({"workers": workers})
    else:
        show_table(HEALTH_HEADS, [health_row(worker) for worker in workers], "no workers yet: rbee worker spawn --help")
    if bad:
        raise CommandFailed(f"not healthy: {', '.join(bad)}: read their logs with 'rbee worker logs {bad[0]}'")


@command.command("logs")
@click.argument("worker_id")
@click.option("--follow", "-f", is_flag=True, help="Go on until Ctrl+C.")
@click.option("--lines", "-n", type=click.IntRange(1, 10_000), default=100, show_default=True)
def logs(worker_id: str, follow: bool, lines: int) -> None:
    """Print the log of the worker WORKER_ID on this machine."""
    session.run(_logs(names.worker_id(worker_id), follow, lines))


async def _logs(worker_id: str, follow: bool, lines: int) -> None:
    path = f"/v1/workers/{worker_id}/logs?lines={lines}" + ("&follow=1" if follow else "")
    async with (
        session.hive() as hive,
        hive.stream("GET", path, head_limit_s=_LOG_HEAD_LIMIT_S) as response,
    ):
        try:
            async for line in lifecycle.log_lines(response):
                sys.stdout.write(printable(line) + "\n")
                sys.stdout.flush()
        except aiohttp.ClientError as error:
            raise CommandFailed("the hive closed the log: look at it with 'systemctl status rbee-hive'") from error


@command.command("delete")
@click.argument("worker_id")
@node_option
@json_option
def delete(worker_id: str, node: str | None, as_json: bool) -> None:
    """Make the queen forget the worker WORKER_ID; one that runs comes back with its hive's next report."""

    async def ask() -> dict[str, str]:
        async with session.queen() as queen:
            worker = await one_worker(queen, names.worker_id(worker_id), node)
            await queen.send("DELETE", f"/v2/workers/{worker.hive_id}/{worker.worker_id}", timeout_s=_LOG_HEAD_LIMIT_S)
            return {"worker_id": worker.worker_id, "hive_id": worker.hive_id, "state": "deleted"}

    _show_outcome(session.run(ask()), as_json)


def _show_outcome(outcome: dict[str, str], as_json: bool) -> None:
    if as_json:
        show_json(outcome)
    else:
        click.echo(f"worker {printable(outcome['worker_id'])}: {printable(outcome['state'])}")
