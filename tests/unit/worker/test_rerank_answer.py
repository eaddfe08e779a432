"""The body of an answer with ranked documents: what it says, and where it is written."""

import json
import threading
from collections.abc import AsyncIterator

import pytest

from rbee.worker.api import rerank
from rbee.worker.engine.rank import Ranked
from rbee.worker.engine.runner import Runner


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    found = Runner(1)
    yield found
    found.close()


def of(texts: list[str] | None, most: int | None = None) -> rerank._Writer:
    return rerank._Writer("r-1", "m", texts, most)


@pytest.mark.parametrize("count", [3, 1000])
async def test_small_and_large_answers_say_the_same(runner: Runner, count: int) -> None:
    found = Ranked([index % 7 / 10 for index in range(count)], 9)
    texts = [f"document {index}" for index in range(count)]
    answer = json.loads(await rerank._written(found, of(texts, 5), runner))
    best = sorted(range(count), key=lambda index: (-found.scores[index], index))[:5]
    assert answer == {
        "id": "r-1",
        "object": "list",
        "model": "m",
        "results": [
            {"index": index, "relevance_score": found.scores[index], "document": {"text": texts[index]}}
            for index in best
        ],
        "usage": {"prompt_tokens": 9, "total_tokens": 9},
    }


@pytest.mark.parametrize(
    ("texts", "count", "in_the_loop"),
    [(None, 3, True), (["a"] * 3, 3, True), (None, 2048, False), (["a" * 300_000], 1, False)],
)
async def test_a_large_answer_is_not_written_in_the_event_loop(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, texts: list[str] | None, count: int, in_the_loop: bool
) -> None:
    threads: list[threading.Thread] = []
    results = rerank._results

    def noted(scores: list[float], texts: list[str] | None, most: int | None) -> list[dict[str, object]]:
        threads.append(threading.current_thread())
        return results(scores, texts, most)

    monkeypatch.setattr(rerank, "_results", noted)
    await rerank._written(Ranked([0.5] * count, 9), of(texts), runner)
    assert (threads == [threading.current_thread()]) is in_the_loop
    assert len(threads) == 1
