"""Orders to workers: what a failed one leaves behind, and which limits hold for whom."""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from tests.unit.hive.audit import audit_in

from rbee.hive.config import HiveConfig
from rbee.hive.control import Control
from rbee.hive.definitions import Definitions
from rbee.hive.gpus import Gpus
from rbee.hive.health import HealthChecks
from rbee.hive.metrics import HiveMetrics
from rbee.hive.models.metrics import ModelMetrics
from rbee.hive.models.store import ModelStore
from rbee.hive.provision import Provision
from rbee.hive.workers import WorkerTable
from rbee.host.units.child import ChildUnits
from rbee.host.units.child_life import ChildSettings
from rbee.host.units.facts import UnitFacts, UnitSupervisor
from rbee.host.units.systemd import SystemdUnits
from rbee.wire.errors import SystemdUnavailable
from rbee.wire.log import fields_of
from rbee.wire.messages import SpawnRequest

PROGRAM = Path(__file__).parents[1] / "host/units/program.py"
BURST = 2


class Bench:
    def __init__(self, folder: Path, units: UnitSupervisor, definition: str = "", free_limit_s: float = 5.0) -> None:
        config = HiveConfig(config_dir=f"{folder}/etc", state_dir=f"{folder}/state", run_dir=f"{folder}/run")
        (folder / "etc/workers").mkdir(parents=True)
        (folder / "etc/workers/w.yaml").write_text(f"model: /m/tiny\n{definition}")
        self.units = units
        metrics = HiveMetrics(CollectorRegistry())
        self.news = asyncio.Event()
        self.table = WorkerTable(
            "h", "boot", config.paths, metrics, lambda *_: self.news.set(), lambda: None, lambda *_: None
        )
        self.table.go_live()

        async def nothing(*_: object) -> None:
            return

        health = HealthChecks(
            self.table, config.paths, metrics, at_once=1, on_unhealthy=nothing, on_idle=nothing,
            idle_default_s=lambda: 0.0,
        )  # fmt: skip
        provision = Provision(ModelStore(config, ModelMetrics(CollectorRegistry()), dict), self.table)
        audit = audit_in(folder)
        definitions, gpus = Definitions(config.paths), Gpus(self.table, free_limit_s)
        self.control = Control(config, self.table, units, definitions, health, provision, audit, gpus)

    async def until(self, active_state: str) -> None:
        async with asyncio.timeout(10):
            while self.table.get("w").unit.active_state != active_state:
                self.news.clear()
                await self.news.wait()


def without_a_bus(folder: Path, active_state: str, sub_state: str) -> Bench:
    """A hive whose bus is lost, and that knew a worker in that state."""
    bench = Bench(folder, SystemdUnits(lambda error: None))
    bench.table.on_facts(
        UnitFacts(
            worker_id="w", load_state="loaded", active_state=active_state, sub_state=sub_state, invocation_id="a" * 32
        )
    )
    return bench


def child_units() -> ChildUnits:
    """Children that say READY=1 at once, with a start limit of two."""
    return ChildUnits(
        lambda error: None,
        command=lambda worker: [sys.executable, str(PROGRAM), "say:READY=1", "sleep:60"],
        environment={"PATH": os.environ["PATH"]},
        settings=ChildSettings(start_burst=BURST, start_interval_s=600.0),
    )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    units = child_units()
    made = Bench(tmp_path, units)
    await units.start(made.table)
    yield made
    await units.close()


async def test_a_stop_that_could_not_be_ordered_is_no_reason_of_an_end(tmp_path: Path) -> None:
    bench = without_a_bus(tmp_path, "active", "running")
    for order in (
        bench.control.stop_idle("w", 10.0, 5.0),
        bench.control.stop("w", "root"),
        bench.control.restart("w", "root"),
    ):
        with pytest.raises(SystemdUnavailable):
            await order
        assert bench.table.get("w").stop_reason == ""


async def test_an_unhealthy_worker_that_is_being_stopped_is_not_started_again(tmp_path: Path) -> None:
    bench = without_a_bus(tmp_path, "deactivating", "stop-sigterm")
    bench.table.get("w").unhealthy = True
    await bench.control.restart_unhealthy("w")
    bench = without_a_bus(tmp_path / "other", "active", "running")
    bench.table.get("w").unhealthy = True
    with pytest.raises(SystemdUnavailable):
        await bench.control.restart_unhealthy("w")


async def test_starts_that_are_asked_for_do_not_meet_the_start_limit(bench: Bench) -> None:
    for _ in range(BURST + 2):
        _, started = await bench.control.spawn(SpawnRequest(worker_id="w"), "queen")
        assert started
        await bench.until("active")
        await bench.control.stop("w", "queen")
        await bench.until("inactive")


async def test_the_end_of_a_worker_that_this_hive_did_not_ask_for_says_so(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for ask in (bench.control.stop("w", "root"), bench.units.stop_unit("w")):
        await bench.control.spawn(SpawnRequest(worker_id="w"), "queen")
        await bench.until("active")
        await ask
        await bench.until("inactive")
    ends = [fields_of(record) for record in caplog.records if record.getMessage() == "worker stopped"]
    assert [(end.get("reason"), end.get("asked_by")) for end in ends] == [
        ("requested", None),
        (None, "not this hive: systemctl, or systemd itself"),
    ]
