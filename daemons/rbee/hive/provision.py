"""Workers whose model is not here yet: it is fetched first, shown as their loading, and then they start."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable

from rbee.hive.models.download import Download
from rbee.hive.models.store import ModelStore
from rbee.hive.report import Worker
from rbee.hive.workers import WorkerTable
from rbee.wire.errors import InvalidModelReference, RbeeError
from rbee.wire.log import log
from rbee.wire.messages import Progress
from rbee.wire.model_messages import ModelProgress, Stage
from rbee.wire.model_reference import of_definition
from rbee.wire.tasks import TaskOwner

LOGGER = logging.getLogger(__name__)


class Provision:
    """Fetches models for workers that wait; owns one task for each of them."""

    def __init__(self, store: ModelStore, table: WorkerTable) -> None:
        self._store = store
        self._table = table
        self._tasks = TaskOwner()
        self._waiting: dict[str, asyncio.Task[None]] = {}

    def waits(self, worker_id: str) -> bool:
        """Whether the worker waits for its model."""
        return worker_id in self._waiting

    async def begin(self, worker_id: str, model: str, start: Callable[[str], Awaitable[None]]) -> bool:
        """See that the model of a definition is here; where it is not, fetch it and call ``start`` after it.

        Returns whether the worker waits. Raises TooManyRequests.
        """
        try:
            reference = of_definition(model)
        except InvalidModelReference:
            return False  # of an operator's file: the worker itself names the file, the line and what to do
        if reference is None:
            return False
        found = await self._store.obtain(reference)
        if not isinstance(found, Download):
            return False
        self._table.set_fetching(worker_id, _shown(found.progress()))
        task = self._tasks.start(self._fetch(worker_id, found, start), f"model of {worker_id}")
        if task is None:
            self._table.set_fetching(worker_id, None)
            return False
        self._waiting[worker_id] = task
        return True

    async def cancel(self, worker_id: str) -> None:
        """Start the worker no more when its model is here; the download goes on, for whoever else wants it."""
        task = self._waiting.get(worker_id)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def close(self) -> None:
        """End every wait."""
        await self._tasks.close()

    async def _fetch(self, worker_id: str, download: Download, start: Callable[[str], Awaitable[None]]) -> None:
        try:
            async for progress in download.follow():
                self._table.set_fetching(worker_id, _shown(progress))
            await download.result()
            await start(worker_id)  # its unit's own first word takes over from here
        except RbeeError as error:
            log(LOGGER, logging.ERROR, "a worker has no model", worker=worker_id, code=error.code, why=error.message)
            self._table.set_fetch_failure(worker_id, f"{error.code}: {error.message}")
        except asyncio.CancelledError:
            self._table.set_fetching(worker_id, None)
            raise
        finally:
            self._waiting.pop(worker_id, None)


def users_of_models(workers: Iterable[Worker]) -> dict[str, list[str]]:
    """The workers that use a model now, by the reference or the folder that they or their definition name."""
    users: dict[str, list[str]] = {}
    for worker in workers:
        ended = worker.unit.active_state in ("inactive", "failed") and worker.fetching is None
        if ended and worker.external is None:
            continue
        spec = None if worker.definition is None else worker.definition.spec
        named = {"" if spec is None else spec.model, "" if worker.facts is None else worker.facts.model_ref}
        named.add("" if worker.external is None else worker.external.model_ref)
        for name in {each.removeprefix("file://") for each in named if each}:
            users.setdefault(name, []).append(worker.worker_id)
    return users


def _shown(progress: ModelProgress) -> Progress:
    """A download as the loading of a worker."""
    if progress.stage in (Stage.DOWNLOADING, Stage.COMPLETE):
        return Progress("downloading", progress.bytes_downloaded, progress.bytes_total, "bytes")
    return Progress(f"downloading: {progress.stage.value}")
