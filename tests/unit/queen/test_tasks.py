"""A task's events: whatever the pieces in which they come, exactly one end or error, and read again from anywhere."""

import asyncio
import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from rbee.queen.requests.tasks import Task, TaskState
from rbee.wire.sse import DONE, DONE_DATA, SseDecoder, SseEvent, encode

END, ERROR = encode("end", b"{}"), encode("error", b"{}")
TAILS = [b"", END, ERROR, END + DONE, END + ERROR, ERROR + END, END + encode("token", b"late")]


def events_of(raw: bytes) -> list[SseEvent]:
    return [event for event in SseDecoder().feed(raw) if event.data != DONE_DATA]


async def read(task: Task, after: int = 0) -> bytes:
    return b"".join([events async for events in task.follow(after)])


def run(tokens: int, tail: bytes, cuts: list[int], most: int, *, cancelled: bool) -> Task:
    """A task that got its events in pieces, and is over."""
    raw = b"".join(encode("token", str(number).encode()) for number in range(tokens)) + tail

    async def feed() -> Task:
        task = Task("t", "m", most)
        edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
        for first, last in itertools.pairwise(edges):
            await task.write(raw[first:last])
        task.conclude(cancelled=cancelled)
        return task

    return asyncio.run(feed())


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 30), st.sampled_from(TAILS), st.lists(st.integers(0, 5000), max_size=20), st.integers(1, 40),
    st.booleans(), st.integers(0, 40),
)  # fmt: skip
def test_it_ends_exactly_once_and_is_read_again_from_any_event(
    tokens: int, tail: bytes, cuts: list[int], most: int, cancelled: bool, after: int
) -> None:
    task = run(tokens, tail, cuts, most, cancelled=cancelled)
    raw = asyncio.run(read(task))
    assert raw.endswith(DONE)
    whole = events_of(raw)
    assert sum(event.event in ("end", "error") for event in whole) == 1
    assert whole[-1].event in ("end", "error")
    assert task.state is not TaskState.RUNNING
    kept = [event for event in whole if event.event != "gap"]
    assert len(kept) <= most
    assert [int(event.id or 0) for event in kept] == list(range(tokens + 2 - len(kept), tokens + 2))
    again = events_of(asyncio.run(read(task, after)))
    wanted = [event for event in kept if int(event.id or 0) > after]
    assert [event for event in again if event.event != "gap"] == wanted
    missed = wanted and int(wanted[0].id or 0) > after + 1
    assert [event.event for event in again].count("gap") == bool(missed)


async def test_a_follower_gets_events_as_they_come() -> None:
    task = Task("t", "m", 100)
    seen: asyncio.Queue[str] = asyncio.Queue()

    async def follow() -> None:
        async for raw in task.follow(0):
            for event in SseDecoder().feed(raw):
                seen.put_nowait(event.event)

    follower = asyncio.create_task(follow())
    for _ in range(3):
        await task.write(encode("token", b"x"))
        assert await asyncio.wait_for(seen.get(), 5.0) == "token"
    await task.write(END)
    task.conclude(cancelled=False)
    await asyncio.wait_for(follower, 5.0)
    assert [seen.get_nowait() for _ in range(2)] == ["end", "message"]


async def test_what_ended_by_itself_is_not_cancelled_afterwards() -> None:
    task = Task("t", "m", 100)
    await task.write(END)
    task.conclude(cancelled=True)
    assert task.state is TaskState.ENDED
