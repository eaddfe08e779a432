"""What fails in the midst of a batch: rows go on from where they were, and nobody waits for a thread that ended."""

import asyncio
from queue import SimpleQueue

import pytest
from tests.unit.worker.batches import Small, tiny

from rbee.wire.errors import InferenceError, InternalError
from rbee.worker.engine.batch.loop import BatchLoop
from rbee.worker.engine.batch.row import ChoiceStream, Row
from rbee.worker.engine.generation import GenerateRequest
from rbee.worker.engine.sampling import SamplingParams


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return tiny(tmp_path_factory.mktemp("tiny"), "fp32")


class LibraryPanicError(BaseException):
    """What a library that is not written in Python raises where it panics."""


async def test_a_panic_in_the_thread_fails_its_rows_and_is_told(shared: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = shared.batch()

    def panics(*_: object) -> None:
        raise LibraryPanicError

    monkeypatch.setattr(batch.stepper, "step", panics)
    told: SimpleQueue[Exception] = SimpleQueue()
    loop = BatchLoop(batch.stepper, told.put)
    row = Row(GenerateRequest((1, 2), 4, SamplingParams()), ChoiceStream(loop.wake), [1, 2], frozenset())
    loop.start()
    loop.submit(row)
    async with asyncio.timeout(30):
        with pytest.raises(InferenceError, match="the worker restarts"):
            await row.stream.next()
    assert isinstance(told.get(timeout=30), InternalError)
    with pytest.raises(InferenceError):
        loop.submit(row)
