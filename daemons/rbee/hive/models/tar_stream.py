"""The bytes of a tar archive, gzipped or not, read in steps: bounded, and each the last once it is stopped. Blocks."""

import gzip
import io
import os
import threading
from pathlib import Path
from typing import BinaryIO, cast

from rbee.hive.models.manifest import check_goes_on
from rbee.wire.errors import DownloadFailed

MOST_HEADER_BYTES = 1 << 20
"""Of one entry, its extended headers included: a path of 1024 letters with all that tar(1) adds takes a few KiB."""
_STEP = 1 << 20
_GZIP_MAGIC = b"\x1f\x8b"  # RFC 1952, 2.3.1


class TarStream(io.BufferedIOBase):
    """A seekable file for :mod:`tarfile`, which takes what a header says of its length on trust.

    It gives no more bytes than the entry at hand may have: :meth:`begin_header`, :meth:`begin_content`. Every call
    raises InterruptedError soon after ``stopping`` was set, and OSError, EOFError or zlib.error for a broken archive.
    """

    def __init__(self, archive: Path, stopping: threading.Event) -> None:
        self._raw = archive.open("rb")
        self._stopping = stopping
        self._zipped = self._raw.peek(len(_GZIP_MAGIC))[: len(_GZIP_MAGIC)] == _GZIP_MAGIC
        self._file = cast(BinaryIO, gzip.GzipFile(fileobj=self._raw)) if self._zipped else self._raw
        self._allowed = 0

    def begin_header(self) -> None:
        """The next entry's headers are to be read."""
        self._allowed = MOST_HEADER_BYTES

    def begin_content(self, at: int, size: int) -> None:
        """``size`` bytes at ``at`` are to be read."""
        self.seek(at)
        self._allowed = size

    def read(self, size: int | None = -1) -> bytes:
        """``size`` bytes, fewer only at the end; raises DownloadFailed for more than the entry at hand may have."""
        check_goes_on(self._stopping)
        if size is None or not 0 <= size <= self._allowed:
            raise DownloadFailed(
                f"the archive has an entry whose headers take over {MOST_HEADER_BYTES} bytes: "
                "pack it anew with tar --format=ustar",
                details={"reason": "bad_archive"},
            )
        self._allowed -= size
        return self._file.read(size)

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position from the start. What is gzipped is unpacked up to there, in steps."""
        if whence != os.SEEK_SET or position < 0:
            raise OSError("an archive is read from its start")
        if not self._zipped or position < self._file.tell():
            self._file.seek(position if not self._zipped else 0)
        while (left := position - self._file.tell()) > 0:
            check_goes_on(self._stopping)
            if not self._file.read(min(left, _STEP)):
                break
        return self._file.tell()

    def tell(self) -> int:
        """The position in the unpacked archive."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._raw.close()
        super().close()
