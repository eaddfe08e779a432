"""A SQLite file of a daemon: opened with a check, migrated, and kept aside when it is corrupt. Blocking calls."""

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from rbee.wire.errors import StorageUnavailable
from rbee.wire.log import log

LOGGER = logging.getLogger(__name__)
BUSY_LIMIT_S = 5.0


class SqliteFile:
    """One connection, used by one thread. Every call raises StorageUnavailable when the file cannot be used.

    ``MIGRATIONS`` holds one script for each version of the schema, the first makes version 1; PRAGMA user_version
    counts them. ``OWNER`` names the daemon in messages; ``ASIDE`` is what a corrupt file is renamed to. ``aside`` is
    the file that was kept aside at the last opening, if one was.
    """

    MIGRATIONS: ClassVar[Sequence[str]] = ()
    OWNER: ClassVar[str] = "daemon"
    ASIDE: ClassVar[str] = "{name}.corrupt.{time}"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.aside: Path | None = None
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the file, or make it; a corrupt one is kept aside as ``ASIDE`` says and a new one begun."""
        with self._guarded():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connection = self._sound()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                self.aside = self._keep_aside()
                log(LOGGER, logging.ERROR, "the database was corrupt and is kept aside", file=self.aside.name)
                self._connection = self._sound()

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def backup(self, target: Path) -> None:
        """Write a checked copy while the original stays in use."""
        with self._guarded(), contextlib.closing(sqlite3.connect(target)) as copy:
            self._open().backup(copy)
            if copy.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("the copy is not sound")

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self.open()
        if self._connection is None:
            raise self._unavailable("it did not open")
        return self._connection

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self.close()
            why = str(error) if isinstance(error, sqlite3.Error) else error.strerror or ""
            raise self._unavailable(why) from error

    def _unavailable(self, why: str) -> StorageUnavailable:
        return StorageUnavailable(
            f"the {self.OWNER}'s database cannot be used now: {why}; check the disk and the owner of the state folder",
            retry_after_s=30,
        )

    def _sound(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_LIMIT_S, check_same_thread=False)
        try:
            if connection.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("quick_check found damage")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            self._migrate(connection)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version > len(self.MIGRATIONS):
            raise sqlite3.OperationalError("it was written by a newer version of rbee: upgrade this one")
        for number, script in enumerate(self.MIGRATIONS[version:], start=version + 1):
            connection.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")
        if version < len(self.MIGRATIONS):
            # into the file itself: an older package reads the version there, and would not see it in the log beside it
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _keep_aside(self) -> Path:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = self.path.with_name(self.ASIDE.format(name=self.path.name, time=stamp))
        self.path.rename(aside)
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        return aside
