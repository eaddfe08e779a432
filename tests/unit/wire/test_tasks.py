"""The owner of background tasks: nothing outlives it, nothing fails unheard."""

import asyncio
import logging

import pytest

from rbee.wire import context
from rbee.wire.tasks import TaskOwner


async def test_closing_cancels_and_awaits_and_takes_nothing_more() -> None:
    owner, ended = TaskOwner(), asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    assert owner.start(work(), "work") is not None
    await asyncio.sleep(0)
    await owner.close()
    assert ended.is_set()
    assert owner.start(work(), "work") is None


async def test_a_full_owner_takes_no_more_until_one_has_ended() -> None:
    owner = TaskOwner(most=1)
    first = owner.start(asyncio.sleep(0), "first")
    assert first is not None
    assert owner.start(asyncio.sleep(0), "second") is None
    await first
    await asyncio.sleep(0)
    assert owner.start(asyncio.sleep(0), "third") is not None
    await owner.close()


async def test_a_failure_is_told_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ZeroDivisionError("a defect")

    told: list[BaseException] = []
    for owner in (TaskOwner(told.append), TaskOwner()):
        task = owner.start(fail(), "failing")
        assert task is not None
        await asyncio.wait({task})
        await asyncio.sleep(0)
    assert [type(error) for error in told] == [ZeroDivisionError]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "failing" in caplog.text


@pytest.mark.parametrize(("of_requests", "expected"), [(True, "c-1"), (False, None)])
async def test_a_task_carries_the_requests_id_where_it_is_of_the_request(
    of_requests: bool, expected: str | None
) -> None:
    seen: list[str | None] = []

    async def look() -> None:
        seen.append(context.correlation_id.get())

    token = context.correlation_id.set("c-1")
    task = TaskOwner(of_requests=of_requests).start(look(), "look")
    context.correlation_id.reset(token)
    assert task is not None
    await task
    assert seen == [expected]
