"""A file that grows as bytes come, hashed as it grows; it goes on from what an earlier try left. Blocking calls."""

import errno
import hashlib
import os
import threading
from io import FileIO
from pathlib import Path

from rbee.hive.models.listing import Digest
from rbee.hive.models.manifest import check_goes_on
from rbee.wire.errors import InsufficientDisk, StorageUnavailable

_READ_CHUNK = 4 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Sink:
    """One partial file. Every call raises InsufficientDisk when the disk is full, StorageUnavailable otherwise.

    The disk counts as full when fewer than ``reserve`` bytes are left of it. ``size`` counts the bytes that are
    there. Both digests are of the whole content; git's needs ``expected``, the final size: it is hashed ahead.
    """

    def __init__(self, path: Path, expected: int | None, digest: Digest, reserve: int) -> None:
        self._path = path
        self._reserve = reserve
        self._expected = expected
        self._digest = digest
        self._file: FileIO | None = None
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(usedforsecurity=False)
        self.size = 0

    def open(self, stopping: threading.Event) -> None:
        """Open the file, and hash what an earlier try left of it; one that is too long already is begun anew.

        Once ``stopping`` is set it ends with StorageUnavailable.
        """
        self._begin()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+")
            while chunk := self._file.read(_READ_CHUNK):
                self._count(chunk)
                check_goes_on(stopping)
            if self._expected is not None and self.size > self._expected:
                self.restart()
        except OSError as error:
            raise refused(error) from error

    def write(self, chunk: bytes) -> None:
        """Append ``chunk``."""
        file = self._opened()
        try:
            rest = memoryview(chunk)
            while rest:
                rest = rest[file.write(rest) :]
            free = free_bytes(file.fileno())
        except OSError as error:
            raise refused(error) from error
        if free < self._reserve:
            raise disk_full()
        self._count(chunk)

    def restart(self) -> None:
        """Throw away what is there."""
        file = self._opened()
        try:
            file.seek(0)
            file.truncate()
        except OSError as error:
            raise refused(error) from error
        self._begin()

    def finish(self) -> bool:
        """Bring the content to the disk; whether it is what the digest says."""
        try:
            os.fsync(self._opened().fileno())
        except OSError as error:
            raise refused(error) from error
        found = self._sha256 if self._digest.kind == "sha256" else self._git
        return found.hexdigest() == self._digest.hex

    @property
    def sha256(self) -> str:
        """SHA-256 of the content so far, in hex."""
        return self._sha256.hexdigest()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> FileIO:
        if self._file is None:
            raise StorageUnavailable("the partial file is not open")
        return self._file

    def _begin(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._git = hashlib.sha1(f"blob {self._expected or 0}\0".encode(), usedforsecurity=False)

    def _count(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self._sha256.update(chunk)
        if self._digest.kind != "sha256":
            self._git.update(chunk)


def free_bytes(place: Path | int) -> int:
    """Bytes that the disk of a folder, or of an open file, has room for."""
    disk = os.statvfs(place)
    return disk.f_bavail * disk.f_frsize


def disk_full(message: str = "the disk became full while the model was written") -> InsufficientDisk:
    """The error of a disk that filled up."""
    return InsufficientDisk(
        f"{message}: what came of it was removed; free some, for example with 'rbee model rm' (rbee catalog list shows "
        "sizes and last uses), then pull again",
        details={"reason": "disk_full"},
    )


def refused(error: OSError) -> InsufficientDisk | StorageUnavailable:
    """What a failed write means: a disk that is full, or one that refuses."""
    if error.errno in _FULL:
        return disk_full()
    return StorageUnavailable(
        f"the model cannot be written: {error.strerror}; check the owner and mode of the folder of models",
    )
