"""`rbee credentials`: the tokens of this machine, one for each hop, made here and never printed."""

import os
import secrets
import tempfile
from pathlib import Path

import click

from rbee.keeper.failure import CommandFailed

FOLDER = Path("/etc/credstore")
FILES = (
    "rbee-queen.api_token",
    "rbee.hive_callback_token",
    "rbee.hive_api_token",
    "rbee.worker_api_token",
)
_HOLDERS = {
    "rbee-queen.api_token": "rbee-queen",
    "rbee.hive_callback_token": "rbee-queen rbee-hive",
    "rbee.hive_api_token": "rbee-queen rbee-hive",
    "rbee.worker_api_token": "rbee-queen rbee-hive 'rbee-worker@*'",
}
_TOKEN_BYTES = 32


@click.group("credentials")
def command() -> None:
    """Make and rotate the tokens of this machine."""


@command.command("init")
@click.option("--dir", "folder", type=click.Path(path_type=Path), default=FOLDER, show_default=True)
@click.option("--rotate", metavar="NAME", type=click.Choice(FILES), help="Replace this one.")
def init(folder: Path, rotate: str | None) -> None:
    """Make the four token files (mode 0600) that are missing; existing ones are kept.

    After a rotation, reload the daemons that hold the token: the command names them.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in FILES:
            path = folder / name
            if name == rotate:
                replace_token(path)
                click.echo(f"rotated: {path}; next: systemctl reload {_HOLDERS[name]}")
            elif make_token(path):
                click.echo(f"made: {path}")
            else:
                click.echo(f"kept: {path}")
    except OSError as error:
        raise CommandFailed(
            f"the tokens cannot be written to {folder}: {error.strerror}: run it as root, or name a folder of yours"
            " with --dir"
        ) from error


def make_token(path: Path) -> bool:
    """Make a token file unless there is one; True when it was made."""
    prepared = _prepare(path.parent)
    try:
        # a link fails where the name is taken, so a token in use is never replaced
        os.link(prepared, path)
    except FileExistsError:
        return False
    finally:
        prepared.unlink()
    return True


def replace_token(path: Path) -> None:
    """Put a new token in the place of ``path``, atomically."""
    _prepare(path.parent).replace(path)


def _prepare(folder: Path) -> Path:
    """A file with a fresh token in ``folder``, mode 0600, on disk."""
    descriptor, name = tempfile.mkstemp(prefix=".new-", dir=folder)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(secrets.token_urlsafe(_TOKEN_BYTES) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return Path(name)
