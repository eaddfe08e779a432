"""Brings one model here: resolved, room made, every file fetched and verified beside the others, then put in place."""

import asyncio
import contextlib
import random
import shutil
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from rbee.hive.config import ModelSettings
from rbee.hive.models.archive import unpack
from rbee.hive.models.catalogue_file import row_of_manifest
from rbee.hive.models.download import Download
from rbee.hive.models.listing import Listing
from rbee.hive.models.manifest import Manifest, entries_of, model_files, size_of, write_manifest
from rbee.hive.models.metrics import ModelMetrics
from rbee.hive.models.sessions import Sessions
from rbee.hive.models.sink import refused
from rbee.hive.models.sources import Sources
from rbee.hive.models.threads import to_its_end
from rbee.hive.models.throttle import MEGA, Throttle
from rbee.hive.models.transfer import Transfer
from rbee.hive.models.tries import Failure, Tries
from rbee.wire.auth import Secret
from rbee.wire.errors import Conflict, InsufficientDisk
from rbee.wire.model_messages import CopySource, FileEntry, ModelRow, Stage

PARTIAL = ".partial"
"""The folder beside the models for what is not whole yet: on the same disk, so that a rename completes a model."""
GONE = ".gone-"
"""How the name of a folder there begins that is on its way out: a removed model's."""
_STALE_S = 14 * 86_400.0
_FILES, _ARCHIVE = "files", "archive"


class Fetcher:
    """Fetches models into ``models``; ``make_room`` frees bytes or raises InsufficientDisk.

    One that is cancelled has ended in its threads as well: nothing is written any more when the cancellation is heard.
    """

    def __init__(
        self,
        models: Path,
        sessions: Sessions,
        throttle: Throttle,
        metrics: ModelMetrics,
        make_room: Callable[[int], Awaitable[None]],
    ) -> None:
        self._models = models
        self._sessions = sessions
        self._throttle = throttle
        self._metrics = metrics
        self._make_room = make_room

    async def fetch(
        self,
        download: Download,
        source: CopySource | None,
        settings: ModelSettings,
        endpoint: str,
        hub_token: Secret | None,
    ) -> tuple[ModelRow, list[FileEntry]]:
        """Bring the model of ``download`` here and return its row and its files.

        Raises DownloadFailed, DownloadTimeout, ModelSourceNotFound, ModelAccessDenied, InvalidModelReference,
        InsufficientDisk, StorageUnavailable, Conflict. What came is kept for the next time, unless the disk is full.
        """

        def failed(failure: Failure) -> None:
            self._metrics.retries.inc()
            download.failed_try(failure)

        tries = Tries(settings.retry_most_s, random.random, failed)
        place = self._models / PARTIAL / download.model_id
        download.enter(Stage.RESOLVING)
        sources = Sources(self._sessions, tries, endpoint, hub_token)
        listing = await sources.resolve(download.reference, source)
        download.expect(listing.total)
        self._metrics.expected.labels(download.model_id).set(listing.total)
        had = await asyncio.to_thread(size_of, place)
        reserve = settings.disk_reserve_mb * MEGA
        try:
            await self._make_room(max(0, listing.total - had))
            download.enter(Stage.DOWNLOADING)
            files = await self._files(download, listing, place, tries, settings.stall_limit_s, reserve)
            if listing.archive:
                download.enter(Stage.UNPACKING)
                stopping = threading.Event()
                files = await to_its_end(lambda: _unpack(place, reserve, stopping), stopping.set)
        except InsufficientDisk:
            await asyncio.to_thread(shutil.rmtree, place, ignore_errors=True)
            raise
        manifest = Manifest(download.reference.text, time.time(), files)
        row = await to_its_end(lambda: _put_in_place(place, self._models / download.model_id, manifest))
        return row, files

    async def _files(
        self, download: Download, listing: Listing, place: Path, tries: Tries, stall_s: float, reserve: int
    ) -> list[FileEntry]:
        def received(size: int) -> None:
            download.received(size)
            self._metrics.received.labels(download.model_id).inc(size)

        session = self._sessions.hives if listing.of_hive else self._sessions.web
        transfer = Transfer(session, self._throttle, tries, stall_s, reserve, listing.token, received)
        folder = place / (_ARCHIVE if listing.archive else _FILES)
        found = []
        for file in listing.files:

            def at(size: int, path: str = file.path) -> None:
                download.have(path, size)

            size, digest = await transfer.fetch(file, folder / file.path, at)
            found.append(FileEntry(file.path, size, digest))
        return found


def remove_stale(models: Path, now: float) -> None:
    """Remove partial downloads that nobody has gone on with for two weeks, and removals that were cut off; blocks."""
    for place in (models / PARTIAL).glob("*"):
        # a file that grows changes no folder's time
        latest = max(path.lstat().st_mtime for path in (place, *place.rglob("*")))
        if place.name.startswith(GONE) or now - latest > _STALE_S:
            shutil.rmtree(place, ignore_errors=True)


def _unpack(place: Path, reserve: int, stopping: threading.Event) -> list[FileEntry]:
    folder = place / _FILES
    shutil.rmtree(folder, ignore_errors=True)
    (archive,) = model_files(place / _ARCHIVE)
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            unpack(archive, folder, reserve, stopping)
            files = entries_of(folder, stopping)
            archive.unlink()
        except OSError as error:
            raise refused(error) from error
        undo.pop_all()
    return files


def _put_in_place(place: Path, target: Path, manifest: Manifest) -> ModelRow:
    """Write the manifest and rename the folder of files to ``target``; what an older try left beside goes."""
    folder = place / _FILES
    wanted = {file.path for file in manifest.files}
    row = row_of_manifest(target, manifest)
    if row is None or target.exists():
        raise Conflict(
            f"there is a folder {target.name} among the models that this store did not fetch: move it away, pull again"
        )
    try:
        for path in model_files(folder):
            if str(path.relative_to(folder)) not in wanted:
                path.unlink()
        write_manifest(folder, manifest)
        folder.rename(target)
    except OSError as error:
        raise refused(error) from error
    shutil.rmtree(place, ignore_errors=True)
    return row
