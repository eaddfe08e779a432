"""`rbee audit tail --follow`: every entry as it is written, once, over rotations, until Ctrl+C."""

import contextlib
import json
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.keeper.command import Person

from rbee.host.audit.entries import EventType
from rbee.host.audit.file import AuditFile, AuditLimits, Pending
from rbee.keeper.audit import Wanted
from rbee.keeper.audit_follow import Reader

LIMIT_S = 60.0
ROTATED_OFTEN = AuditLimits(rotate_bytes=1000)


@contextlib.contextmanager
def writing(folder: Path, limits: AuditLimits = ROTATED_OFTEN) -> Iterator[AuditFile]:
    file = AuditFile(folder, limits)
    file.open()
    yield file
    file.close()


def write(file: AuditFile, *workers: str, event: EventType = EventType.WORKER_SPAWN, unix: float = 1.0) -> None:
    for worker in workers:
        file.write(Pending(unix, event, "system", {"worker_id": worker}))


def workers_of(reader: Reader, **wanted: str) -> list[str]:
    return [entry["details"]["worker_id"] for entry in reader.entries(Wanted(**wanted))]


@pytest.fixture
def person(tmp_path: Path) -> Person:
    return Person(tmp_path)


@contextlib.contextmanager
def following(person: Person, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """The command; killed where it has not come to its end within the limit."""
    process = person.start("audit", "tail", "--follow", *arguments)
    late = threading.Timer(LIMIT_S, process.kill)
    late.start()
    try:
        with process:
            yield process
            process.kill()
    finally:
        late.cancel()


def lines(process: subprocess.Popen[str], count: int) -> list[dict[str, Any]]:
    assert process.stdout is not None
    read = [process.stdout.readline() for _ in range(count)]
    assert all(read), "the command ended before it told of them"
    return [json.loads(line) for line in read]


def told(process: subprocess.Popen[str], count: int) -> list[str]:
    return [entry["details"]["worker_id"] for entry in lines(process, count)]


def test_each_entry_is_told_once_over_rotations_and_ctrl_c_is_130(person: Person, tmp_path: Path) -> None:
    folder = tmp_path / "queen"
    with writing(folder) as file:
        write(file, *(f"old{number}" for number in range(10)))
        with following(person, "--json", "--lines", 2, "--dir", folder) as process:
            assert told(process, 2) == ["old8", "old9"]
            for number in range(30):
                write(file, f"new{number}")
                if number % 10 == 0:
                    assert told(process, 1) == [f"new{number}"]
                elif number % 10 == 9:
                    assert told(process, 9) == [f"new{each}" for each in range(number - 8, number + 1)]
            assert len(list(folder.iterdir())) > 5
            process.send_signal(signal.SIGINT)
            rest, complaint = process.communicate(timeout=LIMIT_S)
            assert (process.returncode, rest) == (130, ""), complaint


def test_only_what_fits_is_told_of_both_logs(person: Person, tmp_path: Path) -> None:
    with writing(tmp_path / "queen") as queen, writing(tmp_path / "hive") as hive:
        write(queen, "q1")
        write(hive, "h1", unix=2.0)
        folders = ("--dir", tmp_path / "queen", "--dir", tmp_path / "hive")
        with following(person, "--json", "--event", "worker.spawn", *folders) as process:
            assert told(process, 2) == ["q1", "h1"]
            write(queen, "q2", event=EventType.WORKER_STOP)
            write(queen, "q3")
            assert told(process, 1) == ["q3"]
            write(hive, "h2")
            assert told(process, 1) == ["h2"]


def test_a_folder_without_a_log_is_told_at_once(person: Person, tmp_path: Path) -> None:
    done = person.rbee("audit", "tail", "--follow", "--dir", tmp_path / "none")
    assert done.returncode == 1
    assert "there is no audit.jsonl" in done.stderr


def test_a_torn_line_is_read_once_it_is_whole_or_not_at_all(tmp_path: Path) -> None:
    with writing(tmp_path) as file:
        write(file, "a")
        reader = Reader(tmp_path)
        with contextlib.closing(reader):
            assert workers_of(reader) == ["a"]
            current = tmp_path / "audit.jsonl"
            whole = current.read_bytes()
            with current.open("ab") as torn:
                torn.write(whole[:40])
            assert workers_of(reader) == []
            with current.open("r+b") as mended:
                mended.truncate(len(whole))
            write(file, "b")
            assert workers_of(reader, event="worker") == ["b"]


def test_where_the_file_in_hand_was_removed_the_oldest_one_left_follows(tmp_path: Path) -> None:
    with writing(tmp_path) as file, contextlib.closing(Reader(tmp_path)) as reader:
        write(file, "a")
        assert workers_of(reader) == ["a"]
        write(file, *(f"w{number}" for number in range(20)))
        min(tmp_path.glob("audit.jsonl.*")).unlink()
        assert workers_of(reader) == [f"w{number}" for number in range(20)]


def test_what_is_rotated_away_between_two_readings_is_read_in_its_order(tmp_path: Path) -> None:
    with writing(tmp_path) as file, contextlib.closing(Reader(tmp_path)) as reader:
        write(file, "first")
        assert workers_of(reader) == ["first"]
        names = [f"w{number}" for number in range(50)]
        write(file, *names)
        assert workers_of(reader) == names
        assert workers_of(reader) == []


def test_a_log_whose_folder_was_removed_has_nothing_new_until_it_is_there_again(tmp_path: Path) -> None:
    folder = tmp_path / "hive"
    with contextlib.closing(Reader(folder)) as reader:
        with writing(folder) as file:
            write(file, "a")
            assert workers_of(reader) == ["a"]
        shutil.rmtree(folder)
        assert workers_of(reader) == []
        with writing(folder) as file:
            write(file, "b")
            assert workers_of(reader) == ["b"]
