"""The queen's SQLite file: opened with a check, migrated, and kept aside when it is corrupt. Blocking calls."""

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rbee.wire.errors import StorageUnavailable
from rbee.wire.log import log

LOGGER = logging.getLogger(__name__)
MIGRATIONS = (
    """
    CREATE TABLE hives (
        hive_id TEXT PRIMARY KEY, api_url TEXT, version TEXT NOT NULL,
        first_seen_unix REAL NOT NULL, last_seen_unix REAL NOT NULL
    ) STRICT;
    CREATE TABLE aliases (alias TEXT PRIMARY KEY, model TEXT NOT NULL, set_unix REAL NOT NULL) STRICT;
    """,
)
"""One script for each version of the schema, the first makes version 1; PRAGMA user_version counts them."""


@dataclass(frozen=True, slots=True)
class HiveRow:
    """A hive that reported here once; times are seconds since the epoch."""

    hive_id: str
    api_url: str | None
    version: str
    first_seen_unix: float
    last_seen_unix: float


class Database:
    """One connection, used by one thread. Every call raises StorageUnavailable when the file cannot be used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open the file, or make it; a corrupt one is kept aside as ``*.corrupt.TIME`` and a new one begun."""
        with self._guarded():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._connection = _sound(self.path)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                aside = _keep_aside(self.path)
                log(LOGGER, logging.ERROR, "the database was corrupt and is kept aside", file=aside.name)
                self._connection = _sound(self.path)

    def close(self) -> None:
        """Close the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def hives(self) -> list[HiveRow]:
        """Every hive that is remembered."""
        with self._guarded():
            rows = self._open().execute(
                "SELECT hive_id, api_url, version, first_seen_unix, last_seen_unix FROM hives ORDER BY hive_id"
            )
            return [HiveRow(*row) for row in rows]

    def note_hives(self, rows: list[HiveRow]) -> None:
        """Insert or update hives; the time when one was first seen stays."""
        with self._guarded(), self._open() as connection:
            connection.executemany(
                "INSERT INTO hives VALUES (?, ?, ?, ?, ?) ON CONFLICT (hive_id) DO UPDATE SET "
                "api_url = excluded.api_url, version = excluded.version, last_seen_unix = excluded.last_seen_unix",
                [(row.hive_id, row.api_url, row.version, row.first_seen_unix, row.last_seen_unix) for row in rows],
            )

    def forget_hive(self, hive_id: str) -> None:
        """Forget a hive that was silent for long."""
        with self._guarded(), self._open() as connection:
            connection.execute("DELETE FROM hives WHERE hive_id = ?", (hive_id,))

    def aliases(self) -> dict[str, str]:
        """Aliases that were set by the API."""
        with self._guarded():
            return dict(self._open().execute("SELECT alias, model FROM aliases"))

    def put_alias(self, alias: str, model: str) -> None:
        """Set an alias."""
        with self._guarded(), self._open() as connection:
            connection.execute(
                "INSERT INTO aliases VALUES (?, ?, ?) "
                "ON CONFLICT (alias) DO UPDATE SET model = excluded.model, set_unix = excluded.set_unix",
                (alias, model, time.time()),
            )

    def remove_alias(self, alias: str) -> None:
        """Unset an alias; nothing happens when there is none."""
        with self._guarded(), self._open() as connection:
            connection.execute("DELETE FROM aliases WHERE alias = ?", (alias,))

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
            raise _unavailable("it did not open")
        return self._connection

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self.close()
            raise _unavailable(str(error) if isinstance(error, sqlite3.Error) else error.strerror or "") from error


def _unavailable(why: str) -> StorageUnavailable:
    return StorageUnavailable(
        f"the queen's database cannot be used now: {why}; check the disk and the owner of the state folder",
        retry_after_s=30,
    )


def _sound(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5.0, check_same_thread=False)
    try:
        if connection.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("quick_check found damage")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        _migrate(connection)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _migrate(connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise sqlite3.OperationalError("it was written by a newer version of rbee: upgrade this one")
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT;")


def _keep_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.corrupt.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
    path.rename(aside)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    return aside
