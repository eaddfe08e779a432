"""Fetching over real HTTP: whole, resumed, verified, refused, stalled, throttled; each fault by the source itself."""

import asyncio
import hashlib
import io
import os
import socket
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.behaviour.support.model_source import SIGNED, Fault, ModelSource
from tests.unit.hive.models.conftest import Bench

from rbee.hive.config import Tokens
from rbee.hive.models import sources, tries
from rbee.hive.models.download import Download
from rbee.wire.errors import (
    DownloadFailed,
    DownloadTimeout,
    InsufficientDisk,
    InvalidModelReference,
    ModelAccessDenied,
    ModelSourceNotFound,
)
from rbee.wire.model_messages import ModelProgress, Stage
from rbee.wire.model_reference import Provider, parse

WEIGHTS = os.urandom(1_000_000)
FILES = {"model.onnx": os.urandom(5000), "weights/model.onnx_data": WEIGHTS, "config.json": b"{}"}


def written(bench: Bench, model_id: str) -> dict[str, bytes]:
    folder = bench.models / model_id
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".rbee-model.json"
    }


def partials(bench: Bench) -> list[str]:
    return [path.name for path in (bench.models / ".partial").rglob("*") if path.is_file()]


async def test_a_web_folder_is_fetched_verified_and_catalogued(bench: Bench, source: ModelSource) -> None:
    reference = source.folder("tiny", FILES)
    row = await bench.pull(reference)
    assert written(bench, row.id) == FILES
    assert (row.provider, row.reference, row.owned) == (Provider.HTTP, reference, True)
    assert row.size_bytes == sum(map(len, FILES.values()))
    assert len(row.digest) == 64
    assert partials(bench) == []
    assert bench.counted("rbee_hive_model_download_bytes_total", model=row.id) == row.size_bytes
    assert bench.counted("rbee_hive_model_download_expected_bytes", model=row.id) == row.size_bytes


async def test_what_is_here_is_not_fetched_again(bench: Bench, source: ModelSource) -> None:
    reference = source.folder("tiny", FILES)
    row = await bench.pull(reference)
    before = len(source.seen)
    again = await bench.store.obtain(parse(reference))
    assert not isinstance(again, Download)
    assert (again.id, again.local_path) == (row.id, row.local_path)
    assert len(source.seen) == before


async def test_a_hub_repository_is_fetched_at_one_commit_without_other_formats(
    bench: Bench, source: ModelSource
) -> None:
    extra = {"README.md": b"hello", "model.safetensors": b"x" * 100, "pytorch_model.bin": b"y"}
    reference = source.repository("org/tiny", {**FILES, **extra})
    row = await bench.pull(reference)
    assert written(bench, row.id) == FILES
    assert (row.provider, row.id.startswith("org--tiny-")) == (Provider.HF, True)
    assert all("/resolve/c0ffee" in seen.path for seen in source.requests("model.onnx"))


async def test_a_pattern_takes_one_of_several_graphs_and_the_configuration(bench: Bench, source: ModelSource) -> None:
    files = {"onnx/model.onnx": b"a" * 9, "onnx/model_q4.onnx": b"b" * 9, "tokenizer.json": b"{}", "x.png": b"p"}
    source.repository("org/many", files)
    row = await bench.pull("hf:org/many:onnx/model_q4*")
    assert sorted(written(bench, row.id)) == ["onnx/model_q4.onnx", "tokenizer.json"]
    with pytest.raises(ModelSourceNotFound, match="pattern"):
        await bench.pull("hf:org/many:onnx/other*")


async def test_a_token_goes_to_the_hub_and_a_gated_model_without_it_says_what_to_do(
    bench_of: Callable[..., Any], source: ModelSource, tmp_path: Path
) -> None:
    source.repository("org/closed", FILES)
    source.gated["org/closed"] = "hf_secret_token"
    bench: Bench = await bench_of()
    with pytest.raises(ModelAccessDenied, match="HF_TOKEN"):
        await bench.pull("hf:org/closed")
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "hf_token").write_text("hf_secret_token")
    (credentials / "hf_token").chmod(0o600)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
        await bench.pull("hf:org/closed")
    assert all(seen.authorization == "Bearer hf_secret_token" for seen in source.requests("model.onnx"))


