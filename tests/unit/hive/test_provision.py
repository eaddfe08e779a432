"""Workers that wait for their model: shown as loading, started once, not at all when stopped or it does not come."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from tests.behaviour.support.model_source import Fault, ModelSource
from tests.unit.hive.audit import audit_in

from rbee.hive.config import HiveConfig, ModelSettings
from rbee.hive.control import Control
from rbee.hive.definitions import Definitions
from rbee.hive.gpus import Gpus
from rbee.hive.health import HealthChecks
from rbee.hive.metrics import HiveMetrics
from rbee.hive.models.metrics import ModelMetrics
from rbee.hive.models.store import ModelStore
from rbee.hive.provision import Provision, users_of_models
from rbee.hive.workers import WorkerTable
from rbee.host.units.child import ChildUnits
from rbee.host.units.child_life import ChildSettings
from rbee.wire.errors import Conflict
from rbee.wire.messages import SpawnRequest, WorkerReport, WorkerState

PROGRAM = Path(__file__).parents[1] / "host/units/program.py"
FILES = {"model.onnx": b"a" * 200_000}
REFERENCE = "hf:org/tiny"


class Bench:
    """A hive's control with children that say READY=1 at once."""

    def __init__(self, folder: Path, source: ModelSource) -> None:
        settings = {"hf_endpoint": source.url, "stall_limit_s": 60, "retry_most_s": 0.05, "disk_reserve_mb": 0}
        config = HiveConfig(
            config_dir=f"{folder}/etc", state_dir=f"{folder}/state", run_dir=f"{folder}/run",
            models=msgspec.convert(settings, ModelSettings),
        )  # fmt: skip
        self.reports: list[WorkerReport] = []
        self.news = asyncio.Event()
        metrics = HiveMetrics(CollectorRegistry())
        self.table = WorkerTable("h", "boot", config.paths, metrics, self.on_report, lambda: None, lambda *_: None)
        self.table.go_live()
        self.units = ChildUnits(
            lambda error: None, command=self.command, environment={"PATH": os.environ["PATH"]},
            settings=ChildSettings(),
        )  # fmt: skip
        self.store = ModelStore(config, ModelMetrics(CollectorRegistry()), lambda: users_of_models(self.table.all()))
        self.provision = Provision(self.store, self.table)

        async def nothing(*_: object) -> None:
            return

        health = HealthChecks(
            self.table, config.paths, metrics, at_once=1, on_unhealthy=nothing, on_idle=nothing,
            idle_default_s=lambda: 0.0,
        )  # fmt: skip
        audit = audit_in(folder)
        definitions, gpus = Definitions(config.paths), Gpus(self.table)
        self.control = Control(config, self.table, self.units, definitions, health, self.provision, audit, gpus)

    def command(self, worker: str) -> list[str]:
        return [sys.executable, str(PROGRAM), "say:READY=1", "sleep:60"]

    def on_report(self, report: WorkerReport, *_: object) -> None:
        self.reports.append(report)
        self.news.set()

    @property
    def lives(self) -> int:
        """How often the worker's unit was started."""
        return len({report.invocation_id for report in self.reports if report.invocation_id})

    async def spawn(self, **more: object) -> WorkerReport:
        request = msgspec.convert({"worker_id": "w", "model_ref": REFERENCE, **more}, SpawnRequest)
        return (await self.control.spawn(request, "root"))[0]

    async def until_running(self) -> None:
        async with asyncio.timeout(20):
            while not self.table.get("w").unit.running:
                self.news.clear()
                await self.news.wait()

    async def until(self, state: WorkerState) -> WorkerReport:
        async with asyncio.timeout(20):
            while self.table.row("w").state is not state:
                self.news.clear()
                await self.news.wait()
        return self.table.row("w")


@pytest.fixture
def source() -> Iterator[ModelSource]:
    made = ModelSource().start()
    made.repository("org/tiny", FILES)
    yield made
    made.close()


@pytest.fixture
async def bench(tmp_path: Path, source: ModelSource) -> AsyncIterator[Bench]:
    made = Bench(tmp_path, source)
    await made.store.open()
    await made.units.start(made.table)
    yield made
    await made.provision.close()
    await made.units.close()
    await made.store.close()


async def test_a_worker_waits_as_loading_and_is_never_said_to_be_stopped(bench: Bench, source: ModelSource) -> None:
    source.pace_s = 0.1
    row = await bench.spawn()
    assert (row.state, row.model, row.model_ref) == (WorkerState.LOADING, "org/tiny", REFERENCE)
    await bench.until_running()
    began = next(n for n, report in enumerate(bench.reports) if report.state is WorkerState.LOADING)
    states = [report.state for report in bench.reports[began:]]
    assert WorkerState.STOPPED not in states and WorkerState.FAILED not in states
    stages = {report.progress.stage for report in bench.reports if report.progress is not None}
    assert "downloading" in stages
    assert bench.lives == 1


async def test_ten_spawns_are_one_download_and_one_start(bench: Bench, source: ModelSource) -> None:
    source.pace_s = 0.05
    await asyncio.gather(*(bench.spawn() for _ in range(10)))
    await bench.until_running()
    assert bench.lives == 1
    assert len(source.requests("model.onnx")) == 1
    assert bench.store.workers_of((await bench.store.catalogue.rows())[0]) == ["w"]


async def test_a_worker_that_is_stopped_while_it_waits_does_not_start(bench: Bench, source: ModelSource) -> None:
    source.fault("model.onnx", Fault(after=1000, then="stall"))
    await bench.spawn()
    with pytest.raises(Conflict, match="another definition"):
        await bench.spawn(slots=2)
    await bench.control.stop("w", "root")
    assert bench.table.row("w").state is WorkerState.STOPPED
    assert bench.lives == 0
    assert len(bench.store.downloads()) == 1


async def test_a_model_that_does_not_come_fails_the_worker_until_it_is_asked_for_again(
    bench: Bench, source: ModelSource
) -> None:
    source.fault("model.onnx", Fault(status=403))
    await bench.spawn()
    row = await bench.until(WorkerState.FAILED)
    assert row.reason.startswith("MODEL_ACCESS_DENIED: ")
    assert bench.lives == 0
    await bench.spawn()
    await bench.until_running()
    assert bench.lives == 1
