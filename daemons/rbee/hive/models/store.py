"""The models of this machine: found or fetched, one download a model whoever asks, and kept within their room."""

import asyncio
import contextlib
import logging
import os
import shutil
import ssl
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rbee.hive.config import HiveConfig
from rbee.hive.definitions import model_folder
from rbee.hive.models.catalogue import Catalogue
from rbee.hive.models.catalogue_file import row_of_folder
from rbee.hive.models.collector import Space, plan_room
from rbee.hive.models.download import Download
from rbee.hive.models.fetch import GONE, PARTIAL, Fetcher, remove_stale
from rbee.hive.models.manifest import size_of
from rbee.hive.models.metrics import ModelMetrics
from rbee.hive.models.sessions import Sessions
from rbee.hive.models.throttle import MEGA, Throttle
from rbee.host.credentials import find_secret
from rbee.wire.auth import Secret
from rbee.wire.errors import (
    DownloadFailed,
    InsufficientDisk,
    InternalError,
    RbeeError,
    StorageUnavailable,
    TooManyRequests,
)
from rbee.wire.log import log
from rbee.wire.model_messages import CopySource, ModelRow
from rbee.wire.model_reference import ModelReference, Provider, kept_folder
from rbee.wire.tasks import TaskOwner

LOGGER = logging.getLogger(__name__)
PUBLIC_HUB = "https://huggingface.co"
HUB_VARIABLE = "HF_ENDPOINT"
_MOST_ENDED = 32
Users = Mapping[str, Sequence[str]]
"""Workers that use a model, by the reference or the folder that their definition names."""


