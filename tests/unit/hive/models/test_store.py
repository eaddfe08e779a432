"""The catalogue and its models: kept over restarts, mended from the folders, removed, verified, collected, copied."""

import asyncio
import os
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry
from tests.behaviour.support.model_source import ModelSource
from tests.unit.hive.audit import audit_in
from tests.unit.hive.models.conftest import Bench

from rbee.hive.models import catalogue, fetch, manifest
from rbee.hive.models.catalogue_file import CatalogueFile
from rbee.hive.models.download import Download
from rbee.hive.models.orders import ModelOrders
from rbee.hive.models.routes import ModelRoutes
from rbee.wire.auth import TokenVerifier
from rbee.wire.errors import (
    DownloadFailed,
    InsufficientDisk,
    InvalidModelReference,
    ModelAccessDenied,
    ModelInUse,
    ModelNotHere,
    StorageUnavailable,
)
from rbee.wire.http.metrics import HttpMetrics
from rbee.wire.http.server import build_app
from rbee.wire.model_messages import CopySource, ModelRow
from rbee.wire.model_reference import Provider, parse
from rbee.wire.peer import PeerAdmins

Maker = Callable[..., Any]
FILES = {"model.onnx": b"a" * 1000, "data/weights": b"b" * 2000}


def orders_of(bench: Bench) -> ModelOrders:
    folder = bench.config.paths.state_dir
    return ModelOrders(bench.store, folder, audit_in(folder))


@pytest.fixture
def orders(bench: Bench) -> ModelOrders:
    return orders_of(bench)


def there(row: ModelRow) -> bool:
    return Path(row.local_path).exists()


def database(bench: Bench) -> Path:
    return bench.config.paths.state_dir / "hive/models.db"


async def test_rows_outlive_the_hive_and_are_found_by_provider(
    bench_of: Maker, source: ModelSource, tmp_path: Path
) -> None:
    bench: Bench = await bench_of()
    fetched = await bench.pull(source.folder("tiny", FILES))
    from_hub = await bench.pull(source.repository("org/tiny", FILES))
    own = bench.models / "own"
    own.mkdir()
    (own / "model.onnx").write_bytes(b"c" * 10)
    local = await bench.pull(f"file://{own}")
    await bench.close()
    again: Bench = await bench_of()
    rows = {row.id: row for row in await again.store.catalogue.rows()}
    assert rows.keys() == {fetched.id, from_hub.id, local.id}
    assert rows[fetched.id] == fetched
    assert [row.id for row in await again.store.catalogue.rows(Provider.HF)] == [from_hub.id]
    assert [row.size_bytes for row in await again.store.catalogue.rows(Provider.LOCAL)] == [10]
    assert (await again.store.catalogue.find(fetched.reference)) == fetched


async def test_folders_without_rows_are_taken_in_and_rows_without_folders_forgotten(
    bench_of: Maker, source: ModelSource
) -> None:
    bench: Bench = await bench_of()
    gone = await bench.pull(source.folder("gone", FILES))
    await bench.close()
    shutil.rmtree(gone.local_path)
    (bench.models / "placed").mkdir()
    (bench.models / "placed/model.onnx").write_bytes(b"x" * 7)
    again: Bench = await bench_of()
    (row,) = await again.store.catalogue.rows()
    assert (row.id, row.provider, row.size_bytes, row.owned) == ("placed", Provider.LOCAL, 7, False)


async def test_a_corrupt_catalogue_is_kept_aside_and_made_anew_from_the_folders(
    bench_of: Maker, source: ModelSource
) -> None:
    bench: Bench = await bench_of()
    row = await bench.pull(source.folder("tiny", FILES))
    await orders_of(bench).pin(row.id, "root", pinned=True)
    await bench.close()
    database(bench).write_bytes(b"this is no database at all" * 300)
    again: Bench = await bench_of()
    (found,) = await again.store.catalogue.rows()
    assert (found.id, found.reference, found.digest, found.pinned) == (row.id, row.reference, row.digest, True)
    (aside,) = database(bench).parent.glob("*.corrupt.backup")
    problem = again.store.catalogue.problem
    assert problem is not None and aside.name in problem
    before = len(source.seen)
    assert (await again.pull(row.reference)).id == row.id
    assert len(source.seen) == before