async def test_a_redirect_to_another_host_is_followed_as_it_is_and_gets_no_token(
    bench_of: Callable[..., Any], source: ModelSource, tmp_path: Path
) -> None:
    source.repository("org/closed", FILES)
    source.gated["org/closed"] = "hf_secret_token"
    store = ModelSource().start()
    try:
        store.repository("org/closed", FILES)
        source.elsewhere = store.url
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/hf_token").write_text("hf_secret_token")
        (tmp_path / "etc/hf_token").chmod(0o600)
        bench: Bench = await bench_of()
        bench.store.use(msgspec.structs.replace(bench.config, tokens=Tokens(hf_token="hf_token")))
        row = await bench.pull("hf:org/closed")
        assert written(bench, row.id) == FILES
        assert {(seen.authorization, seen.query) for seen in store.seen} == {(None, SIGNED)}
        assert {seen.authorization for seen in source.seen} == {"Bearer hf_secret_token"}
    finally:
        store.close()


@pytest.mark.parametrize("reference", ["hf:org/none", "hf:org/tiny@other"])
async def test_what_a_hub_does_not_have_is_said_at_once(bench: Bench, source: ModelSource, reference: str) -> None:
    source.repository("org/tiny", FILES)
    with pytest.raises(ModelSourceNotFound, match="check the reference"):
        await bench.pull(reference)
    assert len(source.seen) == 1


