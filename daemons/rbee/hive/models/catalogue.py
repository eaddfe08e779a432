"""The catalogue in a thread of its own: the event loop never waits for the disk, and a bad disk ends no service.

A corrupt file is kept aside and the catalogue made anew from the folders; where the disk refuses the file altogether,
the catalogue lives in memory, made from the folders as well. ``problem`` says so to whoever asks.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from rbee.hive.models.catalogue_file import IN_MEMORY, CatalogueFile
from rbee.wire.errors import StorageUnavailable
from rbee.wire.log import ALERT, log
from rbee.wire.model_messages import FileEntry, ModelRow
from rbee.wire.model_reference import Provider

LOGGER = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
CALL_LIMIT_S = 20.0
CLOSE_LIMIT_S = 5.0
"""A hive that stops has more to close, within the 35 s that its unit gives it."""


class Catalogue:
    """Models known on this machine, ``models`` being the folder that they are fetched into."""

    def __init__(self, path: Path, models: Path) -> None:
        self._path = path
        self._models = models
        self._file = CatalogueFile(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="catalogue")
        self.problem: str | None = None

    @property
    def in_memory(self) -> bool:
        """Whether nothing of it lasts."""
        return self._file.path == IN_MEMORY

    async def open(self) -> None:
        """Open the file, or go on in memory; then take in what lies in the folders."""
        try:
            await self._run(self._file.open)
            await self._run(self._file.reconcile, self._models)
        except StorageUnavailable as error:
            await self._go_on_in_memory(error.message)
        if self._file.aside is not None:
            self.problem = (
                f"the catalogue was corrupt: it is kept as {self._file.aside.name} and was made anew from the folders; "
                "pins are kept, times of use are lost"
            )
            log(LOGGER, ALERT, "catalogue made anew", why=self.problem)

    async def close(self) -> None:
        """Close the file; a disk that does not answer in time holds up nothing else that is to be closed."""
        closing = asyncio.get_running_loop().run_in_executor(self._thread, self._file.close)
        await asyncio.wait({closing}, timeout=CLOSE_LIMIT_S)  # not cut off: it is closed once the disk answers
        if closing.done():
            await closing
        else:
            log(LOGGER, logging.WARNING, "the catalogue is not closed: its disk does not answer", limit_s=CLOSE_LIMIT_S)
        self._thread.shutdown(wait=False)

    async def rows(self, provider: Provider | None = None) -> list[ModelRow]:
        """Every model, or those of one provider."""
        return await self._call(lambda file: file.rows(provider))

    async def find(self, reference: str) -> ModelRow | None:
        """The model of that reference."""
        return await self._call(lambda file: file.find(reference))

    async def get(self, model_id: str) -> ModelRow | None:
        """The model of that id."""
        return await self._call(lambda file: file.get(model_id))

    async def files(self, model_id: str) -> list[FileEntry]:
        """The recorded files of a model."""
        return await self._call(lambda file: file.files(model_id))

    async def put(self, row: ModelRow, files: Sequence[FileEntry]) -> None:
        """Insert or replace a model."""
        await self._call(lambda file: file.put(row, files))

    async def remove(self, model_id: str) -> None:
        """Forget a model."""
        await self._call(lambda file: file.remove(model_id))

    async def set_pinned(self, model_id: str, *, pinned: bool) -> None:
        """Pin a model, or let it be collected again."""
        await self._call(lambda file: file.set_pinned(model_id, pinned=pinned))

    async def touch(self, used: Sequence[str]) -> None:
        """Note that models, by reference or folder, were used now."""
        now = time.time()
        await self._call(lambda file: file.touch(used, now))

    async def backup(self, folder: Path) -> tuple[Path, int]:
        """Write a verified copy named by the time into ``folder``; returns it and its number of models.

        Raises StorageUnavailable.
        """

        def write(file: CatalogueFile) -> tuple[Path, int]:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            target = folder / f"{self._path.stem}-{stamp}.db"
            folder.mkdir(parents=True, exist_ok=True)
            file.backup(target)
            copy = CatalogueFile(target)
            try:
                return target, len(copy.rows())
            finally:
                copy.close()

        try:
            return await self._run(write, self._file)
        except OSError as error:
            raise StorageUnavailable(f"the backup cannot be written: {error.strerror}; check the disk") from error

    async def _call(self, work: Callable[[CatalogueFile], R]) -> R:
        """Run ``work`` on the file; where the file fails, once more on a catalogue in memory."""
        try:
            return await self._run(work, self._file)
        except StorageUnavailable as error:
            if self.in_memory:
                raise
            await self._go_on_in_memory(error.message)
            return await self._run(work, self._file)

    async def _go_on_in_memory(self, why: str) -> None:
        self.problem = f"{why}; until the next start of the hive the catalogue is kept in memory"
        log(LOGGER, ALERT, "the catalogue goes on in memory", why=why)
        self._file = CatalogueFile(IN_MEMORY)
        try:
            await self._run(self._file.reconcile, self._models)
        except StorageUnavailable as error:  # the disk of the models as well: each is found when it is asked for
            log(LOGGER, logging.ERROR, "the folders of models cannot be read", why=error.message)

    async def _run(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            async with asyncio.timeout(CALL_LIMIT_S):
                return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(*args, **kwargs))
        except TimeoutError:
            raise StorageUnavailable("the hive's database did not answer in time", retry_after_s=30) from None
