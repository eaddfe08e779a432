"""The doctor's checks on folders and answers of a test's own; on a whole machine it runs with the packages' tests."""

import json
from pathlib import Path

import pytest

from rbee import __version__
from rbee.host.machine import DRIVER_ADVICE, driver_is_too_old
from rbee.host.paths import Paths
from rbee.keeper.commands.credentials import FILES, make_token
from rbee.keeper.doctor import device, house, paths
from rbee.keeper.doctor.finding import Finding, Level, run

GOOD_DATE = "Mon, 23 Nov 2026 12:00:00 GMT"
NOON = 1795435200.0


def levels(findings: list[Finding]) -> list[Level]:
    return [finding.level for finding in findings]


@pytest.fixture
def credstore(tmp_path: Path) -> Path:
    for name in FILES:
        make_token(tmp_path / name)
    return tmp_path


def test_tokens_as_they_are_made_are_well(credstore: Path) -> None:
    found = list(house.tokens(credstore))
    assert levels(found) == [Level.OK] * 4
    assert not any((credstore / name).read_text().strip() in finding.message for name in FILES for finding in found)


def test_a_token_that_others_can_read_or_that_is_missing_or_empty_fails_by_name(credstore: Path) -> None:
    (credstore / FILES[0]).chmod(0o644)
    (credstore / FILES[1]).unlink()
    (credstore / FILES[2]).write_text("")
    found = list(house.tokens(credstore))
    assert levels(found) == [Level.FAIL, Level.FAIL, Level.FAIL, Level.OK]
    for name, finding in zip(FILES[:3], found, strict=False):
        assert name in finding.message
        assert finding.todo


def test_a_worker_of_an_older_version_is_named_with_what_restarts_it(tmp_path: Path) -> None:
    facts = {
        "worker_id": "bees", "url": "http://127.0.0.1:8081", "socket": "/s", "model": "m", "model_ref": "file:///m",
        "task": "embed", "backend": "cpu", "device": 0, "slots_total": 1, "version": "0.0.1", "pid": 1,
        "invocation_id": "", "ready_monotonic_us": 1,
    }  # fmt: skip
    for worker, version in (("old", "0.0.1"), ("new", __version__)):
        folder = tmp_path / "workers" / worker
        folder.mkdir(parents=True)
        (folder / "worker.json").write_text(json.dumps(facts | {"worker_id": worker, "version": version}))
    (finding,) = house.versions(Paths(run_dir=tmp_path))
    assert finding.level is Level.WARN
    assert finding.todo == "systemctl restart rbee-worker@old.service"


@pytest.mark.parametrize(("offset", "level"), [(0.9, Level.OK), (-4.0, Level.OK), (7.0, Level.WARN), (-60, Level.WARN)])
def test_clocks_that_differ_by_seconds_are_told(offset: float, level: Level) -> None:
    (finding,) = paths.skew(GOOD_DATE, NOON + offset)
    assert finding.level is level


def test_an_answer_without_a_date_says_nothing_of_clocks() -> None:
    assert list(paths.skew("", NOON)) == []


def test_a_card_without_a_driver_is_seen(tmp_path: Path) -> None:
    card = tmp_path / "0000:01:00.0"
    card.mkdir()
    (card / "vendor").write_text("0x10de\n")
    (card / "class").write_text("0x030200\n")
    found = list(device.device(tmp_path, pci=tmp_path))
    if found[0].level is not Level.OK:  # a machine with a driver shows its GPUs instead
        assert (found[0].level, found[0].todo) == (Level.FAIL, f"install {DRIVER_ADVICE}")
    assert any(finding.subject == "runtime" and finding.level is Level.OK for finding in found)


def test_a_driver_of_debians_own_is_too_old_for_cuda_13() -> None:
    assert [driver_is_too_old(version) for version in ("535.261.03", "550.163.01", "580.65.06", "615.71", "")] == [
        *(True, True, False, False, False)
    ]


def test_a_program_that_is_missing_or_fails_never_raises() -> None:
    assert run(["/does/not/exist"]).code == 127
    assert run(["sh", "-c", "echo no >&2; exit 3"]).err == "no\n"


async def test_a_socket_that_nobody_serves_fails_and_one_that_is_missing_warns(tmp_path: Path) -> None:
    (tmp_path / "queen.sock").touch()
    found = [finding async for finding in paths.sockets(tmp_path)]
    assert levels(found) == [Level.FAIL, Level.WARN]
    assert "systemctl status rbee-queen" in found[0].todo