async def test_a_hub_that_lists_without_end_is_read_to_a_bound(
    bench: Bench, source: ModelSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_MOST_LISTING_BYTES", 2_000)
    reference = source.repository("org/large", {f"part-{number}.onnx": b"x" for number in range(40)})
    with pytest.raises(ModelSourceNotFound, match="holds more than a model"):
        await bench.pull(reference)


async def test_a_hub_that_is_not_reached_is_named_with_its_setting(
    bench_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tries, "MOST_TRIES", 1)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
    bench = await bench_of(hf_endpoint=endpoint)
    with pytest.raises(DownloadFailed, match=f"reaches {endpoint} .models.hf_endpoint of hive.yaml"):
        await bench.pull("hf:org/tiny")


async def test_a_reset_at_two_fifths_is_resumed_from_there(bench: Bench, source: ModelSource) -> None:
    reference = source.folder("tiny", FILES)
    cut = len(WEIGHTS) * 2 // 5
    source.fault("weights/model.onnx_data", Fault(after=cut))
    found = await bench.store.obtain(parse(reference))
    assert isinstance(found, Download)
    notes = {progress.note async for progress in found.follow()}
    row = await found.result()
    assert written(bench, row.id) == FILES
    first, second = source.requests("model.onnx_data")
    assert first.range is None
    assert second.range is not None and 0 < int(second.range[6:-1]) <= cut
    assert any("try 2 of 6" in note for note in notes)
    assert bench.counted("rbee_hive_model_download_retries_total") == 1
    assert bench.counted("rbee_hive_model_download_bytes_total", model=row.id) == row.size_bytes


async def test_a_download_that_was_interrupted_goes_on_in_the_next_life(
    bench_of: Callable[..., Any], source: ModelSource
) -> None:
    reference = source.folder("tiny", FILES)
    source.fault("weights/model.onnx_data", Fault(after=400_000, then="stall"))
    bench: Bench = await bench_of(stall_limit_s=60)
    found = await bench.store.obtain(parse(reference))
    assert isinstance(found, Download)
    async with asyncio.timeout(20):
        async for progress in found.follow():
            if progress.bytes_downloaded >= 400_000:
                break
    await bench.close()
    with pytest.raises(DownloadFailed, match="was stopped"):
        await found.result()
    again: Bench = await bench_of()
    row = await again.pull(reference)
    assert written(again, row.id) == FILES
    assert source.requests("model.onnx_data")[-1].range == "bytes=400000-"


async def test_a_source_without_ranges_is_begun_anew(bench: Bench, source: ModelSource) -> None:
    source.ranges = False
    reference = source.folder("tiny", FILES)
    source.fault("weights/model.onnx_data", Fault(after=400_000))
    row = await bench.pull(reference)
    assert written(bench, row.id) == FILES


async def test_six_resets_end_it_and_keep_what_came(bench: Bench, source: ModelSource) -> None:
    reference = source.folder("tiny", FILES)
    source.fault("weights/model.onnx_data", *[Fault(after=100_000) for _ in range(6)])
    found = await bench.store.obtain(parse(reference))
    assert isinstance(found, Download)
    told = [progress async for progress in found.follow()]
    shown = " ".join(progress.note for progress in told if progress.error is None)  # a failed end is told as its error
    assert [number for number in range(2, 7) if f"try {number} of 6" not in shown] == []
    with pytest.raises(DownloadFailed, match="6 tries") as caught:
        await found.result()
    assert caught.value.details["tries"] == 6
    assert len(source.requests("model.onnx_data")) == 6
    assert "model.onnx_data" in partials(bench)
    row = await bench.pull(reference)
    assert source.requests("model.onnx_data")[-1].range == "bytes=600000-"
    assert written(bench, row.id) == FILES


async def test_a_stall_in_every_try_is_a_timeout(bench: Bench, source: ModelSource) -> None:
    reference = source.folder("tiny", FILES)
    source.fault("config.json", *[Fault(then="stall") for _ in range(6)])
    with pytest.raises(DownloadTimeout) as caught:
        await bench.pull(reference)
    assert (caught.value.code, caught.value.details["tries"]) == ("DOWNLOAD_TIMEOUT", 6)


async def test_one_stall_is_tried_again(bench: Bench, source: ModelSource) -> None:
    reference = source.folder("tiny", FILES)
    source.fault("weights/model.onnx_data", Fault(after=300_000, then="stall"))
    row = await bench.pull(reference)
    assert written(bench, row.id) == FILES


async def test_a_wrong_checksum_deletes_the_file_and_tries_again(bench: Bench, source: ModelSource) -> None:
    reference = source.folder("tiny", FILES)
    source.fault("weights/model.onnx_data", Fault(then="corrupt"))
    row = await bench.pull(reference)
    assert written(bench, row.id) == FILES
    assert [seen.range for seen in source.requests("model.onnx_data")] == [None, None]
    source.folder("bad", FILES)
    source.fault("config.json", *[Fault(then="corrupt") for _ in range(6)])
    with pytest.raises(DownloadFailed, match="checksum") as caught:
        await bench.pull(f"{source.url}/bad/")
    assert caught.value.details == {"reason": "checksum_mismatch", "tries": 6}
    assert not (bench.models / parse(f"{source.url}/bad/").model_id).exists()


@pytest.mark.parametrize(("status", "error"), [(403, ModelAccessDenied), (404, ModelSourceNotFound)])
async def test_a_refusal_ends_it_at_once(bench: Bench, source: ModelSource, status: int, error: type) -> None:
    reference = source.folder("tiny", FILES)
    source.fault("config.json", Fault(status=status))
    with pytest.raises(error):
        await bench.pull(reference)
    assert len(source.requests("config.json")) == 1


async def test_an_overloaded_source_is_asked_again(bench: Bench, source: ModelSource) -> None:
    reference = source.folder("tiny", FILES)
    source.fault("config.json", Fault(status=503), Fault(status=429))
    await bench.pull(reference)
    assert len(source.requests("config.json")) == 3


async def test_three_callers_share_one_download(bench: Bench, source: ModelSource) -> None:
    reference = source.folder("tiny", FILES)
    rows = await asyncio.gather(*(bench.pull(reference) for _ in range(3)))
    assert len({row.id for row in rows}) == 1
    assert len(source.requests("model.onnx_data")) == 1
    assert bench.counted("rbee_hive_model_downloads_total", outcome="complete") == 1


async def test_the_bandwidth_limit_holds_and_is_shown(bench_of: Callable[..., Any], source: ModelSource) -> None:
    bench: Bench = await bench_of(bandwidth_limit_mbps=8)  # 1 MB/s, a quarter of a second's worth at once
    reference = source.folder("tiny", {"model.onnx": WEIGHTS})
    began = time.monotonic()
    found = await bench.store.obtain(parse(reference))
    assert isinstance(found, Download)
    shown = [progress async for progress in found.follow()]
    assert time.monotonic() - began > 0.6
    assert {progress.limit_mbps for progress in shown} == {8.0}


async def test_progress_grows_to_its_end(bench: Bench, source: ModelSource) -> None:
    source.pace_s = 0.05
    reference = source.folder("tiny", FILES)
    found = await bench.store.obtain(parse(reference))
    assert isinstance(found, Download)
    shown: list[ModelProgress] = [progress async for progress in found.follow()]
    done = [progress.bytes_downloaded for progress in shown]
    assert done == sorted(done)
    assert len([progress for progress in shown if progress.stage is Stage.DOWNLOADING]) >= 2
    last = shown[-1]
    total = sum(map(len, FILES.values()))
    assert (last.stage, last.bytes_downloaded, last.bytes_total) == (Stage.COMPLETE, total, total)
    assert last.local_path == (await found.result()).local_path
    assert last.duration_s is not None and last.duration_s > 0


async def test_no_room_is_said_before_anything_is_fetched(bench_of: Callable[..., Any], source: ModelSource) -> None:
    bench: Bench = await bench_of(disk_reserve_mb=10**9)
    reference = source.folder("tiny", FILES)
    with pytest.raises(InsufficientDisk, match="rbee model rm") as caught:
        await bench.pull(reference)
    details = caught.value.details
    assert details["required_bytes"] == sum(map(len, FILES.values()))
    assert details["available_bytes"] == 0
    assert details["free_up_bytes"] > 0
    assert source.requests("model.onnx") == []


async def test_a_download_can_be_stopped_and_leaves_nothing(bench: Bench, source: ModelSource) -> None:
    reference = source.folder("tiny", FILES)
    source.fault("weights/model.onnx_data", Fault(after=300_000, then="stall"))
    found = await bench.store.obtain(parse(reference))
    assert isinstance(found, Download)
    async for progress in found.follow():
        if progress.bytes_downloaded >= 300_000:
            break
    assert await bench.store.cancel(found.model_id)
    assert partials(bench) == []
    assert bench.counted("rbee_hive_model_downloads_total", outcome="cancelled") == 1


async def test_what_nobody_went_on_with_for_two_weeks_is_removed(bench_of: Callable[..., Any], tmp_path: Path) -> None:
    partial = tmp_path / "state/models/.partial"
    for name, days in (("old", 15), ("new", 13)):
        (partial / name).mkdir(parents=True)
        at = time.time() - days * 86_400
        os.utime(partial / name, (at, at))
    (partial / "slow/files").mkdir(parents=True)
    (partial / "slow/files/weights").write_bytes(b"it grew today")
    for path in (partial / "slow/files", partial / "slow"):
        os.utime(path, (0, 0))
    (partial / ".gone-1").mkdir()  # a removal in whose middle the hive was killed
    (partial / ".gone-1/weights").write_bytes(b"x")
    await bench_of()
    assert sorted(path.name for path in partial.iterdir()) == ["new", "slow"]


# One file, and archives.


def packed(members: dict[str, bytes], *, link: str | None = None) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        if link is not None:
            info = tarfile.TarInfo("link")
            info.type, info.linkname = tarfile.SYMTYPE, link
            tar.addfile(info)
    return made.getvalue()


async def test_one_file_needs_a_checksum(bench: Bench, source: ModelSource) -> None:
    source.folders["plain"] = {"net.onnx": WEIGHTS}
    with pytest.raises(InvalidModelReference, match="checksum"):
        await bench.pull(f"{source.url}/plain/net.onnx")
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    row = await bench.pull(f"{source.url}/plain/net.onnx#sha256={digest}")
    assert written(bench, row.id) == {"net.onnx": WEIGHTS}
    with pytest.raises(InvalidModelReference, match="no model"):
        await bench.pull(f"{source.url}/plain/readme")


async def test_an_archive_is_unpacked_without_its_top_folder(bench: Bench, source: ModelSource) -> None:
    source.folder("arc", {"m.tar.gz": packed({f"./m/{name}": data for name, data in FILES.items()})})
    row = await bench.pull(f"{source.url}/arc/m.tar.gz")
    assert written(bench, row.id) == FILES
    assert row.size_bytes == sum(map(len, FILES.values()))


@pytest.mark.parametrize(
    "archive",
    [packed({"../evil": b"x"}), packed({"/etc/evil": b"x"}), packed({"a": b"x"}, link="/etc/passwd"), b"no archive"],
)
async def test_an_archive_that_leads_outside_is_refused(bench: Bench, source: ModelSource, archive: bytes) -> None:
    source.folder("arc", {"m.tgz": archive})
    with pytest.raises(DownloadFailed):
        await bench.pull(f"{source.url}/arc/m.tgz")
    assert not list(bench.models.rglob("evil"))


@pytest.mark.parametrize(
    "path", ["../evil", "/evil", "a/../../evil", "a//b", "a\\b", "a\x1b[31m", "a\x9bb", ".rbee-model.json"]
)
async def test_a_list_that_leads_outside_is_refused(bench: Bench, source: ModelSource, path: str) -> None:
    source.folders["bad"] = {"SHA256SUMS": f"{'0' * 64}  {path}\n".encode()}
    with pytest.raises(DownloadFailed, match="outside"):
        await bench.pull(f"{source.url}/bad/")
