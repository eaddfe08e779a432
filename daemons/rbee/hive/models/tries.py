"""How often a transfer is tried: six times, the first retry after 100 ms, each failure told to whoever follows."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from rbee.wire.backoff import delays
from rbee.wire.errors import DownloadFailed, DownloadTimeout, RbeeError
from rbee.wire.log import log

LOGGER = logging.getLogger(__name__)
T = TypeVar("T")
MOST_TRIES = 6
_FIRST_S, _FACTOR, _JITTER = 0.1, 4.0, 0.1
_MOST_ASKED_S = 120.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A try that failed: its number from 1, of how many, why, and the seconds until the next."""

    number: int
    of: int
    why: str
    wait_s: float


class Tries:
    """Runs an attempt until it succeeds or six have failed; ``random`` gives numbers in [0, 1), ``most_s`` bounds a
    wait."""

    def __init__(self, most_s: float, random: Callable[[], float], on_failure: Callable[[Failure], None]) -> None:
        self._most_s = most_s
        self._random = random
        self._on_failure = on_failure

    async def run(self, attempt: Callable[[], Awaitable[T]], what: str) -> T:
        """The attempt's result; ``what`` names it in the log.

        Raises the last DownloadFailed or DownloadTimeout with its number of tries, and at once whatever else it raises.
        """
        waits = delays(MOST_TRIES - 1, _FIRST_S, _FACTOR, _JITTER, self._random, self._most_s)
        for number, wait in enumerate((*waits, None), start=1):
            try:
                return await attempt()
            except (DownloadFailed, DownloadTimeout) as error:
                if wait is None:
                    raise _given_up(error, number) from error
                wait_s = max(wait, min(error.retry_after_s or 0.0, _MOST_ASKED_S))
                log(
                    LOGGER, logging.WARNING, "download interrupted, trying again", what=what, why=error.message,
                    attempt=number, of=MOST_TRIES, wait_s=round(wait_s, 3),
                )  # fmt: skip
                self._on_failure(Failure(number, MOST_TRIES, error.message, wait_s))
                await asyncio.sleep(wait_s)
        raise AssertionError("the loop above returns or raises")


def _given_up(error: RbeeError, tries: int) -> RbeeError:
    return type(error)(
        f"{error.message}; given up after {tries} tries: what came is kept, pull the model again to go on there",
        details={**error.details, "tries": tries},
    )
