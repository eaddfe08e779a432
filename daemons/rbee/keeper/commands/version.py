"""`rbee version`: this command's version, and on request the daemons'."""

import platform

import click

from rbee import __version__
from rbee.keeper.render import show_json
from rbee.wire.messages import API_VERSION


@click.command("version")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Print the version of this command and of the API that it speaks."""
    if as_json:
        show_json({"version": __version__, "api_version": API_VERSION, "python": platform.python_version()})
    else:
        click.echo(f"rbee {__version__} (API {API_VERSION})")
