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
TURNED = ['<tool_call>{"arguments": {"a": "', *"bcdefghij", '"}, "name": "f"}', "</tool_call>"]
"""The name comes last, so that nothing can go out before."""
TOOLS = ToolUse(ToolFormat.HERMES, (), (), 1, enforce=False)


async def test_a_long_call_whose_name_comes_late_says_every_few_seconds_that_it_goes_on() -> None:
    *still, call, end = await told(TURNED, STILL_HERE_S / 4, TOOLS)
    assert all(delta.is_empty for delta in still)
    assert 2 <= len(still) < len(TURNED)
    assert [(each.number, each.arguments) for each in call.calls] == [(0, '{"a": "bcdefghij"}')]
    assert end.finish == "tool_calls"


async def test_arguments_go_out_as_they_are_written() -> None:
    first, *parts, end = await told(CALL, STILL_HERE_S, TOOLS)
    assert first.is_empty or first.calls
    calls = [call for delta in (first, *parts) for call in delta.calls]
    begins = [call.begins.name for call in calls if call.begins is not None]
    assert (begins, {call.number for call in calls}) == (["f"], {0})
    assert "".join(call.arguments for call in calls) == '{"a": "bcdefghij"}'
    assert len(calls) > len("bcdefghij")
    assert end.finish == "tool_calls"


async def test_quick_calls_and_plain_text_bring_nothing_empty() -> None:
    call, end = await told(TURNED, 0.01, TOOLS)
    assert [each.begins.name for each in call.calls if each.begins is not None] == ["f"]
    assert end.finish == "tool_calls"
    plain = await told(["a", "b"], STILL_HERE_S, None)
    assert [(delta.text, delta.finish) for delta in plain] == [("a", None), ("b", None), ("", "stop")]
