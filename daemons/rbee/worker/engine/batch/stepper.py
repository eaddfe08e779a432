"""Steps a batch: admits rows, plans, runs the decoder, chooses tokens, tells what came of it. No thread, no loop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rbee.wire.errors import InferenceError, RbeeError
from rbee.worker.engine.batch.decoders import BatchDecoder, Chunk, Token
from rbee.worker.engine.batch.host_kv import HostBlock
from rbee.worker.engine.batch.plan import Pace, Part, plan_step
from rbee.worker.engine.batch.prefix import PrefixCache
from rbee.worker.engine.batch.reuse import PrefixReuse
from rbee.worker.engine.batch.row import Row
from rbee.worker.engine.batch.scores import DeviceScores, RowScores
from rbee.worker.engine.sampling import BatchSampler, Choice, NeedKind
from rbee.worker.engine.sessions import RunOptions

Outcome: TypeAlias = Choice | RbeeError
Tell: TypeAlias = Callable[[Sequence[tuple[Row, Outcome]]], None]
"""Takes rows with the tokens that were chosen for them, or with the errors that they failed with."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Rows that run at once, and bytes that their keys and values may take (None: no bound)."""

    rows: int
    kv_bytes: int | None = None


class Stepper:
    """Owns the decoder, the sampler, the prefix cache, and the rows that wait and run. Belongs to one thread."""

    def __init__(
        self,
        decoder: BatchDecoder,
        sampler: BatchSampler,
        prefixes: PrefixCache[HostBlock],
        limits: Limits,
        options: RunOptions,
        clock: Callable[[], float],
    ) -> None:
        self._decoder = decoder
        self._sampler = sampler
        self._reuse = PrefixReuse(decoder, prefixes)
        self._limits = limits
        self._options = options
        self._clock = clock
        self._waiting: list[Row] = []
        self._running: dict[int, Row] = {}
        self._pace = Pace()
        self._came: list[tuple[Row, Outcome]] = []
        self._over: list[Row] = []

    @property
    def rows(self) -> list[Row]:
        """All rows, running ones first."""
        return [*self._running.values(), *self._waiting]

    def submit(self, row: Row) -> None:
        """A row waits to begin."""
        self._waiting.append(row)

    def drop(self, row: Row) -> None:
        """A row is over, if it is not already."""
        if row in self._waiting:
            self._waiting.remove(row)
        self._sampler.remove(row.key)
        if self._running.pop(row.key, None) is not None:
            self._decoder.close(row.key)

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        for row in self._running.values():
            if not row.held():
                return True
        return bool(self._waiting) and self._fits([*self._running.values(), self._waiting[0]])

    def step(self, tell: Tell) -> None:
        """Make one step. What came of it is told at once: nobody waits for other rows' prompts, nor for copies."""
        self._admit()
        rows = list(self._running.values())
        views = [row.view(deferred=self._reuse.waits(row, rows)) for row in rows]
        plan = plan_step(views, self._pace, most=self._decoder.most_tokens, whole=self._decoder.whole_prompts)
        self._make_room()
        self._decode([self._running[key] for key in plan.decode if key in self._running], alone=not plan.read)
        self._hand_out(tell)
        parts = [part for part in plan.read if part.key in self._running]
        filled = [self._running[part.key] for part in parts]
        self._read(parts, filled, plan.reading_s)
        self._hand_out(tell)
        self._settle(filled)

    def _hand_out(self, tell: Tell) -> None:
        came, self._came = self._came, []
        if came:
            tell(came)

    def _settle(self, filled: Sequence[Row]) -> None:
        """Keep what was computed of prompts for those who come later, and let go of the rows that are over."""
        over, self._over = self._over, []
        for row in filled:
            if row.key in self._running:
                self._reuse.keep(row)
        for row in over:
            self._reuse.finish(row)
            self.drop(row)

    def _admit(self) -> None:
        """Begin rows in the order they came, while slots and memory last; the short ones first within one step."""
        admitted: list[Row] = []
        while self._waiting and self._fits([*self._running.values(), *admitted, self._waiting[0]]):
            admitted.append(self._waiting.pop(0))
        for row in sorted(admitted, key=lambda each: len(each.tokens)):
            if row.chosen == 0:
                self._sampler.add(row.key, row.request.sampling, row.request.prompt)
            self._reuse.begin(row)
            self._running[row.key] = row
            try:
                self._decoder.open(row.key, len(row.tokens))
            except InferenceError as error:
                self._fail(row, error)

    def _fits(self, rows: Sequence[Row]) -> bool:
        if len(rows) == 1:
            return True  # the context is bounded so that one text always may run
        if len(rows) > self._limits.rows:
            return False
        longest = max(len(row.tokens) for row in rows)
        return self._limits.kv_bytes is None or self._decoder.size(len(rows), longest) <= self._limits.kv_bytes

    def _make_room(self) -> None:
        """Where the memory is full the youngest rows wait, and are read anew later: nobody fails for it."""
        while len(self._running) > 1 and not self._fits(list(self._running.values())):
            row = self._running.popitem()[1]
            self._decoder.close(row.key)
            row.cached = 0
            self._waiting.insert(0, row)

    def _decode(self, rows: Sequence[Row], *, alone: bool) -> None:
        if not rows:
            return
        began = self._clock()
        self._advance(rows, [1] * len(rows), self._run_tokens)
        self._pace = self._pace.decoded(self._clock() - began, alone=alone)

    def _read(self, parts: Sequence[Part], rows: Sequence[Row], allowed_s: float | None) -> None:
        if not parts:
            return
        for row in rows:
            self._reuse.take(row)
        counts = [min(part.count, row.pending) for part, row in zip(parts, rows, strict=True)]
        began = self._clock()
        self._advance(rows, counts, self._run_chunks)
        self._pace = self._pace.read(sum(counts), self._clock() - began, allowed_s)

    def _advance(
        self, rows: Sequence[Row], counts: Sequence[int], run: Callable[[Sequence[Row], Sequence[int]], RowScores]
    ) -> None:
        """Compute ``counts`` tokens of ``rows`` and choose for those that are complete.

        Where a run of several fails each of its rows is run alone, so that only the one at fault ends with the error.
        """
        try:
            scores = run(rows, counts)
        except InferenceError as error:
            if len(rows) == 1:
                self._fail(rows[0], error)
                return
            for row, count in zip(rows, counts, strict=True):
                self._advance([row], [count], run)
            return
        for row, count in zip(rows, counts, strict=True):
            row.cached += count
        ready = [at for at, row in enumerate(rows) if row.pending == 0]
        self._choose([rows[at] for at in ready], scores.of(ready))

    def _run_tokens(self, rows: Sequence[Row], _: Sequence[int]) -> RowScores:
        return self._decoder.step([Token(row.key, row.cached, row.tokens[-1]) for row in rows], self._options)

    def _run_chunks(self, rows: Sequence[Row], counts: Sequence[int]) -> RowScores:
        chunks = [
            Chunk(row.key, row.cached, row.tokens[row.cached : row.cached + count])
            for row, count in zip(rows, counts, strict=True)
        ]
        return self._decoder.read(chunks, self._options)

    def _choose(self, rows: Sequence[Row], scores: RowScores) -> None:
        for row, outcome in zip(rows, self._outcomes([row.key for row in rows], scores), strict=True):
            if not isinstance(outcome, Choice):
                self._fail(row, outcome)
                continue
            self._came.append((row, outcome))
            if row.accept(outcome):
                self._over.append(row)

    def _outcomes(self, keys: Sequence[int], scores: RowScores) -> list[Choice | InferenceError]:
        """Choose; from the best scores alone where they lie on a device and no row needs more."""
        try:
            if keys and isinstance(scores, DeviceScores):
                need = self._sampler.need(keys)
                if need.kind is not NeedKind.SCORES:
                    return self._sampler.choose_from(keys, *scores.best(need.k))
            return self._sampler.choose(keys, scores.whole())
        except InferenceError as error:  # bringing them to the host failed
            return [error] * len(keys)

    def _fail(self, row: Row, error: RbeeError) -> None:
        self._came.append((row, error))
        self.drop(row)
