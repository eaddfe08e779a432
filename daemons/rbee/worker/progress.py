"""How far loading is: one current value that a thread writes and any number of readers await."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from rbee.wire.errors import RbeeError
from rbee.wire.messages import Progress


@dataclass(frozen=True, slots=True)
class Loaded:
    """Loading ended well, after ``seconds``."""

    seconds: float


Stage = Progress | Loaded | RbeeError
"""Where loading is: under way, ended well, or ended by an error."""


class ProgressBoard:
    """The current stage. Readers that are slow see the latest stage, not each one between: nothing piles up."""

    def __init__(self) -> None:
        self.current: Stage = Progress("starting")
        self._changed = asyncio.Event()

    def post(self, stage: Stage) -> None:
        """Put up another stage and wake the readers. In the loop's thread only."""
        self.current = stage
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self) -> AsyncIterator[Stage]:
        """Yield the current stage at once, then each change, until loading has ended."""
        while True:
            changed, stage = self._changed, self.current
            yield stage
            if not isinstance(stage, Progress):
                return
            await changed.wait()


def describe(stage: Progress) -> str:
    """The stage as one line for a person: name, and done of total where it counts."""
    if not stage.total:
        return stage.stage
    if stage.unit == "bytes":
        return f"{stage.stage} {stage.done / 1e6:.0f}/{stage.total / 1e6:.0f} MB"
    return f"{stage.stage} {stage.done}/{stage.total} {stage.unit}"
