"""What an administrator orders about models that are here: list, remove, verify, pin, back up."""

import asyncio
import logging
import shlex
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from rbee.hive.models.download import Download
from rbee.hive.models.manifest import (
    differences,
    digest_of,
    entries_of,
    read_manifest,
    size_of,
    write_manifest,
)
from rbee.hive.models.sink import refused
from rbee.hive.models.store import ModelStore
from rbee.hive.models.threads import to_its_end
from rbee.host.audit.entries import EventType
from rbee.host.audit.log import AuditLog
from rbee.wire.errors import ModelInUse, ModelNotHere, StorageUnavailable
from rbee.wire.log import log
from rbee.wire.model_messages import (
    Backup,
    DownloadRequest,
    FileEntry,
    FileList,
    ModelRow,
    ModelRows,
    Removed,
    Verified,
)
from rbee.wire.model_reference import Provider, parse

LOGGER = logging.getLogger(__name__)


class ModelOrders:
    """Orders on the store; ``state_dir`` is where the catalogue and its backups lie."""

    def __init__(self, store: ModelStore, state_dir: Path, audit: AuditLog) -> None:
        self._store = store
        self._audit = audit
        self._state_dir = state_dir
        self._reading = asyncio.Semaphore(1)

    async def fetch(self, order: DownloadRequest, actor: str) -> ModelRow | Download:
        """The model's row where it is here, else its download. Raises InvalidModelReference, TooManyRequests."""
        reference = parse(order.reference)
        found = await self._store.obtain(reference, order.source)
        if isinstance(found, Download):
            self._audit.record(EventType.MODEL_FETCH, actor, model=reference.model_id, model_ref=reference.text)
        return found

    async def rows(self, provider: Provider | None = None) -> ModelRows:
        """The catalogue, or one provider's part of it, with the room that is left."""
        store = self._store
        rows = await store.catalogue.rows(provider)
        space = await store.space()
        return ModelRows(
            models=[msgspec.structs.replace(row, in_use=bool(store.workers_of(row))) for row in rows],
            used_bytes=sum(row.size_bytes for row in rows),
            available_bytes=max(0, space.free - space.reserve),
            budget_bytes=space.budget,
            problem=store.catalogue.problem,
        )

    async def row(self, model_id: str) -> ModelRow:
        """One model; raises ModelNotHere."""
        row = await self._store.catalogue.get(model_id)
        if row is None:
            raise ModelNotHere("there is no such model on this machine: 'rbee catalog list' shows those there are")
        return row

    async def remove(self, model_id: str, actor: str) -> Removed:
        """Remove a model, or stop its download; raises ModelNotHere, ModelInUse (with the workers)."""
        store = self._store
        if await store.cancel(model_id):
            self._audit.record(EventType.MODEL_REMOVE, actor, model=model_id)
            return Removed(model_id, deleted=True, freed_bytes=0, message="its download was stopped")
        async with store.changing:
            row = await self.row(model_id)
            workers = store.workers_of(row)
            if workers:
                raise ModelInUse(
                    f"the model is in use by {', '.join(workers[:5])}: stop them first (rbee worker stop {workers[0]})",
                    details={"workers": workers},
                )
            ours = Path(row.local_path).parent == store.folder
            log(LOGGER, logging.INFO, "model.remove", event="model.remove", actor=actor, model=row.id, deleted=ours)
            self._audit.record(EventType.MODEL_REMOVE, actor, model=row.id)
            await store.discard(row)
        if not ours:
            return Removed(row.id, deleted=False, freed_bytes=0, message="forgotten; its folder stays")
        return Removed(row.id, deleted=True, freed_bytes=row.size_bytes, message="removed")

    async def verify(self, model_id: str) -> Verified:
        """Read every file and compare it with what was recorded; one that has no record yet gets it now."""
        row = await self.row(model_id)
        recorded = await self._store.catalogue.files(row.id)
        found = await self._read(Path(row.local_path))
        problems = differences(recorded, found) if recorded else []
        if not recorded:
            await self._record(row, found)
        for problem in problems:
            log(LOGGER, logging.ERROR, "a model is not what it was", model=row.id, why=problem)
        return Verified(row.id, ok=not problems, files=len(found), problems=problems, recorded=not recorded)

    async def _read(self, folder: Path) -> list[FileEntry]:
        async with self._reading:  # two at once would only make the disk seek
            stopping = threading.Event()
            try:
                return await to_its_end(lambda: entries_of(folder, stopping), stopping.set)
            except OSError as error:
                raise StorageUnavailable(f"a file of the model cannot be read: {error.strerror}") from error

    async def _record(self, row: ModelRow, found: Sequence[FileEntry]) -> None:
        size = await asyncio.to_thread(size_of, Path(row.local_path))
        known = msgspec.structs.replace(row, digest=digest_of(found), size_bytes=size)
        await self._store.catalogue.put(known, found)

    async def pin(self, model_id: str, actor: str, *, pinned: bool) -> ModelRow:
        """Keep a model from being collected, or let it be again."""
        row = await self.row(model_id)
        if row.owned:
            await asyncio.to_thread(_pin_manifest, Path(row.local_path), pinned)
        await self._store.catalogue.set_pinned(row.id, pinned=pinned)
        log(LOGGER, logging.INFO, "model.pin", event="model.pin", actor=actor, model=row.id, pinned=pinned)
        self._audit.record(EventType.MODEL_PIN, actor, model=row.id, pinned=pinned)
        return await self.row(model_id)

    async def files(self, model_id: str) -> FileList:
        """What a copy of a model takes; one that has no record of its files yet gets it now."""
        row = await self.row(model_id)
        files = await self._store.catalogue.files(row.id)
        if not files:
            files = await self._read(Path(row.local_path))
            await self._record(row, files)
        return FileList(row.reference, files)

    async def backup(self) -> Backup:
        """Write a verified copy of the catalogue, named by the time."""
        path, models = await self._store.catalogue.backup(self._state_dir / "hive" / "backups")
        live = shlex.quote(str(self._state_dir / "hive" / "models.db"))
        restore = (
            f"systemctl stop rbee-hive.socket rbee-hive.service && rm -f {live}-wal {live}-shm && "
            f"install -o rbee-hive -g rbee-hive -m 0644 {shlex.quote(str(path))} {live} && "
            "systemctl start rbee-hive.socket rbee-hive.service"
        )
        return Backup(str(path), models, restore)


def _pin_manifest(folder: Path, pinned: bool) -> None:
    """A catalogue that is made anew from the folders finds the pin there."""
    manifest = read_manifest(folder)
    if manifest is None:
        return
    try:
        write_manifest(folder, msgspec.structs.replace(manifest, pinned=pinned))
    except OSError as error:
        raise refused(error) from error
