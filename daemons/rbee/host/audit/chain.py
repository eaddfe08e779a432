"""Reads audit logs and says whether their chain of hashes is whole. Blocking calls."""

import datetime
import enum
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from rbee.host.audit.entries import GENESIS, EventType, Head, hash_of

FILE_NAME = "audit.jsonl"
_SUFFIX = "%Y%m%dT%H%M%S.%fZ"
_ROTATED = re.compile(r"\.\d{8}T\d{6}\.\d{6}Z\Z")
MOST_LINE = 1 << 16
"""Bytes of an entry; a longer line is none of ours."""


class Flaw(enum.StrEnum):
    """What is wrong with an entry."""

    UNREADABLE = "it is no entry"
    CHANGED = "its content does not give its hash"
    UNCHAINED = "it does not follow the entry before it"
    NO_BEGINNING = "what came before it is missing"
    AFTER = "it follows a broken entry"


@dataclass(frozen=True, slots=True)
class Broken:
    """An entry that does not hold: its file, its line there and its number in the whole, each from 1."""

    file: str
    line: int
    number: int
    flaw: Flaw


@dataclass(slots=True)
class Verdict:
    """What a reading found. ``head`` is the hash of the last entry; ``begins_after`` that of the one before the first.

    ``broken`` has the first broken entry first, then every later one: nothing vouches for those any more. ``seen`` says
    whether the hash that was looked for is there, None where none was.
    """

    entries: int = 0
    files: int = 0
    head: str = GENESIS
    begins_after: str = GENESIS
    broken: list[Broken] = field(default_factory=list)
    seen: bool | None = None

    @property
    def whole(self) -> bool:
        """Whether everything holds."""
        return not self.broken and self.seen is not False


def rotated_name(path: Path, unix: float) -> str:
    """The name of a file that was rotated then."""
    return f"{path.name}.{datetime.datetime.fromtimestamp(unix, datetime.UTC).strftime(_SUFFIX)}"


def rotated_unix(path: Path) -> float:
    """When a rotated file was rotated, by its name."""
    moment = datetime.datetime.strptime(path.name.removeprefix(FILE_NAME + "."), _SUFFIX)
    return moment.replace(tzinfo=datetime.UTC).timestamp()


def files_of(folder: Path) -> list[Path]:
    """The files of a folder's audit log, the oldest first, the one that is written last; raises OSError."""
    names = [path for path in folder.iterdir() if path.name.startswith(FILE_NAME)]
    rotated = sorted(path for path in names if _ROTATED.fullmatch(path.name.removeprefix(FILE_NAME)))
    return rotated + [path for path in names if path.name == FILE_NAME]


def verify(files: Sequence[Path], *, whole_log: bool, look_for: str | None = None) -> Verdict:
    """Follow the chain through ``files``, the oldest first; raises OSError.

    ``whole_log``: they are all there is, so that the first entry begins the chain, or follows a file of which a later
    entry says that it was removed to make room. ``look_for`` is the hash of an entry that has to be among them.
    """
    verdict = Verdict(files=len(files), seen=None if look_for is None else look_for == GENESIS)
    removed: set[str] = {GENESIS}
    first: Broken | None = None
    for file, number, raw in lines_of(files):
        verdict.entries += 1
        fields = fields_of(raw)
        flaw = Flaw.AFTER if verdict.broken else _flaw(fields, verdict)
        place = Broken(str(file), number, verdict.entries, flaw or Flaw.NO_BEGINNING)
        first = first or place
        if flaw is not None:
            verdict.broken.append(place)
        if fields is None or flaw is not None:
            continue
        verdict.head = str(fields["entry_hash"])
        if verdict.head == look_for:
            verdict.seen = True
        if fields.get("event_type") == EventType.AUDIT_REMOVED.value:
            removed.add(str(fields["details"].get("last_hash")))
    if whole_log and first is not None and not verdict.broken and verdict.begins_after not in removed:
        verdict.broken.append(first)
    return verdict


def _flaw(fields: dict[str, Any] | None, verdict: Verdict) -> Flaw | None:
    if fields is None:
        return Flaw.UNREADABLE
    if fields["entry_hash"] != hash_of(fields):
        return Flaw.CHANGED
    if verdict.entries == 1:
        verdict.begins_after = fields["previous_hash"]
    elif fields["previous_hash"] != verdict.head:
        return Flaw.UNCHAINED
    return None


def lines_of(files: Sequence[Path]) -> Iterator[tuple[Path, int, bytes]]:
    """Every line with its file and its number there, from 1; raises OSError."""
    for path in files:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(MOST_LINE):
                number += 1
                yield path, number, raw


def fields_of(raw: bytes) -> dict[str, Any] | None:
    """The fields of a line that is whole and has those of an entry, else None."""
    if not raw.endswith(b"\n"):
        return None
    try:
        msgspec.json.decode(raw, type=Head)
        fields: dict[str, Any] = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return fields if isinstance(fields.get("details"), dict) else None
