"""`rbee hive`: this machine's hive, asked directly."""

from typing import Any

import click
import msgspec

from rbee import __version__
from rbee.keeper import session, versions
from rbee.keeper.render import show_json
from rbee.keeper.session import json_option
from rbee.keeper.text import printable
from rbee.wire.errors import ProtocolError
from rbee.wire.messages import API_VERSION


class HiveHealth(msgspec.Struct, frozen=True):
    """What the command needs of GET /v1/health."""

    status: str
    version: str
    api_version: str


@click.group("hive")
def command() -> None:
    """Check a machine's hive."""


@command.command("health")
@json_option
def health(as_json: bool) -> None:
    """Ask the hive how it is, and whether its version fits this command."""
    answer = session.run(_health())
    facts = _checked(answer)
    if as_json:
        show_json(answer)
    else:
        click.echo(f"hive: {printable(facts.status)}, version {printable(facts.version)}, API {facts.api_version}")


async def _health() -> dict[str, Any]:
    async with session.hive() as hive:
        return await hive.call("GET", "/v1/health", dict[str, Any])


def _checked(answer: dict[str, Any]) -> HiveHealth:
    try:
        facts = msgspec.convert(answer, HiveHealth)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the hive's health has another shape: {error}", details={"unit": "rbee-hive"}) from None
    versions.check(
        "hive",
        "rbee-hive",
        ours=__version__,
        theirs=facts.version,
        our_api=API_VERSION,
        their_api=facts.api_version,
    )
    return facts
