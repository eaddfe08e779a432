"""What becomes of workers whose model is declared no longer, also where the queen was away when that was so."""

import sqlite3
import time
from pathlib import Path

import msgspec
import pytest
from tests.unit.queen.conftest import Configured, RunningQueen
from tests.unit.queen.partners import WorkerPartner, until
from tests.unit.queen.test_declarations import delete, put
from tests.unit.queen.test_healing import IDLE, KEPT, NAME, STOPPED, WORKER, ask, now, sweep, told
from tests.unit.queen.test_placement import hive_with

from rbee.queen.database import MIGRATIONS, Database
from rbee.queen.placement import declarations
from rbee.queen.placement.declared import IDLE_S
from rbee.queen.store import Store
from rbee.wire.errors import StorageUnavailable

IDLE_LIMIT_S = 60.0
"""That of ``KEPT``."""


async def ends(queen: RunningQueen, worker: WorkerPartner, *, idle_s: float) -> bool:
    """Whether a look has the worker of the model stopped that had no request for so long, ``theirs`` left alone."""
    async with hive_with(100) as hive:
        mine = told(IDLE, url=worker.url, ready_unix=time.time() - idle_s)
        theirs = told(IDLE, "theirs", url=worker.url, ready_unix=1.0)
        await queen.beat(mine, theirs, api_url=hive.url)
        sweep(queen, now())
        drains = queen.core.declared._drains.under_way
        if drains:
            await until(lambda: hive.stopped)
            assert hive.stopped == [WORKER]
        return bool(drains)


def take_out(queen: RunningQueen) -> None:
    queen.core.reconfigure(msgspec.structs.replace(queen.core.config, models={}))


async def test_a_model_that_left_the_configuration_while_the_queen_was_away(
    configured: Configured, worker: WorkerPartner
) -> None:
    async with configured(models={NAME: KEPT}):
        pass
    async with configured() as queen:
        assert not await ends(queen, worker, idle_s=IDLE_LIMIT_S - 10)
        assert await ends(queen, worker, idle_s=IDLE_LIMIT_S)


async def test_one_that_left_it_right_before_a_restart(configured: Configured, worker: WorkerPartner) -> None:
    async with configured(models={NAME: KEPT}) as queen:
        take_out(queen)
    async with configured() as queen:
        assert await ends(queen, worker, idle_s=IDLE_LIMIT_S)


async def test_one_that_left_it_before_the_first_look(configured: Configured, worker: WorkerPartner) -> None:
    async with configured(models={NAME: KEPT}) as queen:
        take_out(queen)
        assert await ends(queen, worker, idle_s=IDLE_LIMIT_S)


async def test_one_that_was_removed_by_the_api(configured: Configured, worker: WorkerPartner) -> None:
    async with configured() as queen:
        await put(queen, NAME, **KEPT)
        assert (await delete(queen, NAME))[0] == 204
    async with configured() as queen:
        assert await ends(queen, worker, idle_s=IDLE_LIMIT_S)


async def test_one_that_is_declared_anew_goes_on(configured: Configured, worker: WorkerPartner) -> None:
    async with configured(models={NAME: KEPT}):
        pass
    async with configured() as queen:
        await put(queen, NAME, **KEPT)
        assert not await ends(queen, worker, idle_s=IDLE_LIMIT_S)
        assert queen.core.declarations.ended == {}


@pytest.mark.parametrize("limit", [{"idle_limit_s": 0}, {}])
async def test_one_without_an_idle_limit_has_that_of_others(
    configured: Configured, worker: WorkerPartner, limit: dict[str, int]
) -> None:
    kept = {name: value for name, value in KEPT.items() if name != "idle_limit_s"} | limit
    async with configured(models={NAME: kept}) as queen:
        take_out(queen)
        assert not await ends(queen, worker, idle_s=IDLE_S - 10)
        assert await ends(queen, worker, idle_s=IDLE_S)


