"""What a worker took at its last start stands for the next one's need: by what it is, over restarts, while it holds."""

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.queen.conftest import Configured, RunningQueen
from tests.unit.queen.partners import MACHINE, WorkerPartner, report, served, until
from tests.unit.queen.test_eviction import IDLE, LOADING
from tests.unit.queen.test_placement import MB, REFERENCE, hive_with, spawn
from tests.unit.queen.test_starter import Asked, ask, stopped

from rbee.queen.database import MIGRATIONS, MOST_MEASURED, Database, HiveRow, MemoryRow, Setup
from rbee.queen.placement.decision import Need
from rbee.queen.placement.measured import Measured
from rbee.queen.store import Store
from rbee.wire.messages import WorkerReport
from rbee.wire.worker_spec import Backend

ROOM_MB = MACHINE.ram_available_bytes // MB


def ready(peak_mb: int, *, life: str = "a", model_ref: str = REFERENCE, **more: Any) -> WorkerReport:  # noqa: ANN401
    taken = report(IDLE, invocation_id=life, memory_bytes=peak_mb * MB, memory_peak_bytes=peak_mb * MB, **more)
    return msgspec.structs.replace(taken, model_ref=model_ref)


def need(reference: str = REFERENCE, **more: Any) -> Need:  # noqa: ANN401
    return Need(reference, more.pop("backend", Backend.CPU), **more)


async def placement_of(queen: RunningQueen, worker: str) -> dict[str, Any]:
    _, why = await queen.get(f"/v2/explain/{worker}")
    placement: dict[str, Any] = why["placement"]
    return placement


async def test_the_next_start_rests_on_what_the_last_one_took(queen: RunningQueen, worker: WorkerPartner) -> None:
    async with hive_with(100) as near:
        await queen.beat(hive="near", api_url=near.url)
        assert (await spawn(queen))[0] == 202
        await queen.tell(report(LOADING, hive="near", worker="new", url=None))
        first = await placement_of(queen, "near/new")
        assert (first["basis"], first["required_bytes"], first["size_bytes"]) == ("files", 120 * MB, 100 * MB)
        await queen.tell(ready(700, hive="near", worker="new", url=worker.url))
        assert (await spawn(queen, worker_id="another"))[0] == 202
        await queen.tell(report(LOADING, hive="near", worker="another", url=None))
        second = await placement_of(queen, "near/another")
        assert (second["basis"], second["required_bytes"]) == ("measured", 770 * MB)
        assert await queen.metric('queen_rbee_worker_estimates_total{basis="measured"}') == 1


async def test_what_was_taken_outlives_the_queen_and_refuses_what_the_files_would_not(
    configured: Configured, worker: WorkerPartner
) -> None:
    hive = Asked(large=100)
    async with served(hive.app()) as url:
        ref = "file:///models/large"
        async with configured() as queen:
            await queen.beat(ready(ROOM_MB, worker="large", model="large", model_ref=ref, url=worker.url), api_url=url)
        async with configured() as queen:
            await queen.beat(stopped("large"), api_url=url)
            status, body = await ask(queen, "large")
            assert (status, body["error"]["code"]) == (503, "INSUFFICIENT_RAM")
            assert "as measured at its last start" in body["error"]["message"]
            assert (body["error"]["details"]["basis"], hive.spawned) == ("measured", [])


async def test_a_worker_whose_hive_tells_no_figure_is_estimated_from_its_files(
    queen: RunningQueen, worker: WorkerPartner
) -> None:
    hive = Asked(old=100)
    async with served(hive.app()) as url:
        await queen.beat(report(IDLE, worker="old", model="old", url=worker.url), api_url=url)
        await queen.beat(stopped("old"), api_url=url)
        asking = asyncio.create_task(ask(queen, "old"))
        await until(lambda: hive.spawned)
        assert (await placement_of(queen, "bee/old"))["basis"] == "files"
        asking.cancel()


async def test_a_figure_that_the_database_has_no_bits_for_is_refused(
    queen: RunningQueen, worker: WorkerPartner
) -> None:
    figure, most = ready(1, url=worker.url), (1 << 63) - 1
    assert (await queen.beat(msgspec.structs.replace(figure, memory_peak_bytes=most + 1)))["status"] == 400
    assert (await queen.beat(msgspec.structs.replace(figure, memory_peak_bytes=most)))["status"] == 200
    await until(lambda: not queen.core.store._owed_memory)
    assert [row.peak_bytes for row in await queen.core.store.memory()] == [most]


async def test_nodes_share_figures_of_fetched_models_and_not_of_folders(tmp_path: Path) -> None:
    measured = Measured(Store(tmp_path / "queen.db"))
    folder = "file:///models/large"
    measured.note(ready(5, hive="a"), None, 1.0)
    measured.note(ready(7, hive="a", model_ref=folder), None, 1.0)
    measured.note(ready(9, hive="b", model_ref=folder), None, 1.0)
    assert measured.peak_of(need(), ["c"]) == 5 * MB
    assert measured.peak_of(need(folder), ["a"]) == 7 * MB
    assert measured.peak_of(need(folder), ["a", "b"]) == 9 * MB
    assert measured.peak_of(need(folder), ["c"]) is None


