"""`rbee audit`: read the audit logs of this machine's queen and hive, and check their chains of hashes."""

import contextlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from rbee.host.audit.chain import Flaw, Verdict, verify
from rbee.keeper.audit import Wanted, entries, logs, unreadable
from rbee.keeper.audit_follow import Reader, Wakings
from rbee.keeper.render import show_json
from rbee.keeper.session import json_option
from rbee.keeper.text import printable

_SHOWN_LATER = 5
Command = TypeVar("Command", bound=Callable[..., Any])
_folder_option = click.option(
    "--dir", "folders", multiple=True, type=click.Path(path_type=Path), metavar="FOLDER",
    help="Where an audit log lies; default: those of this machine's queen and hive.",
)  # fmt: skip


@click.group("audit")
def command() -> None:
    """Read the audit log of this machine's daemons, and check that nobody changed it."""


@command.command("verify")
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
@click.option("--contains", metavar="HASH", help="Fail unless an entry has this hash, such as one of the journal.")
@_folder_option
@json_option
def verify_(files: tuple[Path, ...], contains: str | None, folders: tuple[Path, ...], as_json: bool) -> int:
    """Follow the chain of hashes through whole logs, or through FILES, the oldest first; exit 1 where it breaks."""
    if files and folders:
        raise click.UsageError("name files, or folders with --dir")
    found = [list(files)] if files else logs(folders)
    try:
        verdicts = [verify(log, whole_log=not files, look_for=contains) for log in found]
    except OSError as error:
        raise unreadable(Path(str(error.filename)), error) from error
    seen = contains is None or any(verdict.seen for verdict in verdicts)
    if as_json:
        show_json({"whole": seen and not any(verdict.broken for verdict in verdicts), "logs": verdicts})
    else:
        for log, verdict in zip(found, verdicts, strict=True):
            _tell(log, verdict)
        if not seen:
            click.echo(f"  ! no entry has the hash {printable(contains or '')}: entries at the end are missing")
    return int(not seen or any(verdict.broken for verdict in verdicts))


def _tell(log: list[Path], verdict: Verdict) -> None:
    name = str(log[-1].parent if len(log) > 1 else log[0])
    if not verdict.broken:
        click.echo(f"ok {name}: {verdict.entries} entries in {verdict.files} files, head {verdict.head}")
        return
    first, later = verdict.broken[0], verdict.broken[1:]
    click.echo(f" ! {first.file}, line {first.line}: entry {first.number} is broken: {first.flaw.value}")
    for one in later[:_SHOWN_LATER]:
        click.echo(f"   {one.file}, line {one.line}: entry {one.number}: {Flaw.AFTER.value}")
    if len(later) > _SHOWN_LATER:
        click.echo(f"   and {len(later) - _SHOWN_LATER} later ones")


def _filters(function: Command) -> Command:
    for option in reversed(
        (
            click.option("--event", metavar="TYPE", help="An event, or its first part: worker.spawn, auth."),
            click.option("--actor", metavar="WHO", help="token:xxxxxx, uid:N or system."),
            click.option("--about", metavar="VALUE", help="A worker, node, model or correlation id in the details."),
            click.option("--since", metavar="TIME", help="The beginning of a time in UTC, such as 2026-11-25T14."),
            _folder_option,
            json_option,
        )
    ):
        function = option(function)
    return function


@command.command("show")
@_filters
def show(
    event: str | None, actor: str | None, about: str | None, since: str | None, folders: tuple[Path, ...], as_json: bool
) -> None:
    """Print the entries that fit, the oldest first."""
    wanted = Wanted(event, actor, about, since)
    for log in logs(folders):
        for entry in entries(log, wanted):
            _show(entry, as_json)


@command.command("tail")
@click.option("--lines", "-n", type=click.IntRange(0, 100_000), default=20, show_default=True)
@click.option("--follow", "-f", is_flag=True, help="Go on with new entries as they are written, until Ctrl+C.")
@_filters
def tail(
    lines: int, follow: bool, event: str | None, actor: str | None, about: str | None, since: str | None,
    folders: tuple[Path, ...], as_json: bool,
) -> None:  # fmt: skip
    """Print the latest entries that fit, of queen and hive in the order of their time."""
    wanted = Wanted(event, actor, about, since)
    places = [log[-1].parent for log in logs(folders)]
    with contextlib.ExitStack() as readers:
        found = [readers.enter_context(contextlib.closing(Reader(place))) for place in places]
        latest = [entry for reader in found for entry in deque(reader.entries(wanted), maxlen=lines)]
        _show_in_order(latest, as_json, lines)
        if follow:
            for _ in readers.enter_context(Wakings(places)):
                _show_in_order([entry for reader in found for entry in reader.entries(wanted)], as_json)


def _show_in_order(entries_found: list[dict[str, Any]], as_json: bool, most: int | None = None) -> None:
    entries_found.sort(key=lambda entry: str(entry.get("timestamp")))
    for entry in entries_found if most is None else entries_found[max(0, len(entries_found) - most) :]:
        _show(entry, as_json)


def _show(entry: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(entry).decode())
        return
    details = " ".join(f"{key}={_word(value)}" for key, value in entry["details"].items())
    line = f"{entry.get('timestamp')}  {entry.get('event_type'):<18}  {entry.get('actor'):<14}  {details}"
    click.echo(printable(line))


def _word(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