class ModelStore:
    """Finds, fetches and collects models. ``users`` tells which are in use now; whoever removes holds ``changing``.

    ``tls`` is what other nodes' hives are shown and asked for, where models are copied from them.
    """

    def __init__(
        self,
        config: HiveConfig,
        metrics: ModelMetrics,
        users: Callable[[], Users],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._config = config
        self.folder = config.paths.models
        self.catalogue = Catalogue(config.paths.state_dir / "hive" / "models.db", self.folder)
        self.metrics = metrics
        self._users = users
        self._throttle = Throttle(config.models.bandwidth_limit_mbps, time.monotonic)
        self._slots = asyncio.Semaphore(config.models.downloads_at_once)
        self.changing = asyncio.Lock()
        self._downloads: dict[str, Download] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._ended: OrderedDict[str, Download] = OrderedDict()
        self._tasks = TaskOwner()
        self._tls = tls
        self._sessions: Sessions | None = None

    async def open(self) -> None:
        """Open the catalogue and take in the folders; a disk that refuses ends nothing."""
        with contextlib.suppress(OSError):
            await asyncio.to_thread(remove_stale, self.folder, time.time())
        await self.catalogue.open()
        await self._count()

    async def close(self) -> None:
        """End the downloads (what came is kept) and close the catalogue."""
        await self._tasks.close()
        if self._sessions is not None:
            await self._sessions.close()
        await self.catalogue.close()

    def use(self, config: HiveConfig) -> None:
        """Put another configuration in force; ``downloads_at_once`` waits for a restart."""
        self._config = config
        self._throttle.limit_mbps = config.models.bandwidth_limit_mbps
        for download in self._downloads.values():
            download.limit_mbps = config.models.bandwidth_limit_mbps

    # Found or fetched.

    async def find(self, reference: ModelReference) -> ModelRow | None:
        """The row of a model that is whole on this machine, or None. Raises InvalidModelReference for a bad folder."""
        if reference.provider is Provider.LOCAL:
            return await self._register(reference)
        row = await self.catalogue.find(reference.text)
        folder = await asyncio.to_thread(kept_folder, reference, self.folder)
        if row is None and folder is not None:
            found, files = await asyncio.to_thread(row_of_folder, folder)
            await self.catalogue.put(found, files)
            return found
        if row is not None and folder is None:
            log(LOGGER, logging.WARNING, "a model of the catalogue is gone from the disk", model=row.id)
            await self.catalogue.remove(row.id)
            return None
        return row

    async def _register(self, reference: ModelReference) -> ModelRow:
        """The row of a folder under a model root: served from where it lies, never copied."""
        folder = await asyncio.to_thread(model_folder, reference.text, self._config.roots)
        known = next((row for row in await self.catalogue.rows() if row.local_path == str(folder)), None)
        if known is not None:
            return known
        now = time.time()
        size = await asyncio.to_thread(size_of, folder)
        row = ModelRow(reference.model_id, Provider.LOCAL, reference.text, str(folder), size, "", now, now)
        await self.catalogue.put(row, [])
        await self._count()
        return row

    async def obtain(self, reference: ModelReference, source: CopySource | None = None) -> ModelRow | Download:
        """The model's row where it is here, else its download: the one that runs already, or a new one.

        Raises InvalidModelReference, TooManyRequests.
        """
        download = self._downloads.get(reference.model_id)
        if download is not None:
            return download
        row = await self.find(reference)
        if row is not None:
            await self.catalogue.touch([row.reference])
            return row
        return self._downloads.get(reference.model_id) or self._begin(reference, source)

    async def used(self, model_ref: str) -> None:
        """A worker of the model began or ended."""
        try:
            await self.catalogue.touch([model_ref, model_ref.removeprefix("file://")])
        except StorageUnavailable as error:
            log(LOGGER, logging.WARNING, "the use of a model is not noted", why=error.message)

    def download(self, model_id: str) -> Download | None:
        """The download of a model: under way, or one of those that ended last."""
        return self._downloads.get(model_id) or self._ended.get(model_id)

    def downloads(self) -> list[Download]:
        """Every download under way, and those that ended last."""
        return [*self._downloads.values(), *self._ended.values()]

    def _begin(self, reference: ModelReference, source: CopySource | None) -> Download:
        if len(self._downloads) >= self._config.models.downloads_waiting:
            raise TooManyRequests(
                "as many models are on their way here as the limit allows: try later", retry_after_s=30
            )
        download = Download(reference)
        download.limit_mbps = self._config.models.bandwidth_limit_mbps
        task = self._tasks.start(self._run(download, source), f"download {reference.model_id}")
        if task is None:
            raise InternalError("the hive is stopping: pull the model again once it is back")
        self._ended.pop(download.model_id, None)
        self._downloads[download.model_id] = download
        self._running[download.model_id] = task
        log(LOGGER, logging.INFO, "model.download", event="model.download", model=reference.model_id)
        return download

    async def _run(self, download: Download, source: CopySource | None) -> None:
        """One download from its turn to its end, whichever that is."""
        outcome = "cancelled"
        try:
            async with self._slots:
                row = await self._fetch(download, source)
            download.succeed(row)
            outcome = "complete"
        except RbeeError as error:
            outcome = "failed"
            download.fail(error)
        finally:
            if not download.over:
                download.fail(DownloadFailed("the download was stopped: pull the model again to go on with it"))
            self._close(download, outcome)

    async def _fetch(self, download: Download, source: CopySource | None) -> ModelRow:
        settings = self._config.models
        if self._sessions is None:
            self._sessions = Sessions.opened(self._tls)
        fetcher = Fetcher(self.folder, self._sessions, self._throttle, self.metrics, self._make_room)
        row, files = await fetcher.fetch(download, source, settings, self._endpoint(), self._hub_token())
        await self.catalogue.put(row, files)
        await self._count()
        return row

    def _close(self, download: Download, outcome: str) -> None:
        self.metrics.downloads.labels(outcome).inc()
        self._downloads.pop(download.model_id, None)
        self._running.pop(download.model_id, None)
        self._ended[download.model_id] = download
        if len(self._ended) > _MOST_ENDED:
            self._ended.popitem(last=False)
        progress, error = download.progress(), download.error
        log(
            LOGGER,
            logging.INFO if error is None else logging.WARNING,
            "model downloaded" if error is None else "model not downloaded",
            event=f"model.download.{outcome}",
            model=download.model_id,
            bytes=progress.bytes_downloaded,
            seconds=progress.duration_s,
            code=None if error is None else error.code,
            why=None if error is None else error.message,
        )

    def _endpoint(self) -> str:
        return (self._config.models.hf_endpoint or os.environ.get(HUB_VARIABLE) or PUBLIC_HUB).rstrip("/")

    def _hub_token(self) -> Secret | None:
        file = self._config.tokens.hf_token
        return find_secret("hf_token", self._config.paths.config_dir / file if file else None)

    async def cancel(self, model_id: str) -> bool:
        """Stop a download and remove what came of it; False where there is none, or its model is in place already."""
        task, download = self._running.get(model_id), self._downloads.get(model_id)
        if task is None or download is None:
            return False
        task.cancel()
        await asyncio.wait([task])
        await asyncio.to_thread(shutil.rmtree, self.folder / PARTIAL / model_id, ignore_errors=True)
        # The last step, a rename, is not cut off: then the model is whole here, and not in the catalogue yet.
        return await self.find(download.reference) is None

    # Room.

    def workers_of(self, row: ModelRow) -> list[str]:
        """The workers that use a model now."""
        users = self._users()
        return sorted({*users.get(row.reference, ()), *users.get(row.local_path, ())})

    async def space(self) -> Space:
        """The disk of the models and its limits."""
        settings = self._config.models
        free = await asyncio.to_thread(self._free)
        budget = None if settings.disk_budget_mb is None else settings.disk_budget_mb * MEGA
        return Space(free, settings.disk_reserve_mb * MEGA, budget)

    def _free(self) -> int:
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            return shutil.disk_usage(self.folder).free
        return 0

    async def _make_room(self, needed: int) -> None:
        """Collect what the budget allows to; raises InsufficientDisk, with the amounts, where that is not enough."""
        async with self.changing:
            space, rows = await self.space(), await self.catalogue.rows()
            plan = plan_room(rows, {row.id for row in rows if self.workers_of(row)}, needed, space)
            if plan.lacking:
                raise _no_room(needed, space, plan.lacking)
            for row in plan.remove:
                log(LOGGER, logging.INFO, "model collected", event="model.collect", model=row.id, bytes=row.size_bytes)
                await self.discard(row)
                self.metrics.collected.inc()

    async def discard(self, row: ModelRow) -> None:
        """Forget a model and remove its files, which must lie in the store's own folder."""
        await self.catalogue.remove(row.id)
        await asyncio.to_thread(_remove_folder, Path(row.local_path), self.folder)
        await self._count()

    async def _count(self) -> None:
        rows = await self.catalogue.rows()
        self.metrics.models.set(len(rows))
        self.metrics.bytes.set(sum(row.size_bytes for row in rows))


def _no_room(needed: int, space: Space, lacking: int) -> InsufficientDisk:
    available = max(0, space.free - space.reserve)
    return InsufficientDisk(
        f"there is no room for the model: it takes {needed} bytes, {available} are available, {lacking} more must be "
        "freed: 'rbee catalog list' shows what is there, 'rbee model rm MODEL' removes one",
        details={"required_bytes": needed, "available_bytes": available, "free_up_bytes": lacking},
    )


def _remove_folder(folder: Path, models: Path) -> None:
    """Out of sight at once by a rename, then removed; a folder elsewhere is left alone."""
    if folder.parent != models:
        return
    gone = models / PARTIAL / f"{GONE}{uuid.uuid4().hex}"
    with contextlib.suppress(FileNotFoundError):
        gone.parent.mkdir(exist_ok=True)
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
