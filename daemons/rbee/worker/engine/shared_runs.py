"""Shares the runs of a model among the requests that wait for it: one run at a time, filled with what is there.

A request that comes alone starts at once: nothing ever waits for a batch to fill. While a run is under way the rows of
others gather, and the next run takes from them.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from rbee.wire.errors import InferenceError
from rbee.worker.engine.runner import Runner, Step
from rbee.worker.engine.sessions import RunOptions
from rbee.worker.engine.token_batches import Pick

Row = TypeVar("Row")
Result = TypeVar("Result")
Plan = Callable[[Sequence[Sequence[Row]]], list[Pick]]
"""Which rows run next, of those that wait: never none, and the first job's first row always among them."""
WINDOW_ROWS = 512
TURN_ROWS = 16
"""A job that has had so many rows run gives way to those behind it: a long one holds nobody up."""


@dataclass(slots=True)
class RunCounts:
    """What was run so far: runs, and the rows in them; rows that wait."""

    runs: int = 0
    rows: int = 0
    waiting: int = 0


@dataclass(eq=False)
class _Job(Generic[Row, Result]):
    """One request's rows. ``alone``: a run that it shared failed, so its rows share none again."""

    rows: Sequence[Row]
    done: "asyncio.Future[None]"
    waiting: list[int]
    results: dict[int, Result] = field(default_factory=dict)
    turn: int = 0
    alone: bool = False


@dataclass(frozen=True, slots=True)
class _Batch(Generic[Row, Result]):
    """The rows of one run, each with its job and its index there."""

    members: list[tuple[_Job[Row, Result], int]]

    @property
    def jobs(self) -> list[_Job[Row, Result]]:
        return list(dict.fromkeys(job for job, _ in self.members))


class SharedRuns(Generic[Row, Result]):
    """The owner of a model's runs. Everything but a run itself happens in the loop's thread."""

    def __init__(
        self, runner: Runner, run: Callable[[Sequence[Row], RunOptions], Sequence[Result]], plan: Plan[Row]
    ) -> None:
        self._runner = runner
        self._run = run
        self._plan = plan
        self.counts = RunCounts()
        self._line: list[_Job[Row, Result]] = []
        self._step: Step[Sequence[Result]] | None = None
        self._batch: _Batch[Row, Result] | None = None
        self._soon: asyncio.Handle | None = None

    async def results(self, rows: Sequence[Row]) -> list[Result]:
        """A result for each of ``rows`` (at least one), in their order; raises what the run of one of them raised.

        Cancelled, its rows that wait are not run, and a run that holds no other's rows is ended at its next node.
        """
        job: _Job[Row, Result] = _Job(rows, asyncio.get_running_loop().create_future(), list(range(len(rows))))
        self._line.append(job)
        self.counts.waiting += len(rows)
        if self._step is None and self._soon is None:
            # at the end of this turn of the loop: those that came with it share the run
            self._soon = asyncio.get_running_loop().call_soon(self._start)
        try:
            await job.done
        except asyncio.CancelledError:
            self._leave(job)
            raise
        return [job.results[index] for index in range(len(rows))]

    def _start(self) -> None:
        self._soon = None
        if not self._line:
            return
        self._batch = batch = self._next_batch()
        work = partial(self._run, [job.rows[index] for job, index in batch.members])
        self._step = self._runner.begin(work, self._ran)

    def _next_batch(self) -> _Batch[Row, Result]:
        """Take the next run's rows out of the line."""
        first = self._line[0]
        sharing = [first] if first.alone else [job for job in self._line if not job.alone]
        most = max(1, WINDOW_ROWS // len(sharing))
        picks = self._plan([[job.rows[index] for index in job.waiting[:most]] for job in sharing])
        members = [(sharing[pick.job], sharing[pick.job].waiting[pick.row]) for pick in picks]
        taken: dict[int, set[int]] = {}
        for pick in picks:
            taken.setdefault(pick.job, set()).add(pick.row)
        for position, picked in taken.items():
            job = sharing[position]
            job.waiting[:most] = [index for row, index in enumerate(job.waiting[:most]) if row not in picked]
            job.turn += len(picked)
        self._line = [job for job in self._line if job.waiting]
        if first.waiting and first.turn >= TURN_ROWS:
            first.turn = 0
            self._line.append(self._line.pop(0))
        self.counts.runs += 1
        self.counts.rows += len(members)
        self.counts.waiting -= len(members)
        return _Batch(members)

    def _ran(self, step: Step[Sequence[Result]]) -> None:
        batch, self._batch, self._step = self._batch, None, None
        if batch is not None:
            self._deliver(batch, step)
        self._start()

    def _deliver(self, batch: _Batch[Row, Result], step: Step[Sequence[Result]]) -> None:
        if step.terminated:
            return  # everybody had left
        error = step.error
        jobs = [job for job in batch.jobs if not job.done.done()]
        if error is None:
            for (job, index), result in zip(batch.members, step.result, strict=True):
                job.results[index] = result
            for job in jobs:
                if len(job.results) == len(job.rows):
                    job.done.set_result(None)
        elif isinstance(error, InferenceError) and len(batch.jobs) > 1:
            # one of them may be at fault: each again by itself, so that it fails no other
            self._again_alone(batch, jobs)
        else:
            for job in jobs:
                job.done.set_exception(error)
                self._leave(job)

    def _again_alone(self, batch: _Batch[Row, Result], jobs: list[_Job[Row, Result]]) -> None:
        for job in reversed(jobs):
            job.alone = True
            again = [index for owner, index in batch.members if owner is job]
            job.waiting[:0] = again
            self.counts.waiting += len(again)
            if job not in self._line:
                self._line.insert(0, job)

    def _leave(self, job: _Job[Row, Result]) -> None:
        if job in self._line:
            self._line.remove(job)
            self.counts.waiting -= len(job.waiting)
        if self._step is not None and self._batch is not None and all(each.done.done() for each in self._batch.jobs):
            self._step.terminate()
