"""Audit logs read on as they are written: each from its first entry, over every rotation. Blocking.

tail(1) tells when there is something new: it is woken by the kernel (inotify) and knows of files that were replaced.
What is new is then read here, by whole lines, so that none is missed or told twice.
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from rbee.host.audit.chain import FILE_NAME, files_of
from rbee.keeper.audit import Wanted, fitting
from rbee.keeper.failure import CommandFailed

_CHUNK = 1 << 16
_END_LIMIT_S = 5.0


class Reader:
    """Reads the audit log in ``folder`` from where the reading before ended; the first one begins with all there is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None

    def entries(self, wanted: Wanted) -> Iterator[dict[str, Any]]:
        """The wanted entries that are new; raises CommandFailed where a file cannot be read."""
        return fitting(self._lines(), wanted, self._folder)

    def close(self) -> None:
        """Close the file in hand."""
        if self._file is not None:
            self._file.close()

    def _lines(self) -> Iterator[bytes]:
        while True:
            following = self._following()
            if self._file is not None:
                yield from _whole_lines(self._file)  # once more where another follows: nothing comes after that
            if following is None:
                return
            self.close()
            self._file = following

    def _following(self) -> BinaryIO | None:
        """The file after the one in hand, opened; None where there is none yet."""
        in_hand = None if self._file is None else os.fstat(self._file.fileno()).st_ino
        while True:
            with contextlib.suppress(FileNotFoundError):  # rotated between two looks: the names are others now
                found = {path.stat().st_ino: path for path in self._files()}
                numbers = list(found)
                # the oldest are removed first: where the one in hand is gone, the oldest one left follows it
                after = numbers[numbers.index(in_hand) + 1 :] if in_hand in found else numbers
                if not after:
                    return None
                file = found[after[0]].open("rb")
                if os.fstat(file.fileno()).st_ino == after[0]:
                    return file
                file.close()

    def _files(self) -> list[Path]:
        try:
            return files_of(self._folder)
        except FileNotFoundError:  # removed with its daemon: the other log goes on, and this one may come again
            return []


def _whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """Lines that have their end; what is behind the last one is read again with the rest of it."""
    while True:
        began = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            file.seek(began)
            return
        yield line


class Wakings:
    """Comes round once when it begins, and whenever one of the logs in ``folders`` was written to or rotated."""

    def __init__(self, folders: Sequence[Path]) -> None:
        files = [str(folder / FILE_NAME) for folder in folders]
        # the last line of each is told once it is watched: what was written before that is not overlooked
        self._command = ["tail", "--follow=name", "--retry", "--lines=1", "--quiet", "--", *files]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Wakings":
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                bufsize=0, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise CommandFailed(f"tail cannot be run: {error.strerror}: install coreutils") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process is None:
            return
        self._process.terminate()
        with self._process:  # closes its pipe, and waits for its end
            self._process.wait(_END_LIMIT_S)

    def __iter__(self) -> Iterator[None]:
        """Yield at each waking; raises CommandFailed when tail ended."""
        process = self._process
        while process is not None and process.stdout is not None and process.stdout.read(_CHUNK):
            yield
        raise CommandFailed("tail ended, so that nothing new is told of: run the command again")
