"""`rbee config`: what this command is configured with, and a first file to start from."""

import os

import click

from rbee.keeper.failure import CommandFailed
from rbee.keeper.render import show_json
from rbee.keeper.session import json_option, settings
from rbee.keeper.settings import Place, user_file

EXAMPLE = """\
# The command rbee: where its queen is and which token to present. Every line may be left out.
# queen_url: http://127.0.0.1:8080
# token_file: ~/.config/rbee/api_token    # one line, mode 0600
# queen_socket: /run/rbee/queen.sock      # goes before queen_url for administrators of this machine
# hive_socket: /run/rbee/hive.sock
# hive_url: http://127.0.0.1:9200
# hive_token_file: ~/.config/rbee/hive_api_token
# node_packages: /srv/rbee                # for rbee node install: a folder of .deb files, or a line 'deb ...' of apt
# node_keyring: /srv/rbee/rbee-archive-keyring.gpg    # with a line of apt: the key that signs its packages
"""


@click.group("config")
def command() -> None:
    """Show or write this command's own configuration."""


@command.command("show")
@json_option
def show(as_json: bool) -> None:
    """Print where the daemons are and where that comes from; never a token."""
    chosen = settings()
    facts = {
        "source": str(chosen.source) if chosen.source else "built-in defaults",
        "queen": _facts(chosen.queen),
        "hive": _facts(chosen.hive),
    }
    if as_json:
        show_json(facts)
        return
    click.echo(f"configuration: {facts['source']}")
    for place in (chosen.queen, chosen.hive):
        token = f", token from {place.token_file}" if place.token_file else ""
        click.echo(f"{place.name}: {place.label}{token}")


@command.command("init")
def init() -> None:
    """Write a commented configuration file into ~/.config/rbee, unless there is one."""
    path = user_file(os.environ)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(EXAMPLE)
    except FileExistsError:
        raise CommandFailed(f"{path} is there already: edit it, or remove it first") from None
    click.echo(f"written: {path}")


def _facts(place: Place) -> dict[str, str | None]:
    return {"address": place.label, "token_file": str(place.token_file) if place.token_file else None}
