"""The audit log: its chain, its files, what a crash or a full disk leaves, and what a flood of refusals writes."""

import asyncio
import hashlib
import json
import logging
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from rbee.host.audit.callers import BURST, AuditedCallers
from rbee.host.audit.chain import Flaw, Verdict, files_of, verify
from rbee.host.audit.entries import GENESIS, SYSTEM, AuditLevel, EventType
from rbee.host.audit.file import LIMITS, AuditFile, AuditLimits, Pending, last_hash
from rbee.host.audit.log import AuditLog
from rbee.host.audit.metrics import AuditMetrics
from rbee.wire.auth import Identity, Role, Secret

NAME = "audit.jsonl"


def one(number: int = 1, event: EventType = EventType.WORKER_SPAWN) -> Pending:
    return Pending(1_700_000_000.25 + number, event, "uid:0", {"worker_id": f"w{number}", "node": "bee"})


def written(folder: Path, entries: int, limits: AuditLimits = LIMITS) -> AuditFile:
    file = AuditFile(folder, limits)
    for number in range(entries):
        file.write(one(number))
        file.keep_budget()
    return file


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in files_of(folder) for line in path.read_text().splitlines()]


def whole(folder: Path) -> Verdict:
    return verify(files_of(folder), whole_log=True)


def test_entries_form_a_chain_that_begins_with_zeros(tmp_path: Path) -> None:
    written(tmp_path, 3).close()
    entries = lines(tmp_path)
    assert [entry["previous_hash"] for entry in entries] == [GENESIS, *(entry["entry_hash"] for entry in entries[:2])]
    assert set(entries[0]) == {"timestamp", "event_type", "actor", "details", "previous_hash", "entry_hash"}
    assert entries[0]["timestamp"] == "2023-11-14T22:13:20.250000Z"
    assert whole(tmp_path) == Verdict(3, 1, entries[2]["entry_hash"])
    # the hash can be computed with the standard library alone, from the canonical form that the man page states
    fields = {key: value for key, value in entries[1].items() if key != "entry_hash"}
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert hashlib.sha256(canonical).hexdigest() == entries[1]["entry_hash"]


def test_the_file_is_for_its_own_group_to_read(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        written(tmp_path, 1).close()
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / NAME).stat().st_mode) == 0o640


def edited(path: Path, number: int, change: Callable[[dict[str, Any]], object]) -> None:
    raw = path.read_text().splitlines()
    entry = json.loads(raw[number - 1])
    change(entry)
    raw[number - 1] = json.dumps(entry, separators=(",", ":"))
    path.write_text("\n".join(raw) + "\n")


def test_an_entry_that_was_edited_is_named_and_later_ones_are_flagged(tmp_path: Path) -> None:
    written(tmp_path, 5).close()
    edited(tmp_path / NAME, 3, lambda entry: entry["details"].update(worker_id="other"))
    found = whole(tmp_path)
    assert [(broken.number, broken.line, broken.flaw) for broken in found.broken] == [
        (3, 3, Flaw.CHANGED), (4, 4, Flaw.AFTER), (5, 5, Flaw.AFTER),
    ]  # fmt: skip


def test_an_entry_that_was_edited_with_its_hash_breaks_the_next_one(tmp_path: Path) -> None:
    written(tmp_path, 4).close()
    raw = (tmp_path / NAME).read_text().splitlines()
    entry = json.loads(raw[1])
    entry["actor"] = "uid:7"
    canonical = json.dumps(
        {key: value for key, value in entry.items() if key != "entry_hash"}, sort_keys=True, separators=(",", ":")
    )
    entry["entry_hash"] = hashlib.sha256(canonical.encode()).hexdigest()
    raw[1] = json.dumps(entry)
    (tmp_path / NAME).write_text("\n".join(raw) + "\n")
    assert [(broken.number, broken.flaw) for broken in whole(tmp_path).broken] == [
        (3, Flaw.UNCHAINED), (4, Flaw.AFTER),
    ]  # fmt: skip


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_entry_that_was_taken_out_is_missed(tmp_path: Path, taken: int) -> None:
    written(tmp_path, 5).close()
    path = tmp_path / NAME
    raw = path.read_text().splitlines()
    del raw[taken]
    path.write_text("\n".join(raw) + "\n")
    first = whole(tmp_path).broken[0]
    assert (first.number, first.flaw) == (taken + 1, Flaw.UNCHAINED if taken else Flaw.NO_BEGINNING)


def test_a_tail_that_was_cut_off_is_missed_by_its_hash(tmp_path: Path) -> None:
    written(tmp_path, 5).close()
    path = tmp_path / NAME
    raw = path.read_text().splitlines()
    head = json.loads(raw[-1])["entry_hash"]
    path.write_text("\n".join(raw[:3]) + "\n")
    assert whole(tmp_path).whole
    assert not verify([path], whole_log=True, look_for=head).whole
    assert verify([path], whole_log=True, look_for=json.loads(raw[2])["entry_hash"]).whole


