"""Unpacking of archives that were made to do harm, and of one that is stopped in its middle."""

import asyncio
import gzip
import io
import tarfile
import threading
from pathlib import Path

import pytest
from tests.behaviour.support.model_source import ModelSource
from tests.unit.hive.models.conftest import Bench

from rbee.hive.models import archive, tar_stream
from rbee.hive.models.archive import unpack
from rbee.hive.models.download import Download
from rbee.wire.errors import DownloadFailed, InsufficientDisk, RbeeError, StorageUnavailable
from rbee.wire.model_messages import Stage
from rbee.wire.model_reference import parse

BLOCK = tarfile.BLOCKSIZE
GOES_ON = threading.Event()
GIB = 1 << 30


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE, **fields: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    info.linkname = fields.get("linkname", "")
    return info.tobuf(tarfile.GNU_FORMAT)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


def member(name: str, data: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    return header(name, len(data), kind) + padded(data)


def pax(**records: str) -> bytes:
    """An extended header, as POSIX pax has it: "LENGTH KEY=VALUE\\n" each."""
    text = b""
    for key, value in records.items():
        rest = f" {key.replace('_', '.')}={value}\n".encode()
        length = len(rest) + 1
        while len(str(length)) + len(rest) != length:
            length += 1
        text += str(length).encode() + rest
    return member("pax", text, tarfile.XHDTYPE)


def unpacked(folder: Path, content: bytes, reserve: int = 0) -> dict[str, bytes]:
    packed, target = folder / "a.tar", folder / "out"
    packed.write_bytes(content)
    unpack(packed, target, reserve, GOES_ON)
    return {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}


@pytest.mark.parametrize("written", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("zipped", ["", "gz"])
def test_what_tar_makes_is_unpacked_whatever_its_format(tmp_path: Path, written: int, zipped: str) -> None:
    files = {"model.onnx": b"m" * 3_000_001, f"{'d' * 90}/{'e' * 90}": b"", "config.json": b"{}"}
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=f"w:{zipped}", format=written) as tar:
        for name, data in {"top/empty/": None, **{f"top/{name}": data for name, data in files.items()}}.items():
            info = tarfile.TarInfo(name)
            info.type, info.size = (tarfile.DIRTYPE, 0) if data is None else (tarfile.REGTYPE, len(data))
            tar.addfile(info, None if data is None else io.BytesIO(data))
    assert unpacked(tmp_path, made.getvalue()) == files


def chain_of_long_names() -> bytes:
    return member("././@LongLink", b"n\0", tarfile.GNUTYPE_LONGNAME) * 900 + member("n", b"x")


def sparse_map() -> bytes:
    """A map of GNU's sparse format 1.0 that says of itself that it has more numbers than a machine has memory."""
    records = {"GNU_sparse_major": "1", "GNU_sparse_minor": "0", "GNU_sparse_name": "n"}
    return pax(**records) + header("n", 4 << 20) + b"999999999999\n" + b"0\n" * (2 << 20)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(header("pax", 8 * GIB - 1, tarfile.XHDTYPE), id="huge pax header"),
        pytest.param(header("pax", 8 * GIB - 1, tarfile.XGLTYPE), id="huge global header"),
        pytest.param(header("././@LongLink", 8 * GIB - 1, tarfile.GNUTYPE_LONGNAME), id="huge name"),
        pytest.param(member("pax", b"x" * 2_000_000, tarfile.XHDTYPE) + member("a", b""), id="long pax header"),
        pytest.param(chain_of_long_names(), id="chain of names"),
        pytest.param(sparse_map(), id="sparse map"),
        pytest.param(pax(GNU_sparse_map="0,1,8000000,1", GNU_sparse_size="9000000") + member("a", b"xy"), id="sparse"),
        pytest.param(pax(size="-1024") + member("a", b"x" * 700), id="negative size"),
        pytest.param(header("link", kind=tarfile.SYMTYPE, linkname="/etc/passwd"), id="link out"),
        pytest.param(header("link", kind=tarfile.LNKTYPE, linkname="../../secret"), id="hard link out"),
        pytest.param(header("null", kind=tarfile.CHRTYPE), id="device"),
        pytest.param(pax(path="../../evil") + member("a", b"x"), id="path out"),
        pytest.param(member("a", b"x") + member("a", b"y"), id="one name twice"),
        pytest.param(member("a", b"x") + member("a/b", b"y"), id="file as a folder"),
        pytest.param(pax(path="a" * 300) + member("a", b"x"), id="name too long"),
        pytest.param(header("a", 5_000) + b"short", id="cut off"),
    ],
)  # fmt: skip
def test_an_archive_made_to_do_harm_is_refused_for_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    asked: list[int] = []
    read = tar_stream.TarStream.read

    def watched(self: tar_stream.TarStream, size: int | None = -1) -> bytes:
        data = read(self, size)
        asked.append(len(data))
        return data

    monkeypatch.setattr(tar_stream.TarStream, "read", watched)
    with pytest.raises(DownloadFailed, match=r"pack|make it with|publishes") as caught:
        unpacked(tmp_path, content + bytes(2 * BLOCK))
    assert caught.value.details["reason"] in ("bad_archive", "unsafe_path")
    assert sum(asked) <= tar_stream.MOST_HEADER_BYTES + 100_000
    assert not list(tmp_path.parent.rglob("evil"))


