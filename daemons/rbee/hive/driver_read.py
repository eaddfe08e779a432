"""Blocking reads of drivers and disks, which may hang: nobody waits for one for longer than a limit."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class DriverRead(Generic[Result]):
    """Calls ``read`` in a thread of its own, one at a time; callers who come meanwhile share it."""

    def __init__(self, read: Callable[[], Result], name: str) -> None:
        self._read = read
        self._name = name
        self._reading: asyncio.Future[Result] | None = None

    async def within(self, limit_s: float) -> Result:
        """What ``read`` returns; raises what it raises, and TimeoutError where it takes over ``limit_s`` seconds."""
        reading = self._reading
        if reading is None:
            reading = self._reading = self._begin()
        done, _ = await asyncio.wait((reading,), timeout=limit_s)
        if not done:
            raise TimeoutError
        if self._reading is reading:
            self._reading = None
        return reading.result()

    def _begin(self) -> "asyncio.Future[Result]":
        loop = asyncio.get_running_loop()
        reading: asyncio.Future[Result] = loop.create_future()

        def work() -> None:
            try:
                settle, result = reading.set_result, self._read()
            except Exception as error:  # noqa: BLE001 - handed to whoever awaits it
                settle, result = reading.set_exception, error  # type: ignore[assignment]
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, result)

        # a daemon thread: the end of the hive does not wait for a driver
        threading.Thread(target=work, name=self._name, daemon=True).start()
        return reading