def test_what_is_no_entry_is_said_to_be_none(tmp_path: Path) -> None:
    written(tmp_path, 2).close()
    path = tmp_path / NAME
    good = path.read_bytes()
    for junk in (b"[]\n", b"\x00\xff\n", b'{"previous_hash":"","entry_hash":"","details":7}\n', b"x" * 100_000 + b"\n"):
        path.write_bytes(good + junk)
        assert whole(tmp_path).broken[0].flaw is Flaw.UNREADABLE


def test_a_restart_goes_on_with_the_chain(tmp_path: Path) -> None:
    for _ in range(3):
        written(tmp_path, 2).close()
    assert whole(tmp_path).entries == 6
    assert whole(tmp_path).whole


@pytest.mark.parametrize("torn", [b'{"timestamp":"2026', b"\x00" * 300])
def test_a_torn_last_line_is_taken_away_and_said(tmp_path: Path, torn: bytes) -> None:
    written(tmp_path, 2).close()
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes() + torn)
    written(tmp_path, 1).close()
    assert whole(tmp_path).whole
    assert [entry["event_type"] for entry in lines(tmp_path)][2:] == ["audit.recovered", "worker.spawn"]
    assert lines(tmp_path)[2]["details"] == {"dropped_bytes": len(torn)}


def test_a_last_line_that_lacks_its_end_alone_is_completed(tmp_path: Path) -> None:
    written(tmp_path, 2).close()
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    written(tmp_path, 1).close()
    assert [entry["event_type"] for entry in lines(tmp_path)] == ["worker.spawn"] * 3
    assert whole(tmp_path).whole


def test_a_last_line_that_somebody_spoilt_stays_and_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    written(tmp_path, 2).close()
    path = tmp_path / NAME
    path.write_bytes(path.read_bytes() + b"nothing to see here\n")
    written(tmp_path, 1).close()
    assert any("is no entry" in record.message and record.levelno > logging.CRITICAL for record in caplog.records)
    assert [(broken.number, broken.flaw) for broken in whole(tmp_path).broken] == [
        (3, Flaw.UNREADABLE), (4, Flaw.AFTER),
    ]  # fmt: skip


def test_the_file_is_rotated_and_the_chain_goes_on(tmp_path: Path) -> None:
    limits = AuditLimits(rotate_bytes=2_000, budget_bytes=1_000_000)
    written(tmp_path, 20, limits).close()
    files = files_of(tmp_path)
    assert len(files) > 2
    assert all(path.stat().st_size <= 2_000 for path in files)
    assert all(path.name.startswith(f"{NAME}.20") and path.name.endswith("Z") for path in files[:-1])
    assert whole(tmp_path).whole and whole(tmp_path).entries == 20
    written(tmp_path, 1, limits).close()
    assert whole(tmp_path).entries == 21
    # a file of the middle is checked for itself; that its beginning is elsewhere is no flaw of it
    middle = verify(files[1:2], whole_log=False)
    assert middle.whole and middle.begins_after == last_hash(files[0])
    files[0].unlink()
    assert whole(tmp_path).broken[0].flaw is Flaw.NO_BEGINNING


def test_a_clock_that_goes_back_leaves_the_order_of_files(tmp_path: Path) -> None:
    times = iter(range(2_000_000_000, 1_000_000_000, -100_000_000))
    file = AuditFile(tmp_path, AuditLimits(rotate_bytes=300), clock=lambda: float(next(times)))
    for number in range(6):
        file.write(one(number))
    file.close()
    assert len(files_of(tmp_path)) == 6
    assert whole(tmp_path).whole


def test_near_the_budget_there_is_a_warning_and_then_the_oldest_file_goes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = AuditLimits(rotate_bytes=10_000, budget_bytes=100_000)
    file = AuditFile(tmp_path, limits)
    said: list[tuple[int, str]] = []
    for number in range(1000):
        file.write(one(number))
        file.keep_budget()
        said += [(file.total, record.message) for record in caplog.records if "of its room" in record.message]
        caplog.clear()
    file.close()
    warnings = [total for total, message in said if "95 %" in message]
    errors = [total for total, message in said if "99 %" in message]
    assert len(warnings) - 1 <= len(errors) <= len(warnings) and len(errors) > 1
    assert all(95_000 <= total < 99_000 for total in warnings)
    assert file.total == sum(path.stat().st_size for path in files_of(tmp_path)) < 99_000
    removed = [entry for entry in lines(tmp_path) if entry["event_type"] == "audit.removed"]
    assert removed
    assert whole(tmp_path).whole, "the first entry follows a file of which an entry says that it was removed"
    files_of(tmp_path)[0].unlink()
    assert whole(tmp_path).broken[0].flaw is Flaw.NO_BEGINNING


# the log