@pytest.mark.parametrize("content", [member("empty/", b"", tarfile.DIRTYPE), b""])
def test_an_archive_without_a_file_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DownloadFailed, match="holds no file"):
        unpacked(tmp_path, content + bytes(2 * BLOCK))


def test_more_entries_than_a_model_may_have_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "MOST_ENTRIES", 40)
    monkeypatch.setattr(archive, "MOST_FILES", 20)
    assert len(unpacked(tmp_path, b"".join(member(f"f{number}", b"") for number in range(20)))) == 20
    for kind in (tarfile.REGTYPE, tarfile.DIRTYPE):
        with pytest.raises(DownloadFailed, match="holds over 20 files"):
            unpacked(tmp_path, b"".join(member(f"d{number}", b"", kind) for number in range(50)))


def test_what_the_disk_has_no_room_for_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with pytest.raises(InsufficientDisk, match=f"take {1 << 60} bytes"):
        unpacked(tmp_path, header("model.onnx", 1 << 60))
    with pytest.raises(InsufficientDisk, match="rbee model rm"):
        unpacked(tmp_path, member("a", b"x"), reserve=1 << 60)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("size", [0, 64 << 20])
def test_a_stopped_one_ends_at_its_next_step(tmp_path: Path, size: int) -> None:
    packed, stopping = tmp_path / "a.tar.gz", threading.Event()
    packed.write_bytes(gzip.compress(header("model.onnx", size) + bytes(size), 1))
    stopping.set()
    with pytest.raises(StorageUnavailable, match="it was stopped"):
        unpack(packed, tmp_path / "out", 0, stopping)


class Held:
    """Unpacking that waits in the middle of a file until it is stopped."""

    def __init__(self, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.ended = threading.Event()
        self._models = models
        self._check = tar_stream.check_goes_on
        monkeypatch.setattr(tar_stream, "check_goes_on", self._wait)

    def _wait(self, stopping: threading.Event) -> None:
        if next(self._models.rglob("weights"), None) is not None:
            self.begun.set()
            assert stopping.wait(30)
        try:
            self._check(stopping)
        except OSError:
            self.ended.set()
            raise


@pytest.mark.parametrize("how", ["removed", "hive stops"])
async def test_one_that_is_ended_while_it_unpacks_writes_nothing_any_more(
    bench: Bench, source: ModelSource, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    held = Held(bench.models, monkeypatch)
    content = member("m/weights", b"w" * (4 << 20)) + bytes(2 * BLOCK)
    source.folder("arc", {"m.tar": content})
    found = await bench.store.obtain(parse(f"{source.url}/arc/m.tar"))
    assert isinstance(found, Download)
    assert await asyncio.to_thread(held.begun.wait, 30)
    assert found.progress().stage is Stage.UNPACKING
    if how == "removed":
        assert await bench.store.cancel(found.model_id)
    else:
        await bench.close()
    assert held.ended.is_set()
    with pytest.raises(RbeeError):
        await found.result()
    left = sorted(path.name for path in bench.models.rglob("*") if path.is_file())
    assert left == ([] if how == "removed" else ["m.tar"])
