"""Requests that share runs: who runs with whom, whose failure is whose, and what a cancelled request leaves."""

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence

import pytest

from rbee.wire.errors import InferenceError
from rbee.worker.engine.runner import Runner
from rbee.worker.engine.sessions import RunOptions
from rbee.worker.engine.shared_runs import TURN_ROWS, RunCounts, SharedRuns
from rbee.worker.engine.token_batches import Pick

LIMIT_S = 20.0


class Model:
    """Doubles numbers; each run waits until it is let go, and 13 is more than it can bear."""

    def __init__(self) -> None:
        self.runs: list[list[int]] = []
        self.started = threading.Semaphore(0)
        self.go = threading.Semaphore(0)
        self.terminated = threading.Event()

    def run(self, rows: Sequence[int], options: RunOptions) -> list[int]:
        self.runs.append(list(rows))
        self.started.release()
        while not self.go.acquire(timeout=0.01):
            if options.terminate:
                self.terminated.set()
                raise InferenceError("terminated")
        if 13 in rows:
            raise InferenceError("13")
        return [2 * row for row in rows]

    async def begun(self) -> None:
        assert await asyncio.to_thread(self.started.acquire, timeout=LIMIT_S)


def everything(waiting: Sequence[Sequence[int]]) -> list[Pick]:
    return [Pick(job, row) for job, rows in enumerate(waiting) for row in range(len(rows))]


def one_at_a_time(waiting: Sequence[Sequence[int]]) -> list[Pick]:
    return [Pick(0, 0)]


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    found = Runner(2)
    yield found
    found.close()


async def ask(runs: SharedRuns[int, int], *rows: int) -> list[int]:
    async with asyncio.timeout(LIMIT_S):
        return await runs.results(rows)


async def line_up(runs: SharedRuns[int, int], *jobs: Sequence[int]) -> list[asyncio.Task[list[int]]]:
    """Requests in this order; each is in the line when this returns."""
    tasks = [asyncio.create_task(ask(runs, *rows)) for rows in jobs]
    await asyncio.sleep(0)
    return tasks


async def test_a_lone_request_starts_at_once_and_those_that_come_meanwhile_share_the_next_run(runner: Runner) -> None:
    model = Model()
    runs = SharedRuns(runner, model.run, everything)
    first = await line_up(runs, [1, 2])
    await model.begun()
    assert model.runs == [[1, 2]]
    others = await line_up(runs, [3], [4, 5])
    model.go.release(2)
    assert await asyncio.gather(*first, *others) == [[2, 4], [6], [8, 10]]
    assert model.runs == [[1, 2], [3, 4, 5]]
    model.go.release()
    assert await ask(runs, 6) == [12]


async def test_those_that_come_in_one_turn_of_the_loop_share_the_first_run(runner: Runner) -> None:
    model = Model()
    model.go.release(1)
    runs = SharedRuns(runner, model.run, everything)
    assert await asyncio.gather(*await line_up(runs, [1], [2], [3])) == [[2], [4], [6]]
    assert model.runs == [[1, 2, 3]]


async def test_a_failure_is_its_own_requests_alone(runner: Runner) -> None:
    model = Model()
    model.go.release(10)
    runs = SharedRuns(runner, model.run, everything)
    tasks = await line_up(runs, [1], [2, 13], [3])
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert found[0] == [2]
    assert isinstance(found[1], InferenceError)
    assert found[2] == [6]
    assert await ask(runs, 4) == [8]
    assert runs.counts == RunCounts(runs=5, rows=9, waiting=0)


async def test_a_cancelled_requests_rows_are_not_run(runner: Runner) -> None:
    model = Model()
    runs = SharedRuns(runner, model.run, everything)
    (first,) = await line_up(runs, [1])
    await model.begun()
    leaver, stayer = await line_up(runs, [2], [3])
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    model.go.release(2)
    assert await asyncio.gather(first, stayer) == [[2], [6]]
    assert model.runs == [[1], [3]]
    assert runs.counts == RunCounts(runs=2, rows=2, waiting=0)


async def test_a_run_goes_on_for_those_who_stay_and_ends_when_everybody_left(runner: Runner) -> None:
    model = Model()
    runs = SharedRuns(runner, model.run, everything)
    blocker = await line_up(runs, [0])
    await model.begun()
    leaver, stayer = await line_up(runs, [1], [2])
    model.go.release()
    await model.begun()
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    model.go.release()
    assert await asyncio.gather(*blocker, stayer) == [[0], [4]]
    (alone,) = await line_up(runs, [5])
    await model.begun()
    alone.cancel()
    await asyncio.gather(alone, return_exceptions=True)
    assert await asyncio.to_thread(model.terminated.wait, LIMIT_S)
    model.go.release()
    assert await ask(runs, 6) == [12]


async def test_a_long_request_gives_way(runner: Runner) -> None:
    model = Model()
    model.go.release(1000)
    runs = SharedRuns(runner, model.run, one_at_a_time)
    long, short = await line_up(runs, range(100, 100 + 4 * TURN_ROWS), [1])
    assert await short == [2]
    assert not long.done()
    assert await long == [2 * row for row in range(100, 100 + 4 * TURN_ROWS)]
