"""Steps of features/top.feature."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from tests.behaviour.support.person import RBEE, Done, Person
from tests.behaviour.support.stack import HIVE_ID, Stack

scenarios("features/top.feature")

TEXT_MODEL, WORKER = "bee-talk", "talk"
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CLEARED = re.compile(r"\x1b\[H")
_ALTERNATE_OFF = "\x1b[?1049l"
_SIZE = struct.pack("HHHH", 40, 200, 0, 0)


class Terminal:
    """A pseudo-terminal of 200 columns on which a command runs."""

    def __init__(self, argv: list[str], env: dict[str, str]) -> None:
        self.master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, _SIZE)
        self.before = termios.tcgetattr(self.slave)
        self.out = ""
        self.process = subprocess.Popen(
            argv, env=env | {"TERM": "xterm"}, stdin=self.slave, stdout=self.slave, stderr=self.slave,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip

    def read(self, limit_s: float) -> None:
        if select.select([self.master], [], [], limit_s)[0]:
            self.out += os.read(self.master, 65536).decode(errors="replace")

    @property
    def screen(self) -> str:
        """What was drawn last."""
        return _ESCAPE.sub("", _CLEARED.split(self.out)[-1])

    def wait_for(self, pattern: str, without: str = "^$", limit_s: float = 60) -> None:
        """Wait until the last drawing has ``pattern`` and not ``without``."""
        end = time.monotonic() + limit_s
        while not (re.search(pattern, self.screen) and not re.search(without, self.screen)):
            assert time.monotonic() < end, f"no {pattern!r} on: {self.screen}"
            assert self.process.poll() is None, self.out
            self.read(0.5)

    def press(self, key: bytes) -> None:
        os.write(self.master, key)

    def wait(self, limit_s: float = 30) -> int:
        end = time.monotonic() + limit_s
        while self.process.poll() is None:
            assert time.monotonic() < end, f"still running: {self.screen}"
            self.read(0.2)
        self.read(0)
        return self.process.returncode

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@dataclass
class Seen:
    """What a scenario has seen so far."""

    done: Done | None = None
    picture: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
def person(stack: Stack, tmp_path: Path) -> Person:
    return Person(tmp_path, "--socket", stack.run_dir / "queen.sock")


@pytest.fixture
def screens(person: Person) -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for screen in opened:
        screen.close()


@given("a queen, a hive with the label fast-disk, and a worker of the text model that is idle")
def running(stack: Stack) -> None:
    stack.hive_config = {"labels": ["fast-disk"]}
    stack.start()
    stack.run_worker(WORKER, TEXT_MODEL, idle_limit_s=0)


# -- one look --------------------------------------------------------------------------------------------------------


@when("rbee status is run")
def status(person: Person, seen: Seen) -> None:
    seen.done = person.rbee("status")


@then("it shows the machine with its free memory, its label and one worker, and the worker talk, idle")
def status_shown(seen: Seen) -> None:
    assert seen.done is not None
    assert seen.done.code == 0, seen.done.err
    lines = [line.split("\t") for line in seen.done.out.splitlines()]
    (machine,) = [line for line in lines if line[0] == HIVE_ID and line[1] == "live"]
    assert re.fullmatch(r"[\d.]+ [KMGT]?i?B of [\d.]+ [KMGT]?i?B", machine[4]), machine
    assert machine[-2:] == ["1", "fast-disk"]
    (worker,) = [line for line in lines if line[0] == WORKER]
    assert worker[1:4] == [HIVE_ID, "idle", TEXT_MODEL]


@contextlib.contextmanager
def written(stack: Stack) -> Iterator[None]:
    """Texts are asked for, one after the other, for the length of the block."""
    stop, first = threading.Event(), threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            answer = stack.client.post("/v1/completions", {"model": TEXT_MODEL, "prompt": "bees", "max_tokens": 8})
            assert answer.status == 200, answer.body
            first.set()

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        assert first.wait(60)
        yield
    finally:
        stop.set()
        thread.join(90)


@when("rbee top --once --json is run while texts are written")
def pictured(stack: Stack, person: Person, seen: Seen) -> None:
    with written(stack):
        done = person.rbee("top", "--once", "--json")
    assert done.code == 0, done.err
    seen.picture = json.loads(done.out)


@then("the picture has more than 0 requests and tokens a second, and a median duration")
def picture_has_rates(seen: Seen) -> None:
    figures = seen.picture["figures"]
    assert figures["requests_per_s"] > 0, figures
    assert figures["tokens_per_s"] > 0, figures
    assert 0 < figures["p50_ms"] < 60_000, figures
    (hive,) = seen.picture["hives"]
    assert (hive["hive_id"], hive["stale"], hive["machine"]["labels"]) == (HIVE_ID, False, ["fast-disk"])


@then("the worker talk has rates of its own")
def worker_has_rates(seen: Seen) -> None:
    (worker,) = seen.picture["workers"]
    assert worker["report"]["worker_id"] == WORKER
    assert worker["rates"]["tokens_per_s"] > 0


# -- the live screen -------------------------------------------------------------------------------------------------


def opened(person: Person, screens: list[Terminal], *options: str) -> Terminal:
    screens.append(Terminal([*RBEE, *person.flags, "top", *options], person.env))
    return screens[-1]


@when("rbee top is run on a terminal, figures being asked for once a minute")
def live_by_events(person: Person, screens: list[Terminal]) -> None:
    opened(person, screens, "--every", "60")


@when("rbee top is run on a terminal")
def live(person: Person, screens: list[Terminal]) -> None:
    opened(person, screens, "--every", "0.5")


@then(parsers.re(r"the screen shows talk as (?P<state>idle|stopped)$"))
def shows_state(screens: list[Terminal], state: str) -> None:
    screens[-1].wait_for(rf"{WORKER} +{HIVE_ID} +{state}")


@then("the screen shows talk as idle, and nothing to attend to")
def shows_idle_again(screens: list[Terminal]) -> None:
    screens[-1].wait_for(rf"{WORKER} +{HIVE_ID} +idle", without="attention")


@then(parsers.parse("the screen says: {words}"))
def says(screens: list[Terminal], words: str) -> None:
    screens[-1].wait_for(words)


@when("the worker is stopped")
def worker_stops(person: Person) -> None:
    done = person.rbee("worker", "stop", WORKER)
    assert done.code == 0, done.err


@when("the queen is stopped")
def queen_stops(stack: Stack) -> None:
    assert stack.queen is not None
    stack.queen.stop()


@when("the queen is started again")
def queen_starts(stack: Stack) -> None:
    stack.start_queen()


@when(parsers.parse("{key} is pressed"))
def pressed(screens: list[Terminal], key: str) -> None:
    screens[-1].press({"q": b"q", "Ctrl+C": b"\x03"}[key])


@then(parsers.parse("it ends with {code:d} and the terminal is as it was before"))
def ended(screens: list[Terminal], code: int) -> None:
    screen = screens[-1]
    assert screen.wait() == code, screen.out
    assert termios.tcgetattr(screen.slave) == screen.before
    assert _ALTERNATE_OFF in screen.out