async def test_a_disk_that_refuses_the_catalogue_does_not_end_the_service(
    bench_of: Maker, source: ModelSource, tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state/hive").write_text("in the way")
    bench: Bench = await bench_of()
    assert bench.store.catalogue.problem is not None
    assert "in memory" in bench.store.catalogue.problem
    row = await bench.pull(source.folder("tiny", FILES))
    assert [each.id for each in await bench.store.catalogue.rows()] == [row.id]


async def test_a_catalogue_that_breaks_while_it_is_used_goes_on_in_memory(
    bench: Bench, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await bench.pull(source.folder("tiny", FILES))
    database(bench).with_name("models.db-wal").unlink(missing_ok=True)
    database(bench).unlink()
    database(bench).mkdir()
    await bench.store.catalogue._run(bench.store.catalogue._file.close)
    assert [each.id for each in await bench.store.catalogue.rows()] == [row.id]
    assert bench.store.catalogue.problem is not None


async def test_a_backup_is_verified_and_says_how_to_put_it_back(
    bench: Bench, orders: ModelOrders, source: ModelSource
) -> None:
    row = await bench.pull(source.folder("tiny", FILES))
    backup = await orders.backup()
    copy = CatalogueFile(Path(backup.path))
    assert [each.id for each in copy.rows()] == [row.id]
    copy.close()
    assert backup.models == 1
    assert backup.path in backup.restore
    assert str(database(bench)) in backup.restore


async def test_a_backup_that_cannot_be_written_leaves_the_catalogue_in_use(
    bench: Bench, orders: ModelOrders, source: ModelSource
) -> None:
    await bench.pull(source.folder("tiny", FILES))
    (database(bench).parent / "backups").write_text("in the way")
    with pytest.raises(StorageUnavailable):
        await orders.backup()
    assert bench.store.catalogue.problem is None
    assert len(await bench.store.catalogue.rows()) == 1


async def test_a_disk_that_hangs_does_not_hold_up_the_end(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "CLOSE_LIMIT_S", 0.1)
    answers = threading.Event()
    hanging = bench.store.catalogue._thread.submit(answers.wait, 60.0)
    async with asyncio.timeout(30):
        await bench.close()
    assert not hanging.done()
    answers.set()
    await asyncio.to_thread(bench.store.catalogue._thread.shutdown)  # until the file is closed after all
    assert bench.store.catalogue._file._connection is None


async def test_a_model_that_is_removed_while_its_download_puts_it_in_place_is_gone(
    bench: Bench, orders: ModelOrders, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place, go_on = threading.Event(), threading.Event()
    put_in_place = fetch._put_in_place

    def held(place: Path, target: Path, whole: manifest.Manifest) -> ModelRow:
        row = put_in_place(place, target, whole)
        in_place.set()
        assert go_on.wait(60.0)
        return row

    monkeypatch.setattr(fetch, "_put_in_place", held)
    found = await bench.store.obtain(parse(source.folder("tiny", FILES)))
    assert isinstance(found, Download)
    assert await asyncio.to_thread(in_place.wait, 30.0)
    removing = asyncio.create_task(orders.remove(found.model_id, "root"))
    await asyncio.sleep(0)  # until it waits for the end of the download
    assert bench.store._running[found.model_id].cancelling()
    go_on.set()
    answer = await removing
    assert (answer.deleted, answer.message) == (True, "removed")
    assert answer.freed_bytes > 0
    assert not (bench.models / found.model_id).exists()
    assert await bench.store.catalogue.rows() == []
    with pytest.raises(DownloadFailed, match="stopped"):
        await found.result()


async def test_a_model_in_use_is_not_removed(bench: Bench, orders: ModelOrders, source: ModelSource) -> None:
    row = await bench.pull(source.folder("tiny", FILES))
    for name in (row.reference, row.local_path):
        bench.users = {name: ["w1"]}
        with pytest.raises(ModelInUse, match="w1") as caught:
            await orders.remove(row.id, "root")
        assert (caught.value.status, caught.value.details) == (409, {"workers": ["w1"]})
    bench.users = {}
    answer = await orders.remove(row.id, "root")
    assert (answer.deleted, answer.freed_bytes) == (True, 3000)
    assert not there(row)
    with pytest.raises(ModelNotHere):
        await orders.remove(row.id, "root")


async def test_the_operators_folder_elsewhere_stays_when_it_is_forgotten(
    bench_of: Maker, source: ModelSource, tmp_path: Path
) -> None:
    bench: Bench = await bench_of()
    elsewhere = tmp_path / "srv"
    (elsewhere / "own").mkdir(parents=True)
    (elsewhere / "own/model.onnx").write_bytes(b"x")
    bench.store.use(msgspec.structs.replace(bench.config, model_roots=[str(elsewhere)]))
    row = await bench.pull(f"file://{elsewhere}/own")
    answer = await orders_of(bench).remove(row.id, "root")
    assert not answer.deleted
    assert (elsewhere / "own/model.onnx").exists()


async def test_a_link_or_a_folder_outside_the_roots_is_refused(bench: Bench, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    bench.models.mkdir(parents=True, exist_ok=True)
    (bench.models / "link").symlink_to(outside)
    for path in (outside, bench.models / "link", bench.models / "missing"):
        with pytest.raises(InvalidModelReference):
            await bench.pull(f"file://{path}")


async def test_verify_finds_what_changed(bench: Bench, orders: ModelOrders, source: ModelSource) -> None:
    row = await bench.pull(source.folder("tiny", FILES))
    assert (await orders.verify(row.id)).ok
    (Path(row.local_path) / "data/weights").write_bytes(b"B" + b"b" * 1999)
    (Path(row.local_path) / "extra").write_bytes(b"")
    answer = await orders.verify(row.id)
    assert not answer.ok
    assert answer.problems == ["data/weights has another SHA-256 than it had", "extra was not there before"]


async def test_a_model_without_a_record_gets_one_at_its_first_verification(bench: Bench, orders: ModelOrders) -> None:
    own = bench.models / "own"
    own.mkdir(parents=True)
    (own / "model.onnx").write_bytes(b"x")
    row = await bench.pull(f"file://{own}")
    assert row.digest == ""
    assert (await orders.verify(row.id)).recorded
    (own / "model.onnx").write_bytes(b"y")
    assert not (await orders.verify(row.id)).ok


async def test_the_budget_collects_the_least_recently_used(bench_of: Maker, source: ModelSource) -> None:
    bench: Bench = await bench_of(disk_budget_mb=1)
    orders = orders_of(bench)
    size = {"model.onnx": b"x" * 300_000}
    pinned, old, used = [await bench.pull(source.folder(name, size)) for name in ("pinned", "old", "used")]
    await orders.pin(pinned.id, "root", pinned=True)
    bench.users = {used.local_path: ["w"]}
    fresh = await bench.pull(source.folder("fresh", size))
    assert {row.id for row in await bench.store.catalogue.rows()} == {pinned.id, used.id, fresh.id}
    assert not there(old)
    assert bench.counted("rbee_hive_models_collected_total") == 1
    bench.users |= {fresh.local_path: ["v"]}
    with pytest.raises(InsufficientDisk):
        await bench.pull(source.folder("more", size))


async def test_use_is_noted_by_reference_and_by_folder(bench: Bench, source: ModelSource) -> None:
    row = await bench.pull(source.folder("tiny", FILES))
    for name in (row.reference, f"file://{row.local_path}"):
        before = (await bench.store.catalogue.get(row.id)).last_used_unix  # type: ignore[union-attr]
        await asyncio.sleep(0.01)
        await bench.store.used(name)
        after = (await bench.store.catalogue.get(row.id)).last_used_unix  # type: ignore[union-attr]
        assert after > before


async def test_a_verification_ends_in_its_thread_when_nobody_waits_for_it(
    bench: Bench, orders: ModelOrders, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = await bench.pull(source.folder("tiny", FILES))
    begun, ended = threading.Event(), threading.Event()
    check = manifest.check_goes_on

    def held(stopping: threading.Event) -> None:
        begun.set()
        assert stopping.wait(30)
        ended.set()
        check(stopping)

    monkeypatch.setattr(manifest, "check_goes_on", held)
    verifying = asyncio.create_task(orders.verify(row.id))
    assert await asyncio.to_thread(begun.wait, 30)
    verifying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await verifying
    assert ended.is_set()


# A small disk that really fills up.


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "small/state/models"
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], check=True)
    yield tmp_path / "small"
    subprocess.run(["umount", str(folder)], check=True)


async def test_a_disk_that_fills_up_leaves_no_partial_file(
    bench_of: Maker, source: ModelSource, small_disk: Path
) -> None:
    bench: Bench = await bench_of(small_disk)
    data = os.urandom(3_000_000)
    source.folder("big", {"model.onnx": data})
    source.sizes_hidden = True
    with pytest.raises(InsufficientDisk, match="rbee model rm"):
        await bench.pull(f"{source.url}/big/")
    assert not [path for path in bench.models.rglob("*") if path.is_file()]
    assert await bench.store.catalogue.rows() == []
    source.sizes_hidden = False
    with pytest.raises(InsufficientDisk) as caught:
        await bench.pull(f"{source.url}/big/")
    assert caught.value.details["required_bytes"] == len(data)


# From hive to hive.


@pytest.fixture
async def other(bench_of: Maker, tmp_path: Path) -> AsyncIterator[tuple[Bench, str]]:
    """A second store with its routes served over TCP: another hive as a copy sees it."""
    bench: Bench = await bench_of(tmp_path / "other")
    admins, tokens = PeerAdmins(frozenset()), TokenVerifier({})
    app = build_app(verifier=tokens, admins=admins, metrics=HttpMetrics(CollectorRegistry(), "other"))
    routes = ModelRoutes(bench.store, orders_of(bench))
    routes.add_to(app)
    async with TestServer(app) as server:
        yield bench, f"http://127.0.0.1:{server.port}"


async def ticket_of(url: str, model: str) -> str:
    async with aiohttp.ClientSession() as client, client.post(f"{url}/v1/models/{model}/ticket") as response:
        return str((await response.json())["ticket"])


async def test_a_model_is_copied_from_another_hive_by_ticket(
    bench: Bench, other: tuple[Bench, str], source: ModelSource
) -> None:
    there, url = other
    row = await there.pull(source.folder("tiny", FILES))
    before = len(source.seen)
    copy_source = CopySource(url, row.id, await ticket_of(url, row.id))
    found = await bench.store.obtain(parse(row.reference), copy_source)
    assert isinstance(found, Download)
    copied = await found.result()
    assert (copied.reference, copied.digest, copied.provider) == (row.reference, row.digest, row.provider)
    assert len(source.seen) == before


async def test_without_the_ticket_nothing_is_given(bench: Bench, other: tuple[Bench, str], source: ModelSource) -> None:
    there, url = other
    row = await there.pull(source.folder("tiny", FILES))
    found = await bench.store.obtain(parse(row.reference), CopySource(url, row.id, "x" * 32))
    assert isinstance(found, Download)
    with pytest.raises(ModelAccessDenied):
        await found.result()
    async with aiohttp.ClientSession() as client:
        ticket = await ticket_of(url, row.id)
        headers = {"Authorization": f"Bearer {ticket}"}
        for name in ("../hive/models.db", "..%2f..%2fhive%2fmodels.db", "model.onnx.not"):
            async with client.get(f"{url}/v1/models/{row.id}/files/{name}", headers=headers) as response:
                assert response.status >= 400
        async with client.get(f"{url}/v1/models/{row.id}/files/model.onnx", headers=headers) as response:
            assert await response.read() == FILES["model.onnx"]


async def test_a_copy_that_is_optional_falls_back_to_the_models_own_source(bench: Bench, source: ModelSource) -> None:
    reference = source.folder("tiny", FILES)
    nowhere = CopySource("http://127.0.0.1:9", parse(reference).model_id, "x" * 32, optional=True)
    found = await bench.store.obtain(parse(reference), nowhere)
    assert isinstance(found, Download)
    assert (await found.result()).size_bytes == 3000
    assert bench.counted("rbee_hive_model_download_retries_total") == 0


async def test_another_model_under_the_same_id_is_not_taken(
    bench: Bench, other: tuple[Bench, str], source: ModelSource
) -> None:
    there, url = other
    row = await there.pull(source.folder("tiny", FILES))
    wanted = source.folder("wanted", FILES)
    found = await bench.store.obtain(parse(wanted), CopySource(url, row.id, await ticket_of(url, row.id)))
    assert isinstance(found, Download)
    with pytest.raises(DownloadFailed, match="another model"):
        await found.result()
