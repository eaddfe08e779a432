"""Work on the disk in a thread, of which a cancelled caller knows that it has ended."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


async def to_its_end(work: Callable[[], Result], stop: Callable[[], object] | None = None) -> Result:
    """Do ``work`` in a thread and return what it returns; raises what it raises.

    A cancellation calls ``stop``, which is to make ``work`` end soon, and is heard when it has ended: until then the
    files that it works on are not to be touched.
    """
    task = asyncio.create_task(asyncio.to_thread(work))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
            if stop is not None:
                stop()
    if cancelled is not None:
        raise cancelled from task.exception()
    return task.result()
