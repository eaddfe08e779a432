"""sd_notify over a real datagram socket, and an environment that children cannot speak from."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rbee.host.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The service manager's end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "3000000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield end


@pytest.fixture
def notifier(manager: socket.socket) -> Iterator[Notifier]:
    found = Notifier.from_environment()
    yield found
    found.close()


def test_the_variables_are_taken_out_of_the_environment(manager: socket.socket, notifier: Notifier) -> None:
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)
    assert notifier.watchdog_interval_s == 1.5
    notifier.ready("ready")
    assert manager.recv(999) == b"READY=1\nSTATUS=ready"


def test_a_watchdog_meant_for_another_process_is_not_ours(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_PID", "1")
    other = Notifier.from_environment()
    assert other.watchdog_interval_s is None
    other.close()


def test_each_message_has_its_form(manager: socket.socket, notifier: Notifier) -> None:
    notifier.stopping("draining 2 requests")
    assert manager.recv(999) == b"STOPPING=1\nSTATUS=draining 2 requests"
    notifier.watchdog()
    assert manager.recv(999) == b"WATCHDOG=1"
    notifier.extend_timeout(1.5)
    assert manager.recv(999) == b"EXTEND_TIMEOUT_USEC=1500000"
    notifier.reloading()
    first, second = manager.recv(999).split(b"\n")
    assert first == b"RELOADING=1"
    assert int(second.removeprefix(b"MONOTONIC_USEC=")) > 0


def test_status_is_ascii_of_one_line_and_at_most_once_a_second(manager: socket.socket, notifier: Notifier) -> None:
    notifier.status("loading 🐝\nREADY=1")
    assert manager.recv(999) == b"STATUS=loading ? READY=1"
    notifier.status("loading more")
    notifier.status("forced", force=True)
    assert manager.recv(999) == b"STATUS=forced"


def test_without_a_manager_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notifier = Notifier.from_environment()
    notifier.ready("x")
    assert notifier.watchdog_interval_s is None


def test_a_manager_that_does_not_read_never_blocks_the_daemon(manager: socket.socket, notifier: Notifier) -> None:
    for number in range(2000):  # more than the queue of a datagram socket holds
        notifier.watchdog()
        notifier.status(f"number {number}", force=True)
    assert manager.recv(999) == b"WATCHDOG=1"
