"""The child-process supervisor, with real processes that speak sd_notify."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from rbee.host.units.child import ChildUnits
from rbee.host.units.child_life import ChildSettings
from rbee.host.units.facts import CLD_EXITED, CLD_KILLED, UnitFacts
from rbee.wire.errors import WorkerNotFound

PROGRAM = Path(__file__).with_name("program.py")
QUICK = ChildSettings(
    start_limit_s=1.5, stop_limit_s=0.6, watchdog_s=0.6, restart_delay_s=0.05, start_burst=3, start_interval_s=60.0
)


class Watcher:
    """Keeps what it hears, and lets a test wait for a moment."""

    def __init__(self) -> None:
        self.heard: list[UnitFacts] = []
        self._news = asyncio.Event()

    def on_facts(self, facts: UnitFacts) -> None:
        self.heard.append(facts)
        self._news.set()

    def on_resync(self) -> None:
        raise AssertionError("children are never out of touch")

    async def until(self, fits: Callable[[UnitFacts], bool], limit_s: float = 15.0) -> UnitFacts:
        async with asyncio.timeout(limit_s):
            while True:
                for facts in self.heard:
                    if fits(facts):
                        return facts
                self._news.clear()
                await self._news.wait()

    async def until_state(self, active_state: str, sub_state: str = "") -> UnitFacts:
        return await self.until(lambda f: f.active_state == active_state and sub_state in ("", f.sub_state))


class Bench:
    def __init__(self) -> None:
        self.watcher = Watcher()
        self.steps: dict[str, list[str]] = {}
        self.failures: list[BaseException] = []
        self.settings = QUICK
        self._units: ChildUnits | None = None

    @property
    def units(self) -> ChildUnits:
        if self._units is None:
            self._units = ChildUnits(
                self.failures.append,
                command=lambda worker: [sys.executable, str(PROGRAM), *self.steps[worker]],
                environment={"PATH": os.environ["PATH"]},
                settings=self.settings,
            )
        return self._units

    async def run(self, worker: str, *steps: str) -> None:
        self.steps[worker] = list(steps)
        await self.units.start(self.watcher)
        await self.units.start_unit(worker)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bench = Bench()
    yield bench
    await bench.units.close()
    assert not bench.failures


async def test_ready_status_and_stop(bench: Bench) -> None:
    await bench.run("w", "say:STATUS=loading 1/2", "say:READY=1\nSTATUS=ready", "feed:0.1")
    loading = await bench.watcher.until(lambda f: f.status_text == "loading 1/2")
    assert (loading.active_state, loading.sub_state) == ("activating", "start")
    ready = await bench.watcher.until_state("active", "running")
    assert ready.status_text == "ready"
    assert ready.main_pid == loading.main_pid > 0
    assert ready.invocation_id == loading.invocation_id
    assert len(ready.invocation_id) == 32
    assert 0 < ready.inactive_exit_monotonic_us <= ready.active_enter_monotonic_us
    await bench.units.stop_unit("w")
    end = await bench.watcher.until_state("inactive")
    assert (end.result, end.main_pid) == ("success", 0)
    assert any(f.active_state == "deactivating" for f in bench.watcher.heard)


async def test_each_life_has_its_own_invocation(bench: Bench) -> None:
    await bench.run("w", "say:READY=1", "feed:0.1")
    first = await bench.watcher.until_state("active")
    await bench.units.restart_unit("w")
    second = await bench.watcher.until(lambda f: f.running and f.invocation_id != first.invocation_id)
    assert second.main_pid != first.main_pid


async def test_environment_is_clean(bench: Bench) -> None:
    await bench.run("w", "environment", "say:READY=1", "feed:0.1")
    await bench.watcher.until_state("active")
    await asyncio.sleep(0.1)
    (line,) = [text for _, text in bench.units.lines("w", 10)]
    expected = {"INVOCATION_ID", "NOTIFY_SOCKET", "PATH", "WATCHDOG_USEC"}
    assert set(line.split()) - {"LC_CTYPE"} == expected


async def test_messages_of_another_process_are_dropped(bench: Bench) -> None:
    await bench.run("w", "stranger:READY=1", "say:STATUS=after", "sleep:30")
    await bench.watcher.until(lambda f: f.status_text == "after")
    assert not any(f.active_state == "active" for f in bench.watcher.heard)


async def test_stalled_start_times_out(bench: Bench) -> None:
    await bench.run("w", "sleep:60")
    end = await bench.watcher.until(lambda f: f.result == "timeout")
    assert end.sub_state in ("auto-restart", "failed")
    assert end.restarts == 1


async def test_extended_start_lives_past_its_limit(bench: Bench) -> None:
    steps = ["say:EXTEND_TIMEOUT_USEC=1500000", "sleep:0.8"] * 3
    await bench.run("w", *steps, "say:READY=1", "feed:0.1")
    await bench.watcher.until_state("active")
    assert not any(f.result == "timeout" for f in bench.watcher.heard)


async def test_silent_watchdog_kills_and_restarts(bench: Bench) -> None:
    await bench.run("w", "say:READY=1", "sleep:60")
    again = await bench.watcher.until_state("activating", "auto-restart")
    assert (again.result, again.exec_code, again.exec_status) == ("watchdog", CLD_KILLED, signal.SIGABRT)
    await bench.watcher.until(lambda f: f.running and f.restarts == 1)


async def test_deaf_worker_is_killed_at_the_stop_limit(bench: Bench) -> None:
    await bench.run("w", "deaf", "say:READY=1", "feed:0.1")
    await bench.watcher.until_state("active")
    await bench.units.stop_unit("w")
    end = await bench.watcher.until_state("failed")
    assert (end.result, end.exec_status) == ("timeout", signal.SIGKILL)


@pytest.mark.parametrize("code", [78, 69])
async def test_configuration_errors_are_not_restarted(bench: Bench, code: int) -> None:
    await bench.run("w", f"exit:{code}")
    end = await bench.watcher.until_state("failed")
    assert (end.result, end.exec_code, end.exec_status, end.restarts) == ("exit-code", CLD_EXITED, code, 0)


async def test_start_limit_ends_the_restarts(bench: Bench) -> None:
    await bench.run("w", "exit:1")
    end = await bench.watcher.until(lambda f: f.result == "start-limit-hit")
    assert end.active_state == "failed"
    assert len({f.invocation_id for f in bench.watcher.heard if f.invocation_id}) == 3
    await bench.units.reset_failed("w")
    assert (await bench.units.read("w")).active_state == "inactive"
    bench.steps["w"] = ["say:READY=1", "feed:0.1"]
    await bench.units.start_unit("w")
    await bench.watcher.until_state("active")


async def test_exit_before_ready_breaks_the_protocol(bench: Bench) -> None:
    await bench.run("w", "exit:0")
    await bench.watcher.until(lambda f: f.result == "protocol")


async def test_a_kill_from_outside_is_a_crash(bench: Bench) -> None:
    await bench.run("w", "say:READY=1", "feed:0.1")
    ready = await bench.watcher.until_state("active")
    os.kill(ready.main_pid, signal.SIGKILL)
    crashed = await bench.watcher.until(lambda f: f.result == "signal")
    assert (crashed.exec_code, crashed.exec_status) == (CLD_KILLED, signal.SIGKILL)
    await bench.watcher.until(lambda f: f.running and f.invocation_id != ready.invocation_id)


async def test_stop_right_after_start_wins(bench: Bench) -> None:
    await bench.run("w", "say:READY=1", "feed:0.1")
    await bench.units.stop_unit("w")
    await asyncio.sleep(0.3)
    assert (await bench.units.read("w")).active_state == "inactive"


async def test_stop_while_waiting_to_restart(bench: Bench) -> None:
    bench.settings = ChildSettings(restart_delay_s=30.0)
    await bench.run("w", "exit:1")
    await bench.watcher.until_state("activating", "auto-restart")
    await bench.units.stop_unit("w")
    await bench.watcher.until_state("inactive")


async def test_close_stops_all_at_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    bench.settings = ChildSettings(stop_limit_s=0.6)
    for number in range(3):
        await bench.run(f"w{number}", "deaf", "say:READY=1", "feed:0.1")
        await bench.watcher.until(lambda f, n=number: f.running and f.worker_id == f"w{n}")  # type: ignore[misc]
    pids = [f.main_pid for f in bench.watcher.heard if f.running]
    started = asyncio.get_running_loop().time()
    await bench.units.close()
    assert asyncio.get_running_loop().time() - started < 1.5
    assert not any(map(_alive, pids))
    for text in ("shutting down 3", "shut down 1/3", "shut down 3/3", "all workers are shut down"):
        assert text in caplog.text


async def test_a_missing_program_says_what_to_install(bench: Bench) -> None:
    units = ChildUnits(
        bench.failures.append, command=lambda _: ["/nonexistent/rbee-worker"], environment={}, settings=QUICK
    )
    with pytest.raises(WorkerNotFound, match="apt install rbee-worker"):
        await units.start_unit("w")


def test_children_die_with_their_parent() -> None:
    code = f"""
import asyncio, sys
from rbee.host.units.child import ChildUnits
from rbee.host.units.child_life import ChildSettings
class W:
    def on_facts(self, f):
        if f.running: print(f.main_pid, flush=True)
    def on_resync(self): pass
async def main():
    units = ChildUnits(print, command=lambda w: [sys.executable, {str(PROGRAM)!r}, "say:READY=1", "feed:0.1"],
                       environment={{}}, settings=ChildSettings())
    await units.start(W())
    await units.start_unit("w")
    await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        status = Path(f"/proc/{pid}/status")
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        signal.sigtimedwait([], 0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child outlived its parent")


def _alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
