"""This machine's facts for the reports, whatever its drivers and disks do: a read that hangs holds up nothing."""

import asyncio
import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable

from rbee.wire.log import log
from rbee.wire.messages import MachineFacts

LOGGER = logging.getLogger(__name__)
READ_LIMIT_S = 2.0


class MachineWatch:
    """Reads facts by ``read``, which blocks and may hang, in one thread at a time."""

    def __init__(self, read: Callable[[], MachineFacts], limit_s: float = READ_LIMIT_S) -> None:
        self._read = read
        self._limit_s = limit_s
        self._reading: asyncio.Future[MachineFacts] | None = None
        self._hangs = False
        self._last = MachineFacts(socket.gethostname()[:512], os.cpu_count() or 1, 0, 0, 0, 0)

    async def facts(self) -> MachineFacts:
        """The facts now, or those read last where they do not come within the limit; zeros before the first."""
        if self._reading is None:
            self._reading = self._begin()
        done, _ = await asyncio.wait((self._reading,), timeout=self._limit_s)
        if not done:
            self._tell_hang()
            return self._last
        reading, self._reading, self._hangs = self._reading, None, False
        try:
            self._last = reading.result()
        except OSError as error:
            log(LOGGER, logging.WARNING, "this machine's facts cannot be read", why=error.strerror)
        return self._last

    def _tell_hang(self) -> None:
        if not self._hangs:
            self._hangs = True
            log(
                LOGGER,
                logging.ERROR,
                "this machine's facts do not come: a GPU driver or a disk hangs; the last ones are reported on",
                limit_s=self._limit_s,
            )

    def _begin(self) -> "asyncio.Future[MachineFacts]":
        loop = asyncio.get_running_loop()
        reading: asyncio.Future[MachineFacts] = loop.create_future()

        def work() -> None:
            try:
                settle, result = reading.set_result, self._read()
            except Exception as error:  # noqa: BLE001 - handed to whoever awaits it
                settle, result = reading.set_exception, error  # type: ignore[assignment]
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(settle, result)

        # a daemon thread: the end of the hive does not wait for a driver
        threading.Thread(target=work, name="machine facts", daemon=True).start()
        return reading