async def test_one_whose_stored_declaration_does_not_decode_goes_on_until_that_is_removed(
    configured: Configured, worker: WorkerPartner
) -> None:
    async with configured() as queen:
        await put(queen, NAME, **KEPT)
        await queen.core.store.put_declaration(NAME, b"{", IDLE_LIMIT_S)
    async with configured() as queen:
        assert not await ends(queen, worker, idle_s=IDLE_LIMIT_S)
        await delete(queen, NAME)
        assert await ends(queen, worker, idle_s=IDLE_LIMIT_S)


async def test_nothing_ends_until_it_is_known_what_is_stored(
    configured: Configured, worker: WorkerPartner, tmp_path: Path
) -> None:
    async with configured() as queen:
        await put(queen, NAME, **KEPT)
    folder = tmp_path / "state"
    folder.rename(tmp_path / "away")
    folder.write_text("in the way")
    async with configured(models={NAME: KEPT}) as queen:
        take_out(queen)
        assert not await ends(queen, worker, idle_s=IDLE_LIMIT_S)
        folder.unlink()
        (tmp_path / "away").rename(folder)
        await until(lambda: queen.core.declarations.loaded, limit_s=30)
        assert not await ends(queen, worker, idle_s=IDLE_LIMIT_S)  # the API's declaration of it stands
        await delete(queen, NAME)
        assert await ends(queen, worker, idle_s=IDLE_LIMIT_S)


async def test_one_that_its_hive_stopped_before_is_forgotten_and_not_started_again(configured: Configured) -> None:
    async with configured(models={NAME: KEPT | {"replicas": {}}}) as queen, hive_with(100) as hive:
        mine, theirs = told(STOPPED, reason="idle"), told(STOPPED, "theirs")
        await queen.beat(mine, theirs, api_url=hive.url)
        sweep(queen, now())
        assert not queen.core.declared._drains.under_way
        take_out(queen)
        sweep(queen, now())
        await until(lambda: hive.forgotten and not queen.core.declared._drains.under_way)
        sweep(queen, now())  # its hive has not told yet that it is gone
        assert not queen.core.declared._drains.under_way
        assert hive.forgotten == [WORKER]
        await queen.beat(api_url=hive.url)
        assert (await ask(queen))[0] == 404
        assert hive.spawned == []


async def test_of_many_the_first_are_forgotten(configured: Configured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declarations, "MOST_ENDED", 2)
    async with configured(models={"in-force": KEPT}) as queen:
        for name in ("a", "b", "c"):
            await put(queen, name, **KEPT)
        for name in ("c", "b", "a"):
            await delete(queen, name)
        assert list(queen.core.declarations.ended) == ["b", "c"]
    async with configured() as queen:
        assert list(queen.core.declarations.ended) == ["b", "c"]  # in-force came before them


async def test_notes_of_what_was_declared_wait_for_the_disk(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.write_text("in the way")
    store = Store(folder / "queen.db", again_s=0.05)
    await store.open()
    store.note_declared({"a": 1.0, "b": None, "c": None})
    with pytest.raises(StorageUnavailable):
        await store.once_declared()
    store.forget_declared(["a", "b"])
    store.note_declared({"b": 2.0})
    folder.unlink()
    await until(lambda: store.problem is None)
    await store.close()
    database = Database(folder / "queen.db")
    assert database.once_declared() == {"c": None, "b": 2.0}
    database.close()


async def test_what_is_declared_anew_is_not_forgotten_by_a_note_that_waits(tmp_path: Path) -> None:
    store = Store(tmp_path / "queen.db")
    await store.open()
    store.forget_declared(["a"])
    await store.put_declaration("a", b"1")
    await store.close()
    database = Database(tmp_path / "queen.db")
    assert database.once_declared() == {"a": None}
    database.close()


def test_what_an_earlier_version_stored_counts_as_declared(tmp_path: Path) -> None:
    path = tmp_path / "queen.db"
    with sqlite3.connect(path) as raw:
        raw.executescript(";".join(MIGRATIONS[:3]))
        raw.execute("INSERT INTO declarations VALUES ('a', X'7B')")
        raw.execute("PRAGMA user_version = 3")
    raw.close()
    database = Database(path)
    assert database.once_declared() == {"a": None}
    database.close()
