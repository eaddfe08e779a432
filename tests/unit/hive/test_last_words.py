"""The last log line of lives that ended badly: one journal read at a time, the latest life of each worker."""

import asyncio
from collections.abc import AsyncIterator

from rbee.hive.last_words import MOST_TOLD, LastWords
from rbee.hive.logs import LogLine
from rbee.wire.errors import Unavailable
from rbee.wire.tasks import TaskOwner


class Journal:
    """A journal that answers when let: lines by invocation id, None where it cannot be read."""

    def __init__(self, lines: dict[str, str | None]) -> None:
        self.lines = lines
        self.asked: list[str] = []
        self.open = asyncio.Event()

    async def read(self, worker_id: str, lines: int, *, follow: bool) -> AsyncIterator[LogLine]:
        raise NotImplementedError
        yield

    async def last(self, worker_id: str, invocation_id: str) -> AsyncIterator[LogLine]:
        self.asked.append(invocation_id)
        await self.open.wait()
        line = self.lines[invocation_id]
        if line is None:
            raise Unavailable("the journal cannot be read")
        yield LogLine(1.0, 6, line)


async def test_the_latest_life_of_each_worker_is_read_one_at_a_time() -> None:
    journal = Journal({"1": "one", "2": "old", "3": None, "4": "x" * 600})
    told: list[tuple[str, str, str]] = []
    done = asyncio.Event()

    def tell(worker_id: str, invocation_id: str, line: str) -> None:
        told.append((worker_id, invocation_id, line))
        if worker_id == "c":
            done.set()

    tasks = TaskOwner()
    words = LastWords(journal, tasks, tell)
    words.ended("a", "1")
    await asyncio.sleep(0)
    words.ended("b", "2")
    words.ended("b", "3")
    words.ended("c", "4")
    assert journal.asked == ["1"]
    journal.open.set()
    async with asyncio.timeout(10):
        await done.wait()
    assert journal.asked == ["1", "3", "4"]
    assert told == [("a", "1", "one"), ("c", "4", "x" * MOST_TOLD)]
    await tasks.close()
