"""Unpacks a tar archive: regular files only, nothing outside its folder, no more than the disk has room for. Blocks."""

import errno
import gzip
import tarfile
import threading
import zlib
from dataclasses import dataclass
from pathlib import Path

from rbee.hive.models.listing import MOST_FILES, safe_path
from rbee.hive.models.sink import disk_full, free_bytes, refused
from rbee.hive.models.tar_stream import TarStream
from rbee.wire.errors import DownloadFailed

MOST_ENTRIES = 2 * MOST_FILES
"""Folders are entries too."""
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class _Member:
    """A regular file: its path, and where in the archive its bytes lie."""

    path: str
    at: int
    size: int


class _PassingTar(tarfile.TarFile):
    """Gives entry after entry and keeps none, whose headers may be large."""

    def next(self) -> tarfile.TarInfo | None:
        entry = super().next()
        self.members: list[tarfile.TarInfo] = []
        return entry


def unpack(archive: Path, folder: Path, reserve: int, stopping: threading.Event) -> None:
    """Unpack ``archive`` into ``folder``, a single folder at its top left out; ``reserve`` bytes of the disk stay free.

    Raises DownloadFailed for an archive with links, devices, sparse files, paths that lead outside or headers beyond
    all measure, InsufficientDisk, StorageUnavailable, also soon after ``stopping`` was set.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TarStream(archive, stopping) as stream:
            members = _listed(stream, free_bytes(folder) - reserve)
            top = _common_top([member.path for member in members])
            for member in members:
                _extract(stream, member, folder / member.path.removeprefix(top), reserve)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, RecursionError) as error:
        raise _bad("does not unpack: it is no whole tar archive; make it with tar(1)") from error
    except (FileExistsError, NotADirectoryError) as error:
        raise _bad("holds two files of one name: pack each file once") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise _bad("holds a name that is too long for this disk: pack its files under shorter ones") from error
        raise refused(error) from error


def _bad(why: str, reason: str = "bad_archive") -> DownloadFailed:
    return DownloadFailed(f"the archive {why}", details={"reason": reason})


def _listed(stream: TarStream, room: int) -> list[_Member]:
    """Every file of the archive, checked before anything of it is unpacked; ``room`` in bytes."""
    files: list[_Member] = []
    total = 0
    stream.begin_header()
    with _PassingTar(fileobj=stream) as tar:
        for _ in range(MOST_ENTRIES):
            entry = tar.next()
            if entry is None:
                if not files:
                    raise _bad("holds no file: pack the model's files with tar(1)")
                return files
            if not entry.isdir():
                files.append(_checked(entry))
                total += entry.size
            if total > room:
                raise disk_full(f"the files of the archive take {total} bytes or more, which the disk has no room for")
            if len(files) > MOST_FILES:
                break
            stream.begin_header()
    raise _bad(f"holds over {MOST_FILES} files: pack what the model needs")


def _checked(entry: tarfile.TarInfo) -> _Member:
    if not entry.isreg() or entry.issparse() or entry.size < 0:
        raise _bad(
            "holds a link, a device or a sparse file: nothing of it is kept; pack regular files only", "unsafe_path"
        )
    return _Member(safe_path(entry.name.removeprefix("./")), entry.offset_data, entry.size)


def _common_top(names: list[str]) -> str:
    """The folder with its slash that every name begins with, or nothing."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""


def _extract(stream: TarStream, member: _Member, target: Path, reserve: int) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    stream.begin_content(member.at, member.size)
    left = member.size
    with target.open("xb") as file:
        while left:
            chunk = stream.read(min(left, _CHUNK))
            if not chunk:
                raise EOFError
            file.write(chunk)
            left -= len(chunk)
            if free_bytes(file.fileno()) < reserve:
                raise disk_full("the disk became full while the archive was unpacked")
