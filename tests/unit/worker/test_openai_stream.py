"""What goes out of one streamed answer, and when."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence

from rbee.wire.worker_spec import ToolFormat
from rbee.worker.api.generation import Generation, Prompt, Wanted
from rbee.worker.api.openai import STILL_HERE_S, deltas
from rbee.worker.api.openai_shapes import Delta
from rbee.worker.api.streams import Item
from rbee.worker.api.tools import ToolUse
from rbee.worker.engine.generation import Finished, FinishReason, Piece
from rbee.worker.engine.sampling import SamplingParams
from rbee.worker.requests import RunningRequest


async def told(texts: Sequence[str], seconds_a_piece: float, tools: ToolUse | None) -> list[Delta]:
    """The deltas of an answer whose pieces come at that pace, by a clock of their own."""

    async def source() -> AsyncIterator[Item]:
        for number, text in enumerate(texts, 1):
            yield 0, Piece(text, 1, number)
        yield 0, Finished(FinishReason.STOP, len(texts))

    task = asyncio.current_task()
    assert task is not None
    found = Generation("id", 1, source(), RunningRequest("id", "/", None, task, 0.0), 0.0)
    wanted = Wanted(Prompt("x"), None, SamplingParams(), (), tools=tools)
    ticks = itertools.count(0.0, seconds_a_piece)
    return [delta async for delta in deltas(found, wanted, lambda: next(ticks))]


CALL = ['<tool_call>{"name": "f", "arg', 'uments": {"a": "', *"bcdefghij", '"}}</tool_call>']
TOOLS = ToolUse(ToolFormat.HERMES, (), (), 1, enforce=False)


async def test_a_long_call_says_every_few_seconds_that_it_goes_on() -> None:
    found = await told(CALL, STILL_HERE_S / 4, TOOLS)
    *still, call, end = found
    assert all(delta.is_empty for delta in still)
    assert 2 <= len(still) < len(CALL)
    assert call.calls[0].arguments == '{"a": "bcdefghij"}'
    assert end.finish == "tool_calls"


async def test_a_short_call_and_plain_text_bring_nothing_empty() -> None:
    call, end = await told(CALL, 0.01, TOOLS)
    assert [each.name for each in call.calls] == ["f"]
    assert end.finish == "tool_calls"
    plain = await told(["a", "b"], STILL_HERE_S, None)
    assert [(delta.text, delta.finish) for delta in plain] == [("a", None), ("b", None), ("", "stop")]
