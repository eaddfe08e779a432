"""Several texts that are generated side by side, read as one stream."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from rbee.worker.engine.generation import Finished, GenerateRequest, Piece
from rbee.worker.engine.generator import Generator

Item = tuple[int, Piece | Finished]
_ROOM_A_TEXT = 4


@asynccontextmanager
async def side_by_side(generator: Generator, requests: Sequence[GenerateRequest]) -> AsyncIterator[AsyncIterator[Item]]:
    """The items of every text with its number, as they come. What is generating stops when the block ends.

    Few items wait for the reader, so a slow one slows its texts down. The first error ends the stream.
    """
    if len(requests) == 1:
        async with aclosing(generator.stream(requests[0])) as items:
            yield _numbered(items)
        return
    queue: asyncio.Queue[Item | Exception] = asyncio.Queue(_ROOM_A_TEXT * len(requests))
    tasks = [asyncio.create_task(_feed(queue, generator, index, each)) for index, each in enumerate(requests)]
    try:
        yield _read(queue, len(tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _numbered(items: AsyncIterator[Piece | Finished]) -> AsyncIterator[Item]:
    async for item in items:
        yield 0, item


async def _feed(
    queue: asyncio.Queue[Item | Exception], generator: Generator, index: int, request: GenerateRequest
) -> None:
    try:
        async with aclosing(generator.stream(request)) as items:
            async for item in items:
                await queue.put((index, item))
    except Exception as error:  # noqa: BLE001 - the task's last edge: carried to the reader, who raises it
        await queue.put(error)


async def _read(queue: asyncio.Queue[Item | Exception], texts: int) -> AsyncIterator[Item]:
    while texts:
        item = await queue.get()
        if isinstance(item, Exception):
            raise item
        texts -= isinstance(item[1], Finished)
        yield item
