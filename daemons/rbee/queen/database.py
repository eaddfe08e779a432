"""What the queen remembers over a restart, in her SQLite file: one table for each kind. Blocking calls."""

import time
from collections.abc import Collection, Mapping
from dataclasses import astuple, dataclass

from rbee.host.database import SqliteFile

MIGRATIONS = (
    """
    CREATE TABLE hives (
        hive_id TEXT PRIMARY KEY, api_url TEXT, version TEXT NOT NULL,
        first_seen_unix REAL NOT NULL, last_seen_unix REAL NOT NULL
    ) STRICT;
    CREATE TABLE aliases (alias TEXT PRIMARY KEY, model TEXT NOT NULL, set_unix REAL NOT NULL) STRICT;
    """,
    "CREATE TABLE nodes (name TEXT PRIMARY KEY, document BLOB NOT NULL) STRICT;",
    "CREATE TABLE declarations (model TEXT PRIMARY KEY, document BLOB NOT NULL) STRICT;",
    """
    CREATE TABLE once_declared (model TEXT PRIMARY KEY, idle_limit_s REAL) STRICT;
    INSERT INTO once_declared SELECT model, NULL FROM declarations;
    """,
    """
    CREATE TABLE memory (
        model_ref TEXT, node TEXT, backend TEXT, slots INTEGER, settings TEXT,
        peak_bytes INTEGER NOT NULL, size_bytes INTEGER, measured_unix REAL NOT NULL,
        PRIMARY KEY (model_ref, node, backend, slots, settings)
    ) STRICT;
    """,
)
"""One script for each version of the schema, the first makes version 1; PRAGMA user_version counts them."""
_NOTE_DECLARED = (
    "INSERT INTO once_declared VALUES (?, ?) ON CONFLICT (model) DO UPDATE SET idle_limit_s = excluded.idle_limit_s"
)
MOST_MEASURED = 1000
"""So many setups, those measured last, are remembered with their memory."""


@dataclass(frozen=True, slots=True)
class HiveRow:
    """A hive that reported here once; times are seconds since the epoch."""

    hive_id: str
    api_url: str | None
    version: str
    first_seen_unix: float
    last_seen_unix: float


@dataclass(frozen=True, slots=True)
class Setup:
    """What workers that take the same memory have in common.

    ``node`` is empty where the model is the same on every machine; ``settings`` is a report's ``memory_settings``.
    """

    model_ref: str
    node: str
    backend: str
    slots: int
    settings: str


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """The most memory, in bytes, that a worker of the setup took until it was ready, the last time one became ready.

    ``size_bytes`` is that of its model's files then, None where it was not known.
    """

    setup: Setup
    peak_bytes: int
    size_bytes: int | None
    measured_unix: float


class Database(SqliteFile):
    """What the queen remembers; every call raises StorageUnavailable when the file cannot be used."""

    MIGRATIONS = MIGRATIONS
    OWNER = "queen"

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

    def nodes(self) -> dict[str, bytes]:
        """Every node's document by its name."""
        with self._guarded():
            return dict(self._open().execute("SELECT name, document FROM nodes"))

    def put_node(self, name: str, document: bytes) -> None:
        """Insert or replace a node's document."""
        with self._guarded(), self._open() as connection:
            connection.execute("INSERT OR REPLACE INTO nodes VALUES (?, ?)", (name, document))

    def remove_node(self, name: str) -> None:
        """Forget a node; nothing happens when there is none."""
        with self._guarded(), self._open() as connection:
            connection.execute("DELETE FROM nodes WHERE name = ?", (name,))

    def declarations(self) -> dict[str, bytes]:
        """The document of each declared model by its name."""
        with self._guarded():
            return dict(self._open().execute("SELECT model, document FROM declarations"))

    def put_declaration(self, model: str, document: bytes, idle_limit_s: float | None) -> None:
        """Insert or replace a declared model's document, and note that it was declared."""
        with self._guarded(), self._open() as connection:
            connection.execute("INSERT OR REPLACE INTO declarations VALUES (?, ?)", (model, document))
            connection.execute(_NOTE_DECLARED, (model, idle_limit_s))

    def remove_declaration(self, model: str) -> None:
        """Forget a declared model; nothing happens when there is none."""
        with self._guarded(), self._open() as connection:
            connection.execute("DELETE FROM declarations WHERE model = ?", (model,))

    def once_declared(self) -> dict[str, float | None]:
        """Every model that is or was declared, in the order in which they came, with the idle limit it last had."""
        with self._guarded():
            return dict(self._open().execute("SELECT model, idle_limit_s FROM once_declared ORDER BY rowid"))

    def note_declared(self, models: Mapping[str, float | None], forgotten: Collection[str]) -> None:
        """Note that models were declared, with their idle limits, and forget others."""
        with self._guarded(), self._open() as connection:
            connection.executemany(_NOTE_DECLARED, models.items())
            connection.executemany("DELETE FROM once_declared WHERE model = ?", [(model,) for model in forgotten])

    def memory(self) -> list[MemoryRow]:
        """What workers took, by setup, the one measured last at the end."""
        with self._guarded():
            rows = self._open().execute(
                "SELECT model_ref, node, backend, slots, settings, peak_bytes, size_bytes, measured_unix FROM memory "
                "ORDER BY measured_unix"
            )
            return [MemoryRow(Setup(*row[:5]), *row[5:]) for row in rows]

    def put_memory(self, rows: list[MemoryRow]) -> None:
        """Insert or replace what workers of these setups took; beyond the most, those measured first go."""
        with self._guarded(), self._open() as connection:
            connection.executemany(
                "INSERT OR REPLACE INTO memory VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(*astuple(row.setup), row.peak_bytes, row.size_bytes, row.measured_unix) for row in rows],
            )
            connection.execute(
                "DELETE FROM memory WHERE rowid NOT IN (SELECT rowid FROM memory ORDER BY measured_unix DESC LIMIT ?)",
                (MOST_MEASURED,),
            )
