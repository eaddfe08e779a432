"""A GPU is handed on when its memory is free: the GPUs are the fake driver's, the processes are real ones."""

import asyncio
import json
import logging
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from tests.unit.fake_driver import Driver
from tests.unit.hive.test_control import Bench, child_units

from rbee.hive import api as hive_api
from rbee.hive import gpus as hive_gpus
from rbee.hive.api import HiveApi
from rbee.hive.capabilities import Probe
from rbee.hive.config import HiveConfig
from rbee.hive.gpus import Gpus
from rbee.hive.logs import KeptLogs
from rbee.hive.machine_watch import MachineWatch
from rbee.host.machine import machine_facts
from rbee.wire.errors import BackendUnavailable, InvalidDevice, VramExhausted
from rbee.wire.messages import GpuFacts, SpawnRequest
from rbee.wire.worker_spec import Backend

pytestmark = pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler to build the fake driver with")
MB = 1 << 20
ON_GPU_1 = "backend: cuda\ndevice: 1\n"
SHORT_S, LONG_S = 0.2, 60.0
W = SpawnRequest(worker_id="w")


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driver:
    return Driver(tmp_path, monkeypatch)


async def ended_on_gpu_1(folder: Path, free_limit_s: float) -> AsyncIterator[tuple[Bench, int]]:
    """A hive whose worker on GPU 1 has ended, and the process that it had."""
    units = child_units()
    bench = Bench(folder, units, ON_GPU_1, free_limit_s)
    await units.start(bench.table)
    await bench.control.spawn(W, "queen")
    await bench.until("active")
    pid = bench.table.get("w").unit.main_pid
    await bench.control.stop("w", "queen")
    await bench.until("inactive")
    yield bench, pid
    await units.close()


@pytest.fixture
async def patient(tmp_path: Path, driver: Driver) -> AsyncIterator[tuple[Bench, int]]:
    async for each in ended_on_gpu_1(tmp_path, LONG_S):
        yield each


@pytest.fixture
async def hasty(tmp_path: Path, driver: Driver) -> AsyncIterator[tuple[Bench, int]]:
    async for each in ended_on_gpu_1(tmp_path, SHORT_S):
        yield each


async def test_a_start_waits_until_the_driver_has_freed_what_ended_there(
    patient: tuple[Bench, int], driver: Driver
) -> None:
    bench, pid = patient
    driver.counts((1, pid, 5000 * MB))
    starting = asyncio.create_task(bench.control.spawn(W, "queen"))
    done, _ = await asyncio.wait((starting,), timeout=0.3)
    assert not done
    assert bench.table.get("w").unit.active_state == "inactive"
    driver.counts()
    async with asyncio.timeout(30):
        _, started = await starting
    assert started
    await bench.until("active")


async def test_memory_that_is_not_freed_in_time_is_an_error_with_its_numbers(
    hasty: tuple[Bench, int], driver: Driver
) -> None:
    bench, pid = hasty
    driver.counts((0, pid, 70 * MB), (1, pid, 5000 * MB - 1), (1, 1, 9000 * MB))
    with pytest.raises(VramExhausted, match=r"GPU 1 is not free: after 0\.2 s the driver still counts 5000") as caught:
        await bench.control.spawn(W, "queen")
    assert f"w (process {pid})" in caught.value.message
    assert caught.value.details == {"device": 1, "held_vram_mb": 5000, "workers": ["w"]}
    assert bench.table.get("w").unit.active_state == "inactive"


async def test_a_ready_worker_is_measured_on_its_own_gpu(hasty: tuple[Bench, int], driver: Driver) -> None:
    bench, _ = hasty
    row = bench.table.row("w")
    gpus = Gpus(bench.table)
    driver.counts((0, 77, MB), (1, 77, 5000 * MB), (1, 78, 9000 * MB))
    await gpus.measure(msgspec.structs.replace(row, pid=77))
    assert bench.table.get("w").gpu_bytes == 5000 * MB
    await gpus.measure(msgspec.structs.replace(row, pid=78, backend=Backend.CPU))
    await gpus.measure(msgspec.structs.replace(row, pid=78, managed=False))
    assert bench.table.get("w").gpu_bytes == 5000 * MB


