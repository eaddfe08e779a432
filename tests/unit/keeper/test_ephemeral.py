"""What a call starts for itself: units told in their order, commands that fail, and every end tried."""

import json
import sys
from pathlib import Path

import click
import pytest
from tests.unit.keeper.peer import STREAM_HEAD, Asked, Peer, Send, answer, error

from rbee.keeper import ephemeral
from rbee.keeper.ephemeral import Ends, end_workers, stop_hive
from rbee.keeper.failure import CommandFailed
from rbee.keeper.nodes.units import Units, here, workers_up
from rbee.keeper.settings import Flags

SYSTEMCTL = f"""#!{sys.executable}
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
arguments = [one for one in sys.argv[1:] if not one.startswith("--")]
with (folder / "told").open("a") as told:
    told.write(" ".join(arguments) + "\\n")
states = json.loads((folder / "states").read_text())
if arguments[0] == "is-active":
    print("\\n".join(states.get(unit, "inactive") for unit in arguments[1:]))
    sys.exit(3)
if arguments[0] == "show":
    print("LoadState=" + ("loaded" if arguments[1] in states else "not-found"))
if arguments[0] == "list-units":
    print("\\n".join(f"{{unit}} loaded active running Worker" for unit in states if unit.startswith("rbee-worker@")))
if arguments[0] == "start" and "bad.service" in arguments:
    sys.exit("Job for bad.service failed")
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A systemctl of the test's own, for a host that no systemd runs; what it was told."""
    (tmp_path / "systemctl").write_text(SYSTEMCTL)
    (tmp_path / "systemctl").chmod(0o755)
    (tmp_path / "states").write_text('{"q.socket": "active", "q.service": "failed", "bad.service": "inactive"}')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "told"


def test_only_what_does_not_run_is_started_and_it_is_stopped_in_the_reverse_order(told: Path) -> None:
    units = Units(here, ["q.socket", "q.service", "q.path"])
    idle = units.idle()
    assert idle == ["q.service", "q.path"]
    units.start(idle)
    units.stop(idle)
    assert told.read_text().splitlines()[1:] == [
        "reset-failed q.service q.path", "start q.service q.path", "stop q.path q.service",
    ]  # fmt: skip


def test_units_that_are_not_there_are_not_installed(told: Path) -> None:
    assert Units(here, ["q.socket", "q.service"]).installed
    assert not Units(here, ["other.service"]).installed


def test_a_unit_that_does_not_start_says_why(told: Path) -> None:
    with pytest.raises(CommandFailed, match=r"(?s)start -- bad.service' ended with 1: run it as root.*Job for bad"):
        Units(here, ["bad.service"]).start(["bad.service"])


def test_workers_that_came_up_meanwhile_end_after_their_hive(told: Path) -> None:
    units = {f"rbee-worker@{name}.service": "active" for name in ("before", "late")}
    told.with_name("states").write_text(json.dumps(units | {"rbee-hive.service": "active"}))
    assert workers_up(here) == units.keys()
    stop_hive(here, ["rbee-hive.service"], {"rbee-worker@before.service"})
    stops = [line for line in told.read_text().splitlines() if line.startswith("stop")]
    assert stops == ["stop rbee-hive.service", "stop rbee-worker@late.service"]


def test_a_command_that_is_not_there_or_does_not_end(told: Path) -> None:
    with pytest.raises(CommandFailed, match="not installed"):
        here(["no-such-command"], 5, True)
    with pytest.raises(CommandFailed, match=r"did not end within 0.1 s"):
        here(["sleep", "30"], 0.1, False)


def test_every_end_is_tried_the_latest_first_and_what_is_left_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []

    def fail() -> None:
        done.append("hive")
        raise CommandFailed("it hangs")

    ends = Ends()
    ends.started("the queen", lambda: done.append("queen"))
    ends.started("the hive of one", fail)
    ends.acts.append(("its workers", lambda: ends.add("a worker", lambda: done.append("worker"))))
    ends.run()
    ends.run()
    assert (done, ends.left) == (["worker", "hive", "queen"], ["the hive of one"])
    said = capsys.readouterr().err
    assert "the hive of one could not be stopped: it hangs" in said
    assert "stopped the queen" in said and "stopped the hive" not in said


class Queen:
    """A queen whose workers stop as they are told, but one; ``late`` is one whose start she has begun, if any.

    ``restless``: there is always one more start under way.
    """

    def __init__(self, *workers: str, stuck: str = "", late: str = "", restless: bool = False) -> None:
        self.states = dict.fromkeys(workers, "idle")
        self._stuck, self._late, self._restless = stuck, late, restless
        self._looks = 0

    def __call__(self, asked: Asked, send: Send) -> None:
        if asked.path == "/v2/events":
            send(STREAM_HEAD)
        elif asked.path == "/health":
            send(answer({"hives": 1, "starting": self._starting()}))
        elif asked.path == "/v2/workers/shutdown":
            worker = asked.json["worker_id"]
            if worker == self._stuck:
                send(error("HIVE_ERROR", "its hive does not answer", 502))
                return
            self.states[worker] = "stopped"
            send(answer({"success": True, "message": "ok"}))
        else:
            life = {"hive_id": "h", "boot_id": "b", "revision": 1, "model": "m"}
            send(answer({"workers": [life | {"worker_id": one, "state": state} for one, state in self.states.items()]}))

    def _starting(self) -> int:
        """The hive tells of the start between the first look and the second one."""
        self._looks += 1
        if self._late and self._looks > 1:
            self.states.setdefault(self._late, "loading")
            return 0
        return int(bool(self._late) or self._restless)


def ended(folder: Path, queen: Queen) -> Ends:
    ends = Ends()
    context = click.Context(click.Command("rbee"), obj=Flags(queen_socket=folder / "q.sock"))
    with Peer(queen, folder / "q.sock"), context:
        end_workers(ends, {("h", "before")}, "m", set())
        ends.run()
    return ends


def test_a_worker_that_does_not_stop_does_not_keep_the_others_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queen = Queen("before", "stuck", "other", stuck="stuck")
    assert ended(tmp_path, queen).left == ["worker h/stuck"]
    assert queen.states == {"before": "idle", "stuck": "idle", "other": "stopped"}
    said = capsys.readouterr().err
    assert "worker h/stuck could not be stopped: its hive does not answer" in said
    assert "stopped worker h/other" in said


def test_a_worker_whose_start_was_begun_and_is_in_no_list_yet_is_waited_for_and_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queen = Queen("before", late="placed")
    assert ended(tmp_path, queen).left == []
    assert queen.states == {"before": "idle", "placed": "stopped"}
    assert capsys.readouterr().err.count("waiting, for 60 s at most: the queen has begun to start 1 worker\n") == 1


def test_where_starts_go_on_and_on_the_workers_that_are_known_are_stopped_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ephemeral, "STARTS_LIMIT_S", 0.2)
    queen = Queen("before", "ours", restless=True)
    assert ended(tmp_path, queen).left == ["a worker that is being started"]
    assert queen.states == {"before": "idle", "ours": "stopped"}
    assert "the queen has starts of workers under way for 0.2 s" in capsys.readouterr().err
