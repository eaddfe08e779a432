"""One file's way to the disk when its download is cancelled in the midst of a write."""

import asyncio
import hashlib
import os
import threading
import time
from pathlib import Path

import aiohttp
import pytest
from tests.behaviour.support.model_source import ModelSource

from rbee.hive.models.listing import Digest, RemoteFile
from rbee.hive.models.sink import Sink
from rbee.hive.models.throttle import Throttle
from rbee.hive.models.transfer import Transfer
from rbee.hive.models.tries import Tries

CONTENT = os.urandom(4_000_000)


@pytest.mark.parametrize("times", [1, 2])
async def test_a_cancellation_during_a_write_writes_nothing_twice_and_closes_after_it(
    tmp_path: Path, source: ModelSource, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    source.folder("tiny", {"model.onnx": CONTENT})
    writing, goes_on, calls = threading.Event(), threading.Event(), list[str]()
    write, close = Sink.write, Sink.close

    def slow_write(sink: Sink, chunk: bytes) -> None:
        writing.set()
        assert goes_on.wait(30)
        write(sink, chunk)
        calls.append("written")

    def noted_close(sink: Sink) -> None:
        calls.append("closed")
        close(sink)

    monkeypatch.setattr(Sink, "write", slow_write)
    monkeypatch.setattr(Sink, "close", noted_close)
    file = RemoteFile(
        "model.onnx",
        f"{source.url}/tiny/model.onnx",
        len(CONTENT),
        Digest("sha256", hashlib.sha256(CONTENT).hexdigest()),
    )
    target = tmp_path / "model.onnx"
    async with aiohttp.ClientSession() as session:
        transfer = Transfer(
            session,
            Throttle(None, time.monotonic),
            Tries(0.05, lambda: 0.5, lambda _: None),
            30,
            0,
            None,
            lambda _: None,
        )
        fetching = asyncio.create_task(transfer.fetch(file, target, lambda _: None))
        assert await asyncio.to_thread(writing.wait, 30)
        for _ in range(times):
            fetching.cancel()
            await asyncio.sleep(0)
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await fetching
    assert calls == ["written", "closed"]
    found = target.read_bytes()
    assert len(found) >= 1 << 20
    assert CONTENT.startswith(found)
