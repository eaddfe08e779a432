"""The life of a daemon process: signals, reload, watchdog, and exit codes, in a real process."""

import signal
import sys

import pytest
from tests.behaviour.support.processes import DaemonProcess

PROGRAM = """
import asyncio, sys
from rbee.host.daemon import run_daemon
from rbee.host.journal import setup_logging
from rbee.wire import errors
mode = sys.argv[1]
class Sample:
    def __init__(self, notifier): self.notifier = notifier; self.reloads = 0
    async def start(self):
        if mode in ("ConfigError", "ProviderUnavailable", "VramFragmented", "WorkerFailed"):
            raise getattr(errors, mode)("it is wrong: mend it")
        if mode == "slow-start":
            print("starting", file=sys.stderr, flush=True)
            await asyncio.sleep(1.0)
        self.notifier.ready("ready")
    async def wait(self):
        if mode == "dies": raise errors.WorkerFailed("it died: look there")
        await asyncio.Event().wait()
    async def reload(self):
        self.reloads += 1
        if mode == "bad-reload": raise errors.ConfigError("bad file: mend it")
        if mode == "defect" and self.reloads == 1: raise ZeroDivisionError("a defect")
    async def stop(self): print("stopped", file=sys.stderr, flush=True)
    def healthy(self): return mode != "sick"
    def summary(self): return f"reloaded {self.reloads}"
async def make(notifier): return Sample(notifier)
setup_logging("sample", "info")
sys.exit(run_daemon(make, debug=True))
"""


def start(mode: str) -> DaemonProcess:
    return DaemonProcess([sys.executable, "-c", PROGRAM, mode], {"WATCHDOG_USEC": "200000"})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_cleanly(number: signal.Signals) -> None:
    daemon = start("serves")
    daemon.wait_ready()
    daemon.signal(number)
    assert daemon.wait_end() == 0
    assert "stopped" in daemon.text
    daemon.stop()


@pytest.mark.parametrize(
    ("mode", "code"),
    [("ConfigError", 78), ("VramFragmented", 71), ("ProviderUnavailable", 69), ("WorkerFailed", 1), ("dies", 1)],
)
def test_what_ends_it_is_said_and_becomes_its_exit_code(mode: str, code: int) -> None:
    daemon = start(mode)
    assert daemon.wait_end() == code
    assert ("it died: look there" if mode == "dies" else "it is wrong: mend it") in daemon.text
    assert "Traceback" not in daemon.text
    daemon.stop()


@pytest.mark.parametrize(("mode", "status"), [("serves", "reloaded 1"), ("bad-reload", "bad file: mend it")])
def test_hang_up_reloads_and_a_bad_file_leaves_the_old_in_force(mode: str, status: str) -> None:
    daemon = start(mode)
    daemon.wait_ready()
    daemon.signal(signal.SIGHUP)
    assert status in daemon.wait_ready()
    assert daemon.stop() == 0


def test_hang_up_during_the_start_does_not_say_ready() -> None:
    daemon = start("slow-start")
    daemon.wait_log("starting")
    daemon.signal(signal.SIGHUP)
    assert "STATUS=ready" in daemon.wait_ready()
    assert "STATUS=reloaded 1" in daemon.wait_ready()
    assert daemon.stop() == 0


def test_a_reload_that_fails_of_a_defect_is_told_and_the_next_one_works() -> None:
    daemon = start("defect")
    daemon.wait_ready()
    daemon.signal(signal.SIGHUP)
    assert "reload refused" in daemon.wait_ready()
    daemon.signal(signal.SIGHUP)
    assert "reloaded 2" in daemon.wait_ready()
    daemon.wait_log("ZeroDivisionError")  # notifications overtake the log
    assert daemon.stop() == 0


def test_a_daemon_that_is_not_healthy_withholds_the_watchdog() -> None:
    daemon = start("sick")
    daemon.wait_ready()
    daemon.wait_log("WATCHDOG=1 is withheld")
    daemon.stop()
