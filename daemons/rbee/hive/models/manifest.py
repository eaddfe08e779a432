"""What a model's folder holds: its files and their digests, and the manifest that a fetched one carries. Blocks."""

import contextlib
import errno
import hashlib
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from rbee.wire.model_messages import FileEntry
from rbee.wire.model_reference import MANIFEST, MODEL_ID

_READ_CHUNK = 4 << 20
_MOST_MANIFEST_BYTES = 16 << 20


class Manifest(msgspec.Struct, frozen=True):
    """The content of ``.rbee-model.json`` in the folder of a fetched model: enough to make its row anew."""

    reference: str
    downloaded_at_unix: float
    files: list[FileEntry]
    pinned: bool = False

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def digest_of(files: Sequence[FileEntry]) -> str:
    """SHA-256 over the files' digests and paths, in the order of the paths, one line each as sha256sum writes them."""
    lines = (f"{file.sha256}  {file.path}\n" for file in sorted(files, key=lambda file: file.path))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest whole or not at all; raises OSError."""
    temporary = folder / f"{MANIFEST}.new"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
    temporary.replace(folder / MANIFEST)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a fetched model's folder, or None where there is none that can be read."""
    path = folder / MANIFEST
    try:
        if path.stat(follow_symlinks=False).st_size > _MOST_MANIFEST_BYTES:
            return None
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def model_files(folder: Path) -> list[Path]:
    """Every regular file under ``folder`` but the manifest, sorted; links are neither followed nor listed."""
    found = []
    for parent, folders, files in os.walk(folder, followlinks=False):
        folders.sort()
        for name in files:
            path = Path(parent, name)
            if name != MANIFEST and stat.S_ISREG(path.lstat().st_mode):
                found.append(path)
    return sorted(found)


def size_of(folder: Path) -> int:
    """Bytes of a model's files, external data included; 0 for a folder that cannot be read."""
    with contextlib.suppress(OSError):
        return sum(path.lstat().st_size for path in model_files(folder))
    return 0


def check_goes_on(stopping: threading.Event) -> None:
    """Raise InterruptedError, an OSError, once ``stopping`` is set: no thread goes on for minutes for nobody."""
    if stopping.is_set():
        raise InterruptedError(errno.EINTR, "it was stopped")


def sha256_of(path: Path, stopping: threading.Event) -> str:
    """SHA-256 of a file in hex; raises OSError, also once ``stopping`` is set."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_READ_CHUNK):
            digest.update(chunk)
            check_goes_on(stopping)
    return digest.hexdigest()


def sha256_bytes(data: bytes) -> str:
    """SHA-256 of a few bytes in hex."""
    return hashlib.sha256(data).hexdigest()


def entries_of(folder: Path, stopping: threading.Event) -> list[FileEntry]:
    """Every file of a folder with its digest, read through; raises OSError, also once ``stopping`` is set."""
    return [
        FileEntry(str(path.relative_to(folder)), path.stat().st_size, sha256_of(path, stopping))
        for path in model_files(folder)
    ]


def differences(recorded: Sequence[FileEntry], found: Sequence[FileEntry]) -> list[str]:
    """What is not as it was recorded, a sentence each; pure."""
    before = {file.path: file for file in recorded}
    now = {file.path: file for file in found}
    problems = [f"{path} is missing" for path in before if path not in now]
    problems += [f"{path} was not there before" for path in now if path not in before]
    for path in before.keys() & now.keys():
        if before[path].size != now[path].size:
            problems.append(f"{path} has {now[path].size} bytes and had {before[path].size}")
        elif before[path].sha256 != now[path].sha256:
            problems.append(f"{path} has another SHA-256 than it had")
    return sorted(problems)


def folders_of(models: Path) -> Iterator[Path]:
    """The folders under ``models`` that can be models: a name that can be an id, no link."""
    with contextlib.suppress(OSError):
        for path in sorted(models.iterdir()):
            if MODEL_ID.fullmatch(path.name) and not path.is_symlink() and path.is_dir():
                yield path