async def test_only_memory_of_processes_that_ended_is_waited_for(hasty: tuple[Bench, int], driver: Driver) -> None:
    bench, pid = hasty
    driver.counts((0, pid, 5000 * MB), (1, 1, 9000 * MB))  # on another GPU; and of a process that lives
    _, started = await bench.control.spawn(W, "queen")
    assert started
    await bench.until("active")
    gpus = Gpus(bench.table)
    driver.counts((1, bench.table.get("w").unit.main_pid, 5000 * MB))
    assert await gpus.held_by_ended(0.0) == []


async def test_facts_for_placement_are_told_when_the_driver_has_freed_what_ended(
    hasty: tuple[Bench, int], driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hive_api, "SETTLE_LIMIT_S", LONG_S)
    bench, pid = hasty
    watch = MachineWatch(lambda: machine_facts(tmp_path), limit_s=30.0)
    api = HiveApi(
        HiveConfig(), bench.table, bench.control, KeptLogs(lambda *_: []), Probe(tmp_path),
        lambda: pytest.fail("nobody asked for health"), watch, Gpus(bench.table),
    )  # fmt: skip
    driver.counts((0, pid, 5000 * MB))
    asking = asyncio.create_task(api.resources(make_mocked_request("GET", "/v1/resources")))
    done, _ = await asyncio.wait((asking,), timeout=0.3)
    assert not done
    driver.counts()
    async with asyncio.timeout(30):
        answer = await asking
    assert isinstance(answer, web.Response) and isinstance(answer.body, bytes)
    assert [gpu["index"] for gpu in json.loads(answer.body)["gpus"]] == [0, 1]


async def test_a_driver_that_hangs_holds_up_no_order(
    hasty: tuple[Bench, int], driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, _ = hasty
    go_on = threading.Event()

    def hang() -> tuple[list[GpuFacts], str]:
        assert go_on.wait(60)
        return [], ""

    monkeypatch.setattr(hive_gpus, "gpu_list", hang)
    monkeypatch.setattr(hive_gpus, "gpu_processes", hang)
    monkeypatch.setattr(hive_gpus, "ANSWER_LIMIT_S", 0.1)
    gpus = Gpus(bench.table, SHORT_S)
    await gpus.prove_free(1)
    for _ in range(3):
        with pytest.raises(BackendUnavailable, match=r"did not answer within 0\.1 s: try 'nvidia-smi'"):
            await gpus.check(Backend.CUDA, 1)
    assert sum(each.name == "list of GPUs" for each in threading.enumerate()) == 1
    go_on.set()


async def test_a_device_is_one_that_the_driver_shows(hasty: tuple[Bench, int], driver: Driver) -> None:
    gpus = Gpus(hasty[0].table)
    await gpus.check(Backend.CUDA, 1)
    await gpus.check(Backend.CPU, 0)
    with pytest.raises(InvalidDevice, match=r"use one of \[0, 1\]"):
        await gpus.check(Backend.CUDA, 2)
    driver.loses(1)
    with pytest.raises(InvalidDevice, match=r"use one of \[0\]"):
        await gpus.check(Backend.CUDA, 1)


async def test_a_gpu_that_is_lost_is_told_once_and_takes_nothing_else_with_it(
    driver: Driver, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    watch = MachineWatch(lambda: machine_facts(tmp_path), limit_s=30.0)
    assert [gpu.index for gpu in (await watch.facts()).gpus] == [0, 1]
    driver.loses(0)
    for _ in range(2):
        assert [gpu.index for gpu in (await watch.facts()).gpus] == [1]
    told = [record for record in caplog.records if "a GPU is gone" in record.getMessage()]
    assert [record.levelno for record in told] == [logging.ERROR]


async def test_callers_at_the_same_time_share_one_reading(driver: Driver, tmp_path: Path) -> None:
    watch = MachineWatch(lambda: machine_facts(tmp_path), limit_s=30.0)
    first, second = await asyncio.gather(watch.facts(), watch.facts())
    assert first is second
    assert len(first.gpus) == 2