async def test_a_figure_holds_for_what_is_alike_and_while_the_files_have_their_size(tmp_path: Path) -> None:
    measured = Measured(Store(tmp_path / "queen.db"))
    measured.note(ready(5, slots_total=2, memory_settings="x"), 100, 1.0)
    alike = {"slots": 2, "settings": "x"}
    assert measured.peak_of(need(**alike), ["bee"]) == 5 * MB
    assert measured.peak_of(need(**alike, size_bytes=100), ["bee"]) == 5 * MB
    assert measured.peak_of(need(**alike, size_bytes=101), ["bee"]) is None
    for other in (alike | {"slots": 3}, alike | {"settings": ""}, alike | {"backend": Backend.CUDA}):
        assert measured.peak_of(need(**other), ["bee"]) is None


async def test_a_life_counts_once_and_a_worker_that_does_not_run_never(tmp_path: Path) -> None:
    store = Store(tmp_path / "queen.db")
    measured = Measured(store)
    measured.note(ready(5, worker="one"), 100, 1.0)
    measured.note(ready(6, worker="two"), 100, 2.0)
    measured.note(ready(5, worker="one"), 100, 3.0)  # told again: the other one's is the latest
    measured.note(ready(0, worker="old", life="b"), 100, 4.0)
    assert measured.peak_of(need(), ["bee"]) == 6 * MB
    await store.open()
    await store.close()
    database = Database(tmp_path / "queen.db")
    assert database.memory() == [MemoryRow(Setup(REFERENCE, "", "cpu", 4, ""), 6 * MB, 100, 2.0)]
    database.close()


async def test_the_size_of_the_files_is_not_forgotten_by_a_queen_that_hears_of_the_same_life(tmp_path: Path) -> None:
    store = Store(tmp_path / "queen.db")
    await store.open()
    Measured(store).note(ready(5), 100, 1.0)
    await store.close()
    store = Store(tmp_path / "queen.db")
    await store.open()
    again = Measured(store)
    await again.load()
    again.note(ready(5), None, 2.0)
    assert again.peak_of(need(size_bytes=101), ["bee"]) is None
    await store.close()


async def test_what_was_measured_before_the_store_could_be_read_wins(tmp_path: Path) -> None:
    store = Store(tmp_path / "queen.db")
    await store.open()
    early = Measured(store)
    early.note(ready(5), None, 1.0)
    early.note(ready(6, slots_total=1), None, 1.0)
    await store.close()
    store = Store(tmp_path / "queen.db")
    await store.open()
    late = Measured(store)
    late.note(ready(9), None, 2.0)
    await late.load()
    assert late.loaded
    assert late.peak_of(need(), ["bee"]) == 9 * MB
    assert late.peak_of(need(slots=1), ["bee"]) == 6 * MB
    await store.close()


_NOTES = st.lists(
    st.tuples(st.sampled_from(["w1", "w2"]), st.sampled_from(["a", "b"]), st.integers(1, 9), st.integers(1, 3)),
    max_size=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_NOTES)
def test_the_figure_is_that_of_the_life_that_was_first_told_last(
    tmp_path: Path, notes: list[tuple[str, str, int, int]]
) -> None:
    measured, lives, last = Measured(Store(tmp_path / "queen.db")), dict[str, tuple[str, int]](), dict[int, int]()
    for worker, life, peak, slots in notes:
        measured.note(ready(peak, worker=worker, life=life, slots_total=slots), 1, 0.0)
        if lives.get(worker) != (life, peak):
            lives[worker], last[slots] = (life, peak), peak * MB
    assert {slots: measured.peak_of(need(slots=slots), ["bee"]) for slots in last} == last
    assert all(measured.peak_of(need(slots=slots), ["bee"]) is None for slots in {1, 2, 3} - last.keys())


def test_a_database_of_before_is_migrated_and_the_oldest_figures_go(tmp_path: Path) -> None:
    path = tmp_path / "queen.db"
    with sqlite3.connect(path) as before:
        for script in MIGRATIONS[:3]:
            before.executescript(script)
        before.execute("INSERT INTO hives VALUES ('bee', NULL, '0.1.0', 1.0, 2.0)")
        before.execute("PRAGMA user_version = 3")
    before.close()
    database = Database(path)
    assert database.memory() == []
    assert database.hives() == [HiveRow("bee", None, "0.1.0", 1.0, 2.0)]
    rows = [MemoryRow(Setup("m", "", "cpu", n, ""), n, None, float(n)) for n in range(MOST_MEASURED + 5)]
    database.put_memory(rows[:10])
    database.put_memory(rows[10:])
    assert database.memory() == rows[5:]
    database.close()
