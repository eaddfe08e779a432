"""What lasts: over a restart, a damaged file, and a disk that is not there for a while."""

import asyncio
import sqlite3
import threading
from pathlib import Path

import pytest
from tests.unit.queen.conftest import Configured
from tests.unit.queen.partners import until

from rbee.queen.database import MIGRATIONS, MOST_MEASURED, Database, HiveRow, MemoryRow, Setup
from rbee.queen.store import Store
from rbee.wire.errors import StorageUnavailable

ROW = HiveRow("bee", "http://10.0.0.1:9200", "0.1.0", 100.0, 200.0)


def taken(model: str) -> MemoryRow:
    return MemoryRow(Setup(model, "", "cpu", 4, ""), 5, 1, 1.0)


async def test_hives_and_aliases_outlive_the_queen(tmp_path: Path) -> None:
    path = tmp_path / "a" / "queen.db"
    store = Store(path)
    assert await store.open() == ([], {})
    store.note_hive(ROW)
    store.note_hive(HiveRow("bee", None, "0.2.0", 300.0, 300.0))
    store.note_hive(HiveRow("gone", None, "0.2.0", 1.0, 1.0))
    await store.put_alias("best", "talk")
    await store.put_alias("best", "other")
    await store.put_alias("gone", "talk")
    await store.remove_alias("gone")
    store.forget_hive("gone")
    await store.close()
    again = Store(path)
    assert await again.open() == ([HiveRow("bee", None, "0.2.0", 300.0, 300.0)], {"best": "other"})
    again.note_hive(HiveRow("bee", None, "0.3.0", 400.0, 400.0))
    await again.close()
    database = Database(path)
    assert database.hives() == [HiveRow("bee", None, "0.3.0", 300.0, 400.0)]
    database.close()


def test_migrations_are_counted_and_a_newer_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "queen.db"
    database = Database(path)
    database.open()
    # in the file itself while the queen has it open: a package's preinst reads it there before a downgrade
    assert int.from_bytes(path.read_bytes()[60:64], "big") == len(MIGRATIONS)
    database.close()
    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert raw.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        raw.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    raw.close()
    with pytest.raises(StorageUnavailable, match="newer version"):
        database.hives()
    assert not list(tmp_path.glob("*.corrupt.*"))


@pytest.mark.parametrize("damage", [b"this is no database at all, not even close" * 100, None])
def test_a_corrupt_file_is_kept_aside(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "queen.db"
    database = Database(path)
    database.note_hives([HiveRow(f"bee-{n}", None, "x" * 200, 1.0, 1.0) for n in range(500)])
    database.close()
    whole = path.read_bytes()
    path.write_bytes(damage or whole[:8192] + b"\xff" * 8192 + whole[16384:])
    assert database.hives() == []
    database.put_alias("a", "b")
    assert database.aliases() == {"a": "b"}
    database.close()
    assert len(list(tmp_path.glob("queen.db.corrupt.*"))) == 1


def test_a_backup_is_whole_and_the_original_goes_on(tmp_path: Path) -> None:
    database = Database(tmp_path / "queen.db")
    database.put_alias("best", "talk")
    database.backup(tmp_path / "copy.db")
    database.put_alias("later", "talk")
    copy = Database(tmp_path / "copy.db")
    assert copy.aliases() == {"best": "talk"}
    database.close()
    copy.close()


async def test_what_is_noted_while_the_disk_is_away_is_written_once_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.write_text("in the way")
    store = Store(folder / "queen.db", again_s=0.05)
    assert await store.open() == ([], {})
    assert store.problem is not None
    store.note_hive(ROW)
    with pytest.raises(StorageUnavailable, match="check the disk"):
        await store.put_alias("best", "talk")
    folder.unlink()
    await until(lambda: store.problem is None)
    await store.put_alias("best", "talk")
    await store.close()
    database = Database(folder / "queen.db")
    assert database.hives() == [ROW]
    database.close()


@pytest.mark.parametrize("first", ["memory", "hive"])
async def test_a_note_that_is_being_written_when_the_store_closes_is_written(tmp_path: Path, first: str) -> None:
    store = Store(tmp_path / "queen.db")
    await store.open()
    go_on = threading.Event()
    store._thread.submit(go_on.wait, 60.0)
    if first == "memory":
        store.note_memory(taken("a"))
    store.note_hive(ROW)
    store.note_declared({"a": 1.0})
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not (store._owed_memory if first == "memory" else store._owed)  # the writer has it, and awaits the thread
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    go_on.set()
    await closing
    database = Database(tmp_path / "queen.db")
    assert database.hives() == [ROW]
    assert database.once_declared() == {"a": 1.0}
    assert database.memory() == ([taken("a")] if first == "memory" else [])
    database.close()


async def test_no_more_figures_wait_for_the_disk_than_it_is_to_keep(tmp_path: Path) -> None:
    store = Store(tmp_path / "queen.db")
    names = [str(number) for number in range(MOST_MEASURED + 1)]
    for name in ("0", *names[1:-1], "0", names[-1]):
        store.note_memory(taken(name))
    await store.open()
    await store.close()
    database = Database(tmp_path / "queen.db")
    assert {row.setup.model_ref for row in database.memory()} == set(names) - {"1"}
    database.close()


async def test_the_queen_serves_without_her_disk(configured: Configured, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    async with configured(aliases={"configured": "talk"}) as queen:
        _, health = await queen.get("/health")
        assert health["status"] == "degraded"
        assert health["degraded"][0].startswith("storage: ")
        assert str(tmp_path) not in str(health)
        assert (await queen.beat())["status"] == 200
        url = f"{queen.url}/v2/aliases/best"
        async with queen.client.put(url, json={"model": "talk"}) as response:
            assert (response.status, (await response.json())["error"]["code"]) == (503, "STORAGE_UNAVAILABLE")
        assert (await queen.get("/v2/aliases"))[1] == {"aliases": {"configured": "talk"}}
        (tmp_path / "state").unlink()
        async with queen.client.put(url, json={"model": "talk"}) as response:
            assert response.status == 200
        await until(lambda: not queen.core.audit.problem)
        assert (await queen.get("/health"))[1]["status"] == "ok"
