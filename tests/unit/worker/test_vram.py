"""A worker takes memory of a GPU when the driver has freed what ended there; the GPUs are the fake driver's."""

import asyncio
import logging
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.unit.fake_driver import Driver
from tests.unit.worker.process import define

from rbee.host.paths import Paths
from rbee.wire.errors import ProviderUnavailable
from rbee.wire.log import fields_of
from rbee.wire.messages import Progress
from rbee.worker.definition import load_defaults, load_definition
from rbee.worker.engine.runtime import runtime
from rbee.worker.loading import load_model
from rbee.worker.vram import await_freed

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler to build the fake driver with")
MB = 1 << 20
SHORT_S = 0.2


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(tmp_path, monkeypatch)


@pytest.fixture
def ended() -> int:
    """The process of a life that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(60)
    return process.pid


async def test_a_load_makes_no_session_before_the_driver_has_freed_what_ended_there(
    tmp_path: Path, models: Path, driver: Driver, ended: int
) -> None:
    define(tmp_path, model=str(models / "tiny-tensor"), backend="cuda", device=1)
    paths = Paths(tmp_path / "etc", tmp_path / "state", tmp_path / "run")
    stages: list[str] = []
    importing = threading.Event()

    def report(stage: Progress) -> None:
        stages.append(stage.stage)
        if stage.stage == "importing the runtime":
            importing.set()

    runtime()  # so that nothing but the driver holds the load up
    driver.counts((1, ended, 5000 * MB))
    definition = load_definition("w", paths, load_defaults(paths))
    loading = asyncio.create_task(asyncio.to_thread(load_model, definition, report))
    assert await asyncio.to_thread(importing.wait, 60.0)
    await asyncio.wait((loading,), timeout=SHORT_S)
    assert stages[-1] == "importing the runtime"
    driver.counts()
    with pytest.raises(ProviderUnavailable):  # this GPU has a driver only, and that is a fake
        await loading
    assert stages[-1] == "creating the session"


def test_memory_of_processes_that_live_and_of_other_gpus_is_not_waited_for(
    driver: Driver, ended: int, caplog: pytest.LogCaptureFixture
) -> None:
    driver.counts((0, ended, 5000 * MB), (1, 1, 9000 * MB), (1, os.getpid(), MB))
    await_freed(1)
    assert not caplog.records


def test_what_is_not_freed_in_time_is_told_and_hinders_no_load(
    driver: Driver, ended: int, caplog: pytest.LogCaptureFixture
) -> None:
    driver.counts((1, ended, 5000 * MB - 1))
    await_freed(1, SHORT_S)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert fields_of(record) == {"device": 1, "held_mb": 5000, "pids": [ended], "waited_s": SHORT_S}


def test_a_machine_without_a_driver_has_nothing_to_wait_for(caplog: pytest.LogCaptureFixture) -> None:
    await_freed(0)
    assert not caplog.records
