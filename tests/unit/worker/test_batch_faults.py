"""What fails in the midst of a batch: rows go on from where they were, and nobody waits for a thread that ended."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue

import pytest
from tests.unit.worker.batches import Small, tiny

from rbee.keeper.demo.decoder import build as build_talk
from rbee.wire.errors import InferenceError, InternalError
from rbee.worker.engine.batch import growing as growing_decoder
from rbee.worker.engine.batch import shared as shared_decoder
from rbee.worker.engine.batch.decoders import BatchDecoder, Chunk, Token
from rbee.worker.engine.batch.loop import BatchLoop
from rbee.worker.engine.batch.row import ChoiceStream, Row
from rbee.worker.engine.decoder import run_options
from rbee.worker.engine.generation import GenerateRequest
from rbee.worker.engine.sampling import SamplingParams


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return tiny(tmp_path_factory.mktemp("tiny"), "fp32")


@pytest.fixture(scope="module")
def growing(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("talk")
    build_talk(folder, features=1536)  # the least that it takes: how fast it is matters here
    return Small.load(folder, 0)


class FailingRun:
    """Runs of a session, of which the one after ``good`` good ones fails, once."""

    def __init__(self, run: Callable[..., None], good: int) -> None:
        self._run = run
        self._left = good

    def __call__(self, *given: object) -> None:
        self._left -= 1
        if self._left == -1:
            raise InferenceError("this run failed")
        self._run(*given)


def best(decoder: BatchDecoder, tokens: Sequence[Token]) -> list[int]:
    return [int(row.argmax()) for row in decoder.step(tokens, run_options()).whole()]


TEXTS = {0: (5, 6, 7), 1: (9, 8)}


async def test_a_row_of_its_own_is_not_read_twice_where_another_failed(
    growing: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = growing.batch().decoder
    chunks = [Chunk(key, 0, tokens) for key, tokens in TEXTS.items()]
    for key in TEXTS:
        decoder.open(key, 8)
    with monkeypatch.context() as patch:
        patch.setattr(growing_decoder, "run_bound", FailingRun(growing_decoder.run_bound, 1))
        with pytest.raises(InferenceError):
            decoder.read(chunks, run_options())
    for chunk in chunks:
        decoder.read([chunk], run_options())
    monkeypatch.setattr(decoder, "_together", False)  # as on a device
    tokens = [Token(key, len(text), 11) for key, text in TEXTS.items()]
    with monkeypatch.context() as patch:
        patch.setattr(growing_decoder, "run_bound", FailingRun(growing_decoder.run_bound, 1))
        with pytest.raises(InferenceError):
            decoder.step(tokens, run_options())
    found = [best(decoder, [token])[0] for token in tokens]
    assert found == [growing.alone((*text, 11), 1)[0] for text in TEXTS.values()]
    assert [decoder.save(key, 0, len(text) + 1)[0][0].shape[1] for key, text in TEXTS.items()] == [4, 3]


async def test_shared_rows_whose_scores_were_lost_decode_the_same_token_again(shared: Small) -> None:
    decoder = shared.batch().decoder
    for key, text in TEXTS.items():
        decoder.open(key, 8)
        decoder.read([Chunk(key, 0, text)], run_options())
    tokens = [Token(key, len(text), 11) for key, text in TEXTS.items()]
    decoder.step(tokens, run_options())
    assert best(decoder, tokens) == [shared.alone((*text, 11), 1)[0] for text in TEXTS.values()]


async def test_a_late_row_in_the_highest_slot_takes_no_more_of_a_device_than_was_reckoned(
    shared: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = shared.as_on_device().batch(rows=6).decoder
    assert isinstance(decoder, shared_decoder.SharedDecoder)
    for key in range(6):
        decoder.open(key, 8)
    late = (5, 6, 7)
    decoder.read([Chunk(5, 0, late)], run_options())
    for key in range(5):
        decoder.close(key)
    sizes: list[int] = []
    resize = decoder._kv.resize

    def told(slots: int, capacity: int, held: Mapping[int, int]) -> None:
        sizes.append(slots * capacity * decoder.token_bytes)
        resize(slots, capacity, held)

    monkeypatch.setattr(decoder._kv, "resize", told)
    decoder.open(6, 300)
    assert sizes == [decoder.size(2, 300)]
    assert best(decoder, [Token(5, 3, 11)]) == shared.alone((*late, 11), 1)


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
