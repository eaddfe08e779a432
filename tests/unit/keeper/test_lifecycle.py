"""Starting and stopping a worker by way of a queen: waiting on her events, and what is said when it goes wrong."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from tests.unit.keeper.command import Person
from tests.unit.keeper.peer import STREAM_HEAD, Asked, Peer, Send, answer, error, event

from rbee.keeper import lifecycle, session
from rbee.keeper.settings import Flags
from rbee.wire.errors import WorkerFailed

Row = dict[str, Any]
LOADING = {"state": "loading", "progress": {"stage": "layers", "done": 28, "total": 32, "unit": "layers"}}


def row(**fields: object) -> Row:
    life = {"invocation_id": "second", "since_unix": 2.0}
    return {"worker_id": "w1", "hive_id": "h", "boot_id": "b", "revision": 1, "state": "idle"} | life | fields


class Queen:
    """A queen with one worker that goes through ``lives`` once something is asked of it, one step at each event."""

    def __init__(self, before: Row | None, steps: Sequence[Row | None]) -> None:
        self._rows = [before, *steps]
        self._at = 0
        self._asked = threading.Event()
        self.ended = threading.Event()

    @property
    def now(self) -> Row | None:
        return self._rows[self._at]

    def act(self) -> None:
        """Begin with the lives."""
        self._asked.set()

    def __call__(self, asked: Asked, send: Send) -> None:
        if asked.path == "/v2/workers/list":
            send(answer({"workers": [self.now] if self.now else []}))
        elif asked.path == "/v2/events":
            self._tell(send)
        elif asked.path in ("/v2/workers/spawn", "/v2/workers/shutdown"):
            send(answer({"success": True, "message": "ok"}))
            self.act()
        else:
            send(error("NOT_FOUND", "no such route", 404))

    def _tell(self, send: Send) -> None:
        send(STREAM_HEAD)
        self._asked.wait(10)
        while self._at + 1 < len(self._rows):
            self._at += 1
            send(event("worker", {"anything": self._at}))
            self.ended.wait(0.1)
        self.ended.wait(10)


def rbee(person: Person, folder: Path, queen: Queen, *arguments: str) -> tuple[int, str, str, list[str]]:
    with Peer(queen, folder / "q.sock") as peer:
        done = person.rbee("--socket", folder / "q.sock", "worker", *arguments)
        queen.ended.set()
    acts = [f"{asked.path} {asked.body.decode()}" for asked in peer.asked if asked.method == "POST"]
    return done.returncode, done.stdout, done.stderr, acts


def test_spawn_waits_until_the_worker_is_ready(person: Person, folder: Path) -> None:
    queen = Queen(None, [None, row(**LOADING), row()])
    code, out, told, acts = rbee(person, folder, queen, "spawn", "w1", "--model", "file:///m/x", "--slots", "2")
    assert (code, out) == (0, "worker w1: idle\n")
    assert "loading: layers" in told
    sent = json.loads(acts[0].partition(" ")[2])
    assert (sent["worker_id"], sent["model_ref"], sent["slots"]) == ("w1", "file:///m/x", 2)


def test_spawn_without_waiting(person: Person, folder: Path) -> None:
    code, out, _, _ = rbee(person, folder, Queen(None, []), "spawn", "w1", "--no-wait", "--json")
    assert (code, json.loads(out)) == (0, {"worker_id": "w1", "state": "loading"})


def test_a_failed_start_tells_the_reason_and_where_the_log_is(person: Person, folder: Path) -> None:
    failed = row(state="failed", reason="exit-code", status_text="model.onnx is not there")
    code, _, told, _ = rbee(person, folder, Queen(None, [row(**LOADING), failed]), "start", "w1")
    assert code == 1
    assert "WORKER_FAILED" in told
    assert "exit-code: model.onnx is not there" in told
    assert "rbee worker logs w1" in told


@pytest.mark.parametrize("why", [{"reason": "LOADING_TIMEOUT"}, {"result": "timeout"}])
def test_loading_without_progress_is_told_with_the_time_and_the_log(
    person: Person, folder: Path, why: dict[str, str]
) -> None:
    failed = row(state="failed", status_text="layers 28/32", **why)
    code, _, told, _ = rbee(person, folder, Queen(None, [row(**LOADING), failed]), "start", "w1")
    assert code == 1
    assert "LOADING_TIMEOUT" in told
    assert "layers 28/32" in told
    assert " s (last:" in told
    assert "rbee worker logs w1" in told


def test_the_failure_of_an_earlier_life_is_not_taken_for_this_one(person: Person, folder: Path) -> None:
    old = row(state="failed", invocation_id="first", since_unix=1.0)
    code, out, _, _ = rbee(person, folder, Queen(old, [old, row(**LOADING), row()]), "start", "w1")
    assert (code, out) == (0, "worker w1: idle\n")


def test_stop_waits_until_the_worker_has_ended(person: Person, folder: Path) -> None:
    queen = Queen(row(), [row(state="draining"), row(state="stopped")])
    code, out, _, acts = rbee(person, folder, queen, "stop", "w1")
    assert (code, out) == (0, "worker w1: stopped\n")
    assert acts == ['/v2/workers/shutdown {"worker_id":"w1","hive_id":"h"}']


def begin_anew(folder: Path, queen: Queen) -> bool:
    async def order() -> None:
        queen.act()

    context = click.Context(click.Command("rbee"), obj=Flags(queen_socket=folder / "q.sock"))
    with Peer(queen, folder / "q.sock"), context:
        try:
            return session.run(lifecycle.begin_anew(session.queen(), "w1", "h", order))
        finally:
            queen.ended.set()


def test_a_worker_that_begins_anew_is_awaited_until_its_other_life_takes_requests(folder: Path) -> None:
    old = row(invocation_id="first")
    # busy and idle again is no other life
    steps = [row(invocation_id="first", state="busy"), old, row(invocation_id="first", state="draining")]
    queen = Queen(old, [*steps, row(**LOADING), row()])
    assert begin_anew(folder, queen)
    assert queen.now == row()


def test_a_worker_that_has_ended_does_not_begin_anew(folder: Path) -> None:
    queen = Queen(row(state="stopped"), [row(**LOADING)])
    assert not begin_anew(folder, queen)
    assert queen.now == row(state="stopped")


def test_the_failure_of_the_other_life_is_told(folder: Path) -> None:
    queen = Queen(row(invocation_id="first"), [row(**LOADING), row(state="failed", reason="exit-code")])
    with pytest.raises(WorkerFailed, match="exit-code"):
        begin_anew(folder, queen)


def test_an_unknown_worker_is_named(person: Person, folder: Path) -> None:
    code, _, told, acts = rbee(person, folder, Queen(None, []), "stop", "w1")
    assert code == 1
    assert "WORKER_NOT_FOUND" in told
    assert "rbee worker list" in told
    assert acts == []


def test_a_worker_of_the_same_name_on_two_hives_must_be_chosen(person: Person, folder: Path) -> None:
    def two(asked: Asked, send: Send) -> None:
        send(answer({"workers": [row(), row(hive_id="other")]}))

    with Peer(two, folder / "q.sock"):
        done = person.rbee("--socket", folder / "q.sock", "worker", "stop", "w1")
    assert done.returncode == 1
    assert "--node" in done.stderr


def test_a_bad_worker_id_is_refused_before_anything_is_sent(person: Person, folder: Path) -> None:
    with Peer(Queen(None, []), folder / "q.sock") as peer:
        done = person.rbee("--socket", folder / "q.sock", "worker", "start", "a_b;rm")
    assert done.returncode == 1
    assert peer.connections == 0
