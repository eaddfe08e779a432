"""One model on its way to this machine: how far it is, for everybody who follows it."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable

import msgspec

from rbee.hive.models.throttle import BITS, MEGA
from rbee.hive.models.tries import MOST_TRIES, Failure
from rbee.wire.errors import DownloadFailed, RbeeError
from rbee.wire.model_messages import ModelProgress, ModelRow, Stage
from rbee.wire.model_reference import ModelReference

PACE_S = 0.2
_WINDOW_S = 3.0
_MOST_SAMPLES = 64
_MOST_NOTES = 32


class Speed:
    """Megabits per second over the last three seconds; ``clock`` gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._total = 0
        self._samples: deque[tuple[float, int]] = deque([(clock(), 0)], maxlen=_MOST_SAMPLES)

    def add(self, size: int) -> None:
        """``size`` bytes came."""
        self._total += size
        now = self._clock()
        if now - self._samples[-1][0] >= _WINDOW_S / _MOST_SAMPLES:
            self._samples.append((now, self._total))

    @property
    def mbps(self) -> float:
        """The rate now."""
        now = self._clock()
        while len(self._samples) > 1 and now - self._samples[0][0] > _WINDOW_S:
            self._samples.popleft()
        since, before = self._samples[0]
        return (self._total - before) * BITS / MEGA / max(now - since, _WINDOW_S / _MOST_SAMPLES)


class Download:
    """A download that any number of callers follow; it ends with a row of the catalogue, or with an error."""

    def __init__(self, reference: ModelReference, clock: Callable[[], float] = time.monotonic) -> None:
        self.reference = reference
        self.model_id = reference.model_id
        self.row: ModelRow | None = None
        self.error: RbeeError | None = None
        self.limit_mbps: float | None = None
        self._clock = clock
        self._began = clock()
        self._ended: float | None = None
        self._stage = Stage.QUEUED
        self._total = 0
        self._sizes: dict[str, int] = {}
        self._attempt = 1
        self._notes: deque[str] = deque(maxlen=_MOST_NOTES)
        self._noted = 0
        self._speed = Speed(clock)
        self._changed = asyncio.Event()

    # What the one who downloads says.

    def enter(self, stage: Stage) -> None:
        """Another stage began."""
        self._stage = stage
        self._tell()

    def expect(self, total: int) -> None:
        """The bytes of all files, as far as they are known."""
        self._total = total
        self._tell()

    def have(self, path: str, size: int) -> None:
        """So many bytes of a file are there."""
        self._sizes[path] = size
        self._tell()

    def received(self, size: int) -> None:
        """So many bytes came over the network."""
        self._speed.add(size)

    def failed_try(self, failure: Failure) -> None:
        """A try failed and will be repeated."""
        self._attempt = failure.number + 1
        self._notes.append(f"{failure.why}; try {failure.number + 1} of {failure.of} in {failure.wait_s:.1f} s")
        self._noted += 1
        self._tell()

    def succeed(self, row: ModelRow) -> None:
        """The model is here."""
        self.row = row
        self._end(Stage.COMPLETE)

    def fail(self, error: RbeeError) -> None:
        """The model does not come."""
        self.error = error
        self._end(Stage.FAILED)

    # What the others see.

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self._stage.over

    @property
    def duration_s(self) -> float:
        """Seconds since it was asked for, to its end where it has ended."""
        return (self._clock() if self._ended is None else self._ended) - self._began

    def progress(self) -> ModelProgress:
        """How far it is."""
        done = sum(self._sizes.values())
        return ModelProgress(
            model=self.model_id,
            reference=self.reference.text,
            stage=self._stage,
            bytes_downloaded=done,
            bytes_total=max(self._total, done),
            speed_mbps=0.0 if self.over else round(self._speed.mbps, 3),
            limit_mbps=self.limit_mbps,
            attempt=self._attempt,
            attempts=MOST_TRIES,
            note=self._notes[-1] if self._notes else "",
            local_path=None if self.row is None else self.row.local_path,
            duration_s=round(self.duration_s, 3) if self.over else None,
            error=None if self.error is None else self.error.info(None),
        )

    async def follow(self) -> AsyncIterator[ModelProgress]:
        """The progress now, then at each change, to its end: five times a second at most, but each try that failed."""
        told = self._noted
        while True:
            changed = self._changed
            now = self.progress()
            missed = self._notes_since(told, with_last=now.error is not None)
            told = self._noted
            for note in missed:
                yield msgspec.structs.replace(now, stage=Stage.DOWNLOADING, note=note, error=None, local_path=None)
            yield now
            if now.stage.over:
                return
            await changed.wait()
            if not self.over:
                await asyncio.sleep(PACE_S)

    def _notes_since(self, told: int, *, with_last: bool) -> list[str]:
        """Notes made after the first ``told``; the last one only where the event that follows does not show it."""
        notes = list(self._notes)[max(0, len(self._notes) - (self._noted - told)) :]
        return notes if with_last else notes[:-1]

    async def result(self) -> ModelRow:
        """Wait for its end; raises the error that ended it."""
        while not self.over:
            await self._changed.wait()
        if self.row is not None:
            return self.row
        raise self.error or DownloadFailed("the download ended without a word: pull the model again")

    def _end(self, stage: Stage) -> None:
        self._ended = self._clock()
        self.enter(stage)

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
