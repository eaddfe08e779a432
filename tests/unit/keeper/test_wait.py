"""Waiting for a hive's report: at each event of the queen, and at a slow pace where she tells nothing."""

import threading
from pathlib import Path

import click
import pytest
from tests.unit.keeper.peer import STREAM_HEAD, Asked, Peer, Send, answer, event

from rbee.keeper.nodes.failures import StepFailed
from rbee.keeper.nodes.wait import await_hives
from rbee.keeper.settings import Flags


class Queen:
    """A queen that has heard of one more hive at each look, and whose events are ``told`` and then, it may be, end."""

    def __init__(self, *, told: int, ends: bool) -> None:
        self.looks = 0
        self.over = threading.Event()
        self._told = told
        self._ends = ends

    def __call__(self, asked: Asked, send: Send) -> None:
        if asked.path == "/health":
            self.looks += 1
            send(answer({"hives": self.looks}))
            return
        send(STREAM_HEAD)
        for number in range(self._told):
            send(event("hive", {"number": number}))
            self.over.wait(0.05)
        if not self._ends:
            self.over.wait(20)


def wait(folder: Path, queen: Queen, count: int, limit_s: float) -> None:
    with (
        Peer(queen, folder / "q.sock"),
        click.Context(click.Command("rbee"), obj=Flags(queen_socket=folder / "q.sock")),
    ):
        try:
            await_hives(count, limit_s)
        finally:
            queen.over.set()


@pytest.mark.parametrize("ends", [True, False])
def test_a_queen_that_tells_nothing_is_asked_at_a_slow_pace(tmp_path: Path, ends: bool) -> None:
    queen = Queen(told=0, ends=ends)
    with pytest.raises(StepFailed, match=r"did not report to the queen within 2.5 s"):
        wait(tmp_path, queen, 1000, 2.5)
    assert queen.looks <= 3


def test_each_event_brings_a_look(tmp_path: Path) -> None:
    queen = Queen(told=20, ends=False)
    wait(tmp_path, queen, 3, 20)
    assert queen.looks == 3


def test_a_pause_of_the_events_does_not_end_them(tmp_path: Path) -> None:
    queen = Queen(told=0, ends=False)
    wait(tmp_path, queen, 3, 20)
    assert queen.looks == 3
