"""Unpacks a tar archive: regular files only, nothing outside its folder, no more than the disk has room for. Blocks."""

import gzip
import os
import tarfile
import threading
import zlib
from pathlib import Path

from rbee.hive.models.listing import MOST_FILES, safe_path
from rbee.hive.models.manifest import check_goes_on
from rbee.hive.models.sink import disk_full, refused
from rbee.wire.errors import DownloadFailed

_CHUNK = 1 << 20


def unpack(archive: Path, folder: Path, reserve: int, stopping: threading.Event) -> None:
    """Unpack ``archive`` into ``folder``, a single folder at its top left out; ``reserve`` bytes of the disk stay free.

    Raises DownloadFailed for an archive with links, devices or paths that lead outside, InsufficientDisk,
    StorageUnavailable, also once ``stopping`` is set.
    """
    try:
        with tarfile.open(archive) as tar:
            members = _checked(tar)
            top = _common_top([member.name for member in members])
            for member in members:
                _extract(tar, member, folder / member.name.removeprefix(top), reserve, stopping)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DownloadFailed(
            "the archive does not unpack: it is no tar archive; make it with tar(1)", details={"reason": "bad_archive"}
        ) from error
    except OSError as error:
        raise refused(error) from error


def _checked(tar: tarfile.TarFile) -> list[tarfile.TarInfo]:
    files = []
    for member in tar:
        if member.isdir():
            continue
        if not member.isreg():
            raise DownloadFailed(
                "the archive holds a link or a device: nothing of it is kept; pack regular files only",
                details={"reason": "unsafe_path"},
            )
        member.name = safe_path(member.name.removeprefix("./"))
        files.append(member)
        if len(files) > MOST_FILES:
            raise DownloadFailed(f"the archive holds over {MOST_FILES} files", details={"reason": "bad_archive"})
    return files


def _common_top(names: list[str]) -> str:
    """The folder with its slash that every name begins with, or nothing."""
    tops = {name.partition("/")[0] for name in names if "/" in name}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""


def _extract(
    tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, reserve: int, stopping: threading.Event
) -> None:
    source = tar.extractfile(member)
    if source is None:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with source, target.open("xb") as file:
        while chunk := source.read(_CHUNK):
            file.write(chunk)
            check_goes_on(stopping)
            disk = os.fstatvfs(file.fileno())
            if disk.f_bavail * disk.f_frsize < reserve:
                raise disk_full("the disk became full while the archive was unpacked")
