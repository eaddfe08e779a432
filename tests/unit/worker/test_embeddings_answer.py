"""The body of an answer with vectors: what it says, and where it is written."""

import base64
import json
import threading
from collections.abc import AsyncIterator

import numpy as np
import pytest

from rbee.worker.api import embeddings
from rbee.worker.engine.embed import Embedded
from rbee.worker.engine.runner import Runner


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    found = Runner(1)
    yield found
    found.close()


def some(count: int) -> Embedded:
    return Embedded(np.random.default_rng(1).normal(0, 1, (count, 64)).astype(np.float32), 7)


@pytest.mark.parametrize("count", [2, 300])
async def test_small_and_large_answers_say_the_same_in_both_encodings(runner: Runner, count: int) -> None:
    found = some(count)
    floats, coded = [
        json.loads(await embeddings._written(found, encoding, "m", runner)) for encoding in ("float", "base64")
    ]
    assert {key: floats[key] for key in ("object", "model", "usage")} == {
        "object": "list",
        "model": "m",
        "usage": {"prompt_tokens": 7, "total_tokens": 7},
    }
    assert [each["index"] for each in floats["data"]] == list(range(count))
    assert [each["object"] for each in coded["data"]] == ["embedding"] * count
    assert [each["embedding"] for each in floats["data"]] == found.vectors.tolist()
    decoded = [np.frombuffer(base64.b64decode(each["embedding"]), "<f4") for each in coded["data"]]
    assert np.array_equal(decoded, found.vectors)


async def test_a_large_answer_is_not_written_in_the_event_loop(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[threading.Thread] = []
    write = embeddings._answer

    def noted(found: Embedded, encoding: str, model: str) -> bytes:
        threads.append(threading.current_thread())
        return write(found, encoding, model)

    monkeypatch.setattr(embeddings, "_answer", noted)
    for count in (2, 300):
        await embeddings._written(some(count), "float", "m", runner)
    assert threads[0] is threading.current_thread()
    assert threads[1] is not threading.current_thread()
