"""This machine's facts for the reports, whatever its drivers and disks do: a read that hangs holds up nothing."""

import logging
import os
import socket
from collections.abc import Callable

from rbee.hive.driver_read import DriverRead
from rbee.wire.log import log
from rbee.wire.messages import MachineFacts

LOGGER = logging.getLogger(__name__)
READ_LIMIT_S = 2.0


class MachineWatch:
    """Reads facts by ``read``, which blocks and may hang, in one thread at a time."""

    def __init__(self, read: Callable[[], MachineFacts], limit_s: float = READ_LIMIT_S) -> None:
        self._read = DriverRead(read, "machine facts")
        self._limit_s = limit_s
        self._hangs = False
        self._last = MachineFacts(socket.gethostname()[:512], os.cpu_count() or 1, 0, 0, 0, 0)

    async def facts(self) -> MachineFacts:
        """The facts now, or those read last where they do not come within the limit; zeros before the first."""
        try:
            found = await self._read.within(self._limit_s)
        except TimeoutError:
            self._tell_hang()
            return self._last
        except OSError as error:
            log(LOGGER, logging.WARNING, "this machine's facts cannot be read", why=error.strerror)
        else:
            self._tell_gone_gpus(found)
            self._last = found
        self._hangs = False
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

    def _tell_gone_gpus(self, found: MachineFacts) -> None:
        there = {gpu.uuid for gpu in found.gpus}
        for gpu in self._last.gpus:
            if gpu.uuid not in there:
                log(
                    LOGGER,
                    logging.ERROR,
                    "a GPU is gone, nothing is placed there any more: look for NVRM in 'journalctl -k', and reboot",
                    device=gpu.index,
                    uuid=gpu.uuid,
                )
