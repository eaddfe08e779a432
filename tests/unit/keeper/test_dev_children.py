"""The children of `rbee dev`: ready by sd_notify, ended for certain, and what they say when they die."""

import asyncio
import os
import sys
import textwrap
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from rbee.keeper.dev import children, folders
from rbee.keeper.dev.children import Child, ChildFailed
from rbee.keeper.failure import CommandFailed

READY = """
import os, signal, socket, sys, time
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
print("starting", flush=True)
notify.send(b"STATUS=soon")
notify.send(b"READY=1\\nSTATUS=here")
"""
Make = Callable[[str], Child]


@pytest.fixture
async def make(folder: Path) -> AsyncIterator[Make]:
    """Makes children from the text of a program; they are gone at the end."""
    made: list[Child] = []

    def one(program: str) -> Child:
        argv = [sys.executable, "-c", textwrap.dedent(program)]
        made.append(Child("tester", argv, folder / "log", folder / "notify", None))
        return made[-1]

    yield one
    for child in made:
        await child.stop(0.0)


async def test_ready_then_a_clean_stop(make: Make) -> None:
    child = make(READY + "time.sleep(60)")
    await child.start(children.clean_environment(os.environ))
    await child.ready(20)
    assert child.running
    assert await child.stop(10)
    assert not child.running


async def test_a_child_that_dies_first_is_told_with_its_last_lines(make: Make) -> None:
    child = make("import sys; print('the reason'); sys.exit(3)")
    await child.start(os.environ)
    with pytest.raises(ChildFailed, match=r"(?s)exit code 3.*\| the reason"):
        await child.ready(20)


async def test_a_child_that_never_gets_ready(make: Make) -> None:
    child = make("import time; time.sleep(60)")
    await child.start(os.environ)
    with pytest.raises(ChildFailed, match="not ready within"):
        await child.ready(0.3)


async def test_a_child_that_ignores_sigterm_is_killed(make: Make) -> None:
    child = make("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)" + READY + "time.sleep(60)")
    await child.start(os.environ)
    await child.ready(20)
    assert not await child.stop(0.3)
    assert "killed by signal 9" in child.death().message


async def test_a_death_later_on_is_heard(make: Make) -> None:
    child = make(READY + "time.sleep(0.1); os.kill(os.getpid(), signal.SIGSEGV)")
    await child.start(os.environ)
    await child.ready(20)
    async with asyncio.timeout(10):
        assert "killed by signal 11" in (await child.death_of_child()).message


def test_what_a_service_manager_meant_for_us_is_not_passed_on() -> None:
    given = {"NOTIFY_SOCKET": "x", "LISTEN_FDS": "1", "WATCHDOG_USEC": "1", "CREDENTIALS_DIRECTORY": "x", "PATH": "p"}
    clean = children.clean_environment(given)
    assert set(clean) & set(given) == {"PATH"}
    assert clean["ORT_DISABLE_TELEMETRY"] == "1"


def test_folders_are_private_and_go_away(folder: Path) -> None:
    environment = {"XDG_STATE_HOME": str(folder / "state"), "XDG_RUNTIME_DIR": str(folder)}
    with folders.folders(environment) as made:
        folders.write_files(made, folders.Ports(8080, 9200))
        assert made.run.stat().st_mode & 0o777 == 0o700
        tokens = [made.token(name) for name in folders.TOKENS]
        assert {path.stat().st_mode & 0o777 for path in tokens} == {0o600}
        assert len({path.read_text() for path in tokens}) == 4
        with pytest.raises(CommandFailed, match="runs already"), folders.folders(environment):
            pass
    assert not made.run.exists()
    assert made.models.is_dir()


def test_a_taken_port_gives_the_next_free_one() -> None:
    first = folders.free_ports(28080).queen
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        assert folders.free_ports(first).queen > first
