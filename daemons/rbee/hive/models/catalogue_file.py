"""The catalogue of this machine's models as a SQLite file, and as it is made anew from the folders. Blocking calls."""

import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from rbee.hive.models.manifest import Manifest, digest_of, folders_of, read_manifest, size_of
from rbee.host.database import SqliteFile
from rbee.wire.errors import InvalidModelReference
from rbee.wire.model_messages import FileEntry, ModelRow
from rbee.wire.model_reference import Provider, parse

IN_MEMORY = Path(":memory:")
_COLUMNS = "id, provider, reference, local_path, size_bytes, digest, downloaded_at_unix, last_used_unix, pinned, owned"
_INSERT = "INSERT OR REPLACE INTO models VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"


class CatalogueFile(SqliteFile):
    """Rows of models; every call raises StorageUnavailable when the file cannot be used."""

    MIGRATIONS = (
        """
        CREATE TABLE models (
            id TEXT PRIMARY KEY, provider TEXT NOT NULL, reference TEXT NOT NULL UNIQUE, local_path TEXT NOT NULL,
            size_bytes INTEGER NOT NULL, digest TEXT NOT NULL, downloaded_at_unix REAL NOT NULL,
            last_used_unix REAL NOT NULL, pinned INTEGER NOT NULL DEFAULT 0, owned INTEGER NOT NULL DEFAULT 0,
            files TEXT NOT NULL DEFAULT '[]'
        ) STRICT;
        CREATE INDEX models_by_provider ON models (provider);
        """,
    )
    OWNER = "hive"
    ASIDE = "{name}.{time}.corrupt.backup"

    def rows(self, provider: Provider | None = None) -> list[ModelRow]:
        """Every model, or those of one provider, by id."""
        wanted = "" if provider is None else provider.value
        query = f"SELECT {_COLUMNS} FROM models WHERE ?1 = '' OR provider = ?1 ORDER BY id"  # noqa: S608 - a constant
        with self._guarded():
            return [_row(values) for values in self._open().execute(query, (wanted,))]

    def find(self, reference: str) -> ModelRow | None:
        """The model of that reference."""
        return self._one("reference", reference)

    def get(self, model_id: str) -> ModelRow | None:
        """The model of that id."""
        return self._one("id", model_id)

    def _one(self, column: str, value: str) -> ModelRow | None:
        query = f"SELECT {_COLUMNS} FROM models WHERE {column} = ?"  # noqa: S608 - of the two callers above
        with self._guarded():
            values = self._open().execute(query, (value,)).fetchone()
        return None if values is None else _row(values)

    def files(self, model_id: str) -> list[FileEntry]:
        """The files of a model as they were recorded; empty where they never were."""
        with self._guarded():
            found = self._open().execute("SELECT files FROM models WHERE id = ?", (model_id,)).fetchone()
        return [] if found is None else msgspec.json.decode(found[0], type=list[FileEntry])

    def put(self, row: ModelRow, files: Sequence[FileEntry]) -> None:
        """Insert a model, or put another row in its place."""
        values = (
            row.id, row.provider.value, row.reference, row.local_path, row.size_bytes, row.digest,
            row.downloaded_at_unix, row.last_used_unix, int(row.pinned), int(row.owned),
            msgspec.json.encode(list(files)).decode(),
        )  # fmt: skip
        with self._guarded(), self._open() as connection:
            connection.execute(_INSERT, values)

    def remove(self, model_id: str) -> None:
        """Forget a model; nothing happens when there is none."""
        with self._guarded(), self._open() as connection:
            connection.execute("DELETE FROM models WHERE id = ?", (model_id,))

    def set_pinned(self, model_id: str, *, pinned: bool) -> None:
        """Pin a model, or let it be collected again."""
        with self._guarded(), self._open() as connection:
            connection.execute("UPDATE models SET pinned = ? WHERE id = ?", (int(pinned), model_id))

    def touch(self, used: Sequence[str], now: float) -> None:
        """Note that models were used now; each is named by its reference or by its folder."""
        with self._guarded(), self._open() as connection:
            connection.executemany(
                "UPDATE models SET last_used_unix = ?1 WHERE reference = ?2 OR local_path = ?2",
                [(now, name) for name in used],
            )

    def reconcile(self, models: Path) -> None:
        """Take in the folders under ``models`` that have no row, and forget rows whose folder is gone."""
        known = {row.local_path: row for row in self.rows()}
        for path, row in known.items():
            if not os.path.isdir(path):  # noqa: PTH112 - a text from the database
                self.remove(row.id)
        for folder in folders_of(models):
            if str(folder) not in known:
                self.put(*row_of_folder(folder))


def row_of_folder(folder: Path) -> tuple[ModelRow, list[FileEntry]]:
    """The row of a folder and its files, from its manifest where it has one, else as the operator's own model."""
    manifest = read_manifest(folder)
    if manifest is not None:
        row = row_of_manifest(folder, manifest)
        if row is not None:
            return row, manifest.files
    now = time.time()
    row = ModelRow(folder.name, Provider.LOCAL, f"file://{folder}", str(folder), size_of(folder), "", now, now)
    return row, []


def row_of_manifest(folder: Path, manifest: Manifest) -> ModelRow | None:
    """The row of a fetched model, or None where the manifest is not of this folder."""
    try:
        reference = parse(manifest.reference)
    except InvalidModelReference:
        return None
    if reference.model_id != folder.name:
        return None
    return ModelRow(
        id=folder.name,
        provider=reference.provider,
        reference=reference.text,
        local_path=str(folder),
        size_bytes=manifest.size_bytes,
        digest=digest_of(manifest.files),
        downloaded_at_unix=manifest.downloaded_at_unix,
        last_used_unix=time.time(),
        pinned=manifest.pinned,
        owned=True,
    )


def _row(values: tuple[object, ...]) -> ModelRow:
    *rest, pinned, owned = values
    names = _COLUMNS.split(", ")[:-2]
    return msgspec.convert(
        dict(zip(names, rest, strict=True)) | {"pinned": bool(pinned), "owned": bool(owned)}, ModelRow
    )
