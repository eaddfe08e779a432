"""`rbee doctor`: what this machine lacks, one line each."""

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator

import click

from rbee.host.paths import Paths
from rbee.keeper.doctor import device, house, paths
from rbee.keeper.doctor.finding import Finding, Level
from rbee.keeper.render import show_json
from rbee.keeper.session import json_option
from rbee.keeper.text import printable

_COLOURS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


@click.command("doctor")
@json_option
def command(as_json: bool) -> int:
    """Check this machine: units, sockets, tokens, users, driver, CUDA, clock, and the way to the queen.

    Each line is ok, warn or fail, with what to do. Exits 1 where something fails. Run it as root to see everything.
    """
    findings = []
    for finding in _examine(Paths()):
        findings.append(finding)
        if not as_json:
            _show(finding)
    if as_json:
        show_json(findings)
    return int(any(finding.level is Level.FAIL for finding in findings))


def _examine(places: Paths) -> Iterator[Finding]:
    yield from house.users()
    yield from house.tokens()
    yield from house.units()
    yield from house.configuration(places)
    yield from asyncio.run(_all(paths.sockets(places.run_dir)))
    yield from asyncio.run(_all(paths.callback(places.config_dir, places.run_dir)))
    yield from paths.clock()
    yield from device.device(places.config_dir)
    yield from house.versions(places)


async def _all(findings: AsyncIterator[Finding]) -> list[Finding]:
    return [finding async for finding in findings]


def _show(finding: Finding) -> None:
    level = click.style(f"{finding.level:<4}", fg=_COLOURS[finding.level])
    click.echo(f"{level}  {finding.subject:<13}  {printable(finding.message)}")
    if finding.todo:
        click.echo(f"{'':21}next: {printable(finding.todo)}")
    sys.stdout.flush()
