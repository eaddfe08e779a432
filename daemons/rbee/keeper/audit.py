"""The audit logs of this machine as the command reads them: where they lie, and which entries are wanted. Blocking."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbee.host.audit.chain import FILE_NAME, fields_of, files_of, lines_of
from rbee.host.paths import STATE_DIR
from rbee.keeper.failure import CommandFailed

DAEMONS = ("queen", "hive")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which entries to show: each filter that is given has to fit.

    ``event`` is an event's name or its first part (auth, worker); ``about`` a value of the details; ``since`` the
    beginning of a timestamp, such as 2026-11-25T14.
    """

    event: str | None = None
    actor: str | None = None
    about: str | None = None
    since: str | None = None

    def fits(self, entry: dict[str, Any]) -> bool:
        """Whether an entry of these fields is wanted."""
        event, stamp = str(entry.get("event_type")), str(entry.get("timestamp"))
        return (
            self.event in (None, event, event.partition(".")[0])
            and self.actor in (None, entry.get("actor"))
            and (self.about is None or _names(entry["details"], self.about))
            and (self.since is None or stamp >= self.since)
        )


def _names(details: dict[str, Any], value: str) -> bool:
    return any(value in map(str, one) if isinstance(one, list) else str(one) == value for one in details.values())


def logs(folders: Sequence[Path]) -> list[list[Path]]:
    """The files of each folder's audit log, the oldest first; without folders those of queen and hive.

    Raises CommandFailed where there is none, or it cannot be read.
    """
    places = list(folders) or [STATE_DIR / daemon for daemon in DAEMONS]
    found = []
    for place in places:
        try:
            files = files_of(place)
        except (FileNotFoundError, NotADirectoryError):
            files = []
        except OSError as error:
            raise unreadable(place, error) from error
        if files:
            found.append(files)
    if not found:
        shown = " and ".join(map(str, places))
        raise CommandFailed(f"there is no {FILE_NAME} in {shown}: name its folder with --dir, and see 'audit' there")
    return found


def entries(files: Sequence[Path], wanted: Wanted) -> Iterator[dict[str, Any]]:
    """The wanted entries of a log's files in their order; raises CommandFailed for one that cannot be read."""
    return fitting((raw for _, _, raw in lines_of(files)), wanted, files[-1])


def fitting(lines: Iterable[bytes], wanted: Wanted, place: Path) -> Iterator[dict[str, Any]]:
    """The wanted entries among lines of the log at ``place``; raises CommandFailed where they cannot be read."""
    try:
        for raw in lines:
            fields = fields_of(raw)
            if fields is not None and wanted.fits(fields):
                yield fields
    except OSError as error:
        raise unreadable(Path(str(error.filename or place)), error) from error


def unreadable(path: Path, error: OSError) -> CommandFailed:
    """Why a file or folder could not be read."""
    return CommandFailed(
        f"{path}: the audit log cannot be read: {error.strerror}: run it as root, or as a member of the daemon's group"
    )
