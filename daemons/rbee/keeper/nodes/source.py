"""Where a node's packages come from: a local folder of .deb files, or an apt source line."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rbee.keeper.failure import CommandFailed

PACKAGES = ("rbee-common", "rbee-hive", "rbee-worker")
"""What a node is given, in the order in which they depend on one another."""
_LINE = re.compile(r"deb(\s+\[[^\]\n]*\])?\s+\S+\s+\S+.*")
_FILE = re.compile(r"(?P<name>[a-z0-9][a-z0-9+.-]+)_(?P<version>[^_]+)_[a-z0-9]+\.deb")


@dataclass(frozen=True, slots=True)
class AptLine:
    """A source line of apt, and the local file of the key that signs it, if it is not on the node already."""

    line: str
    keyring: Path | None = None


@dataclass(frozen=True, slots=True)
class Deb:
    """A package's file and the version that its name says."""

    name: str
    version: str
    path: Path


@dataclass(frozen=True, slots=True)
class DebFolder:
    """A folder with one .deb of each package, or a repository that packaging/build made."""

    path: Path


Source = AptLine | DebFolder


def parse(given: str, keyring: str | None) -> Source:
    """What a person named; raises CommandFailed for what is neither a folder nor a source line."""
    if given.startswith("deb ") or given.startswith("deb\t"):
        if not _LINE.fullmatch(given):
            raise CommandFailed("the apt source line is none: it has the form 'deb [options] URL SUITE COMPONENT'")
        file = None if keyring is None else Path(keyring).expanduser()
        if file is not None and not file.is_file():
            raise CommandFailed(f"the keyring {file} is not there: name the file that signs the packages")
        return AptLine(given, file)
    folder = Path(given).expanduser().absolute()
    if not folder.is_dir():
        raise CommandFailed(
            f"{folder} is no folder: name one with the .deb files with --packages, or an apt source line 'deb ...'"
        )
    return DebFolder(folder)


def debs_in(folder: Path, release: str) -> list[Deb]:
    """The packages for a node in a folder, those for its Debian release where the folder is a repository.

    Raises CommandFailed where one is missing, or there are several of one.
    """
    place = folder / "pool" / release if (folder / "pool" / release).is_dir() else folder
    matches = [(path, _FILE.fullmatch(path.name)) for path in sorted(place.glob("*.deb"))]
    found = [Deb(match["name"], match["version"].replace("%3a", ":"), path) for path, match in matches if match]
    return [_only(place, name, [deb for deb in found if deb.name == name]) for name in PACKAGES]


def _only(place: Path, name: str, found: Sequence[Deb]) -> Deb:
    if len(found) != 1:
        told = "there is none" if not found else f"there are {len(found)}: keep the one to install"
        raise CommandFailed(f"{place} has to have one {name}_VERSION_ARCH.deb: {told}")
    return found[0]
