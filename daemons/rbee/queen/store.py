"""What must last, in one dedicated thread: serving never waits for it, and goes on without it.

While the file cannot be written the queen serves from RAM, ``/health`` names it, and changes of aliases, nodes and
declarations are refused; notes of hives, of what was declared and of what workers took wait (the latest of each) and
are written once it is back.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ParamSpec, TypeVar

from rbee.queen.database import MOST_MEASURED, Database, HiveRow, MemoryRow, Setup
from rbee.wire.errors import StorageUnavailable
from rbee.wire.log import log

LOGGER = logging.getLogger(__name__)
P = ParamSpec("P")
R = TypeVar("R")
CALL_LIMIT_S = 20.0
AGAIN_S = 5.0


class Store:
    """The database behind one thread. ``problem`` is why it cannot be used now, or None."""

    def __init__(self, path: Path, *, again_s: float = AGAIN_S) -> None:
        self._database = Database(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._again_s = again_s
        self._owed: dict[str, HiveRow | None] = {}
        self._owed_declared: dict[str, float | None] = {}
        self._owed_forgotten: set[str] = set()
        self._owed_memory: dict[Setup, MemoryRow] = {}
        self._stirred = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self.problem: str | None = None

    async def open(self) -> tuple[list[HiveRow], dict[str, str]]:
        """Open, begin to write what is noted, and return the hives and aliases remembered (none while unusable)."""
        self._writer = asyncio.create_task(self._write_notes(), name="store")
        try:
            await self._call(self._database.open)
            return await self._call(self._database.hives), await self._call(self._database.aliases)
        except StorageUnavailable:
            return [], {}

    async def close(self) -> None:
        """Write what is owed, if that can be, and close."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        with contextlib.suppress(StorageUnavailable):
            await self._pay()
        with contextlib.suppress(StorageUnavailable):
            await self._call(self._database.close)
        self._thread.shutdown(wait=False)

    def note_hive(self, row: HiveRow) -> None:
        """Remember a hive some time soon; returns at once."""
        self._owed[row.hive_id] = row
        self._stirred.set()

    def forget_hive(self, hive_id: str) -> None:
        """Forget a hive some time soon; returns at once."""
        self._owed[hive_id] = None
        self._stirred.set()

    def note_memory(self, row: MemoryRow) -> None:
        """Remember what a worker took some time soon; returns at once. No more wait than the database keeps."""
        self._owed_memory.pop(row.setup, None)
        self._owed_memory[row.setup] = row
        if len(self._owed_memory) > MOST_MEASURED:
            del self._owed_memory[next(iter(self._owed_memory))]
        self._stirred.set()

    async def memory(self) -> list[MemoryRow]:
        """What workers took, the one measured last at the end; raises StorageUnavailable."""
        return await self._call(self._database.memory)

    async def aliases(self) -> dict[str, str]:
        """Aliases set by the API; raises StorageUnavailable."""
        return await self._call(self._database.aliases)

    async def put_alias(self, alias: str, model: str) -> None:
        """Set an alias for good; raises StorageUnavailable."""
        await self._call(self._database.put_alias, alias, model)

    async def remove_alias(self, alias: str) -> None:
        """Unset an alias for good; raises StorageUnavailable."""
        await self._call(self._database.remove_alias, alias)

    async def nodes(self) -> dict[str, bytes]:
        """The documents of nodes by name; raises StorageUnavailable."""
        return await self._call(self._database.nodes)

    async def put_node(self, name: str, document: bytes) -> None:
        """Keep a node's document for good; raises StorageUnavailable."""
        await self._call(self._database.put_node, name, document)

    async def remove_node(self, name: str) -> None:
        """Forget a node for good; raises StorageUnavailable."""
        await self._call(self._database.remove_node, name)

    async def declarations(self) -> dict[str, bytes]:
        """The documents of declared models by name; raises StorageUnavailable."""
        return await self._call(self._database.declarations)

    async def put_declaration(self, model: str, document: bytes, idle_limit_s: float | None = None) -> None:
        """Keep a declared model's document for good, and that it was declared; raises StorageUnavailable."""
        self._owed_forgotten.discard(model)
        await self._call(self._database.put_declaration, model, document, idle_limit_s)

    async def remove_declaration(self, model: str) -> None:
        """Forget a declared model for good; raises StorageUnavailable."""
        await self._call(self._database.remove_declaration, model)

    async def once_declared(self) -> dict[str, float | None]:
        """Every model that is or was declared, oldest first, with its last idle limit; raises StorageUnavailable."""
        return await self._call(self._database.once_declared)

    def note_declared(self, models: Mapping[str, float | None]) -> None:
        """Remember some time soon that models were declared, with their idle limits; returns at once."""
        self._owed_declared |= models
        self._owed_forgotten -= models.keys()
        self._stirred.set()

    def forget_declared(self, models: Collection[str]) -> None:
        """Forget some time soon that models were declared; returns at once."""
        self._owed_forgotten.update(models)
        for model in models:
            self._owed_declared.pop(model, None)
        self._stirred.set()

    async def backup(self, target: Path) -> None:
        """Write a checked copy to ``target``; raises StorageUnavailable."""
        await self._call(self._database.backup, target)

    async def _write_notes(self) -> None:
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            try:
                await self._pay()
            except StorageUnavailable:
                await asyncio.sleep(self._again_s)
                self._stirred.set()

    async def _pay(self) -> None:
        await self._pay_memory()
        await self._pay_hives()
        await self._pay_declared()

    async def _pay_memory(self) -> None:
        owed, self._owed_memory = self._owed_memory, {}
        if not owed:
            return
        try:
            await self._call(self._database.put_memory, list(owed.values()))
        except (StorageUnavailable, asyncio.CancelledError):
            self._owed_memory = owed | self._owed_memory
            raise

    async def _pay_hives(self) -> None:
        owed, self._owed = self._owed, {}
        if not owed and self.problem is None:
            return
        try:
            await self._call(self._database.note_hives, [row for row in owed.values() if row is not None])
            for hive_id in [hive_id for hive_id, row in owed.items() if row is None]:
                await self._call(self._database.forget_hive, hive_id)
        except (StorageUnavailable, asyncio.CancelledError):
            self._owed = owed | self._owed
            raise

    async def _pay_declared(self) -> None:
        declared, self._owed_declared = self._owed_declared, {}
        forgotten, self._owed_forgotten = self._owed_forgotten, set()
        if not declared and not forgotten:
            return
        try:
            await self._call(self._database.note_declared, declared, forgotten)
        except (StorageUnavailable, asyncio.CancelledError):
            later, gone = self._owed_declared, self._owed_forgotten
            self._owed_declared = {model: limit for model, limit in declared.items() if model not in gone} | later
            self._owed_forgotten = (forgotten - later.keys()) | gone
            raise

    async def _call(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CALL_LIMIT_S):
                result = await loop.run_in_executor(self._thread, lambda: work(*args, **kwargs))
        except StorageUnavailable as error:
            self._note_problem(error.message)
            raise
        except TimeoutError:
            self._note_problem("it did not answer in time")
            raise StorageUnavailable("the queen's database did not answer in time", retry_after_s=30) from None
        if self.problem is not None:
            log(LOGGER, logging.INFO, "the database is back")
        self.problem = None
        return result

    def _note_problem(self, why: str) -> None:
        if self.problem is None:
            log(LOGGER, logging.ERROR, "the database cannot be used: serving goes on from memory", why=why)
        self.problem = why
        self._stirred.set()