def log_in(folder: Path, level: AuditLevel = AuditLevel.CHANGES, waiting: int = 1000) -> AuditLog:
    return AuditLog(folder, level, AuditMetrics(CollectorRegistry(), "test"), most_waiting=waiting)


def lost(log: AuditLog) -> float:
    return float(log._metrics.lost._value.get())


async def test_a_log_says_when_it_begins_and_ends(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.start(daemon="queen")
    log.record(EventType.WORKER_STOP, "uid:0", worker_id="w", reason=None)
    log.record(EventType.INFERENCE_START, "token:abcdef", model="m")
    await log.close()
    assert [(entry["event_type"], entry["details"]) for entry in lines(tmp_path)] == [
        ("audit.started", {"level": "changes", "daemon": "queen"}),
        ("worker.stop", {"worker_id": "w"}),
        ("audit.stopped", {}),
    ]


async def test_another_level_is_said_whichever_way_it_changes(tmp_path: Path) -> None:
    log = log_in(tmp_path, AuditLevel.OFF)
    log.start()
    log.record(EventType.WORKER_STOP, "uid:0")
    log.use(AuditLevel.ALL)
    log.record(EventType.INFERENCE_START, "token:abcdef")
    log.use(AuditLevel.OFF)
    log.record(EventType.WORKER_STOP, "uid:0")
    await log.close()
    found = [(entry["event_type"], entry["details"].get("level")) for entry in lines(tmp_path)]
    assert found == [("audit.level", "all"), ("inference.start", None), ("audit.level", "off")]


async def test_a_log_that_is_off_makes_no_file(tmp_path: Path) -> None:
    log = log_in(tmp_path / "state", AuditLevel.OFF)
    log.start()
    await log.close()
    assert not (tmp_path / "state").exists()


async def test_a_full_queue_is_counted_alerted_and_an_entry_says_how_many(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = log_in(tmp_path, waiting=4)
    for number in range(10):
        log.record(EventType.WORKER_STOP, "uid:0", worker_id=f"w{number}")
    assert lost(log) == 6
    assert "queue is full" in log.problem
    assert sum("are lost" in record.message for record in caplog.records) == 1
    log._thread.start()
    await log.close()
    assert [entry["details"].get("entries") for entry in lines(tmp_path)].count(6) == 1
    assert whole(tmp_path).whole
    assert log.problem == ""


async def test_a_disk_that_refuses_is_alerted_and_an_entry_says_how_many_once_it_takes_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "state"
    folder.write_text("a file where a folder should be")
    log, refused = log_in(folder), threading.Event()
    caplog.handler.addFilter(lambda record: refused.set() is None)
    log.start()
    await asyncio.to_thread(refused.wait, 10)
    folder.unlink()
    log.record(EventType.WORKER_STOP, "uid:0")
    await log.close()
    counted = [entry["details"]["entries"] for entry in lines(folder) if entry["event_type"] == "audit.lost"]
    assert counted == [1]
    assert any("are lost" in record.message for record in caplog.records)
    assert lost(log) == 1
    assert whole(folder).whole


async def test_a_token_that_this_process_holds_is_never_written(tmp_path: Path) -> None:
    secret = Secret("a-token-of-this-process")
    log = log_in(tmp_path)
    log.start()
    log.record(EventType.MODEL_FETCH, secret.reveal(), model=f"x{secret.reveal()}", many=[secret.reveal()])
    await log.close()
    assert secret.reveal() not in (tmp_path / NAME).read_text()
    assert "[REDACTED]" in (tmp_path / NAME).read_text()


async def test_a_flood_of_refusals_is_counted_and_not_written_out(tmp_path: Path) -> None:
    log = log_in(tmp_path)
    log.start()
    callers = AuditedCallers(log)
    for _ in range(5000):
        callers.refused("unknown_token", "token:abcdef", "/v1/models", "192.0.2.1")
    callers.let_in(Identity(Role.API, "token:123456"))
    callers.sum_up()
    await log.close()
    refusals = [entry for entry in lines(tmp_path) if entry["event_type"] == "auth.failure"]
    assert len(refusals) <= BURST + 5
    assert refusals[0]["actor"] == "token:abcdef"
    assert refusals[0]["details"] == {
        "fingerprint": "token:abcdef", "reason": "unknown_token", "route": "/v1/models", "peer": "192.0.2.1",
    }  # fmt: skip
    assert refusals[-1]["actor"] == SYSTEM
    assert len(refusals) - 1 + refusals[-1]["details"]["requests"] == 5000


async def test_who_was_let_in_is_written_where_everything_is(tmp_path: Path) -> None:
    log = log_in(tmp_path, AuditLevel.ALL)
    log.start()
    AuditedCallers(log).let_in(Identity(Role.API, "token:123456", client="alice"), "an-id")
    await log.close()
    assert lines(tmp_path)[1]["details"] == {
        "fingerprint": "token:123456", "role": "api", "client": "alice", "correlation_id": "an-id",
    }  # fmt: skip
