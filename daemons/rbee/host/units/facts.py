"""What a supervisor knows of one worker's unit, and what it offers: list, read, control, and a watch."""

from typing import Protocol

import msgspec

CLD_EXITED = 1
CLD_KILLED = 2
CLD_DUMPED = 3


class UnitFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's unit at one moment, in systemd's own words (org.freedesktop.systemd1(5)).

    ``invocation_id`` (32 hex digits) is the identity of one life. ``exec_code`` is CLD_EXITED, CLD_KILLED or
    CLD_DUMPED of the last main process and ``exec_status`` its exit code or signal. Times are microseconds of
    CLOCK_MONOTONIC: when the unit left ``inactive`` (began to start) and when it became ``active``; 0 = never.
    ``job_result`` is the result of the unit's last job where that was not ``done`` (dependency, timeout ...).
    A unit that systemd does not hold in memory is ``inactive`` with load_state ``not-loaded``.
    """

    worker_id: str
    load_state: str = "not-loaded"
    active_state: str = "inactive"
    sub_state: str = "dead"
    invocation_id: str = ""
    main_pid: int = 0
    status_text: str = ""
    result: str = "success"
    restarts: int = 0
    exec_code: int = 0
    exec_status: int = 0
    inactive_exit_monotonic_us: int = 0
    active_enter_monotonic_us: int = 0
    job_result: str = ""

    @property
    def running(self) -> bool:
        """Whether the unit said READY and has not begun to stop; a reload takes nothing from that."""
        if self.active_state in ("reloading", "refreshing"):
            return True
        return self.active_state == "active" and self.sub_state == "running"

    def unloaded(self, job_result: str) -> "UnitFacts":
        """The same unit once systemd has forgotten it: inactive, with what its last life left behind."""
        return msgspec.structs.replace(
            self,
            load_state="not-loaded",
            active_state="inactive",
            sub_state="dead",
            main_pid=0,
            status_text="",
            job_result=job_result,
        )


class UnitWatcher(Protocol):
    """Who hears of changes; both calls are made in the event loop and must not block."""

    def on_facts(self, facts: UnitFacts) -> None:
        """Something about this unit changed."""

    def on_resync(self) -> None:
        """The supervisor was out of touch and has listed everything again; changes were passed to on_facts."""


class UnitSupervisor(Protocol):
    """The supervisor of workers on this machine.

    Every call raises SystemdUnavailable when the supervisor cannot be reached, is too slow, or refuses;
    the control calls return when the order is accepted, the outcome comes through the watcher.
    """

    async def start(self, watcher: UnitWatcher) -> None:
        """Connect, watch, and pass the facts of every unit that exists to ``watcher``."""

    async def close(self) -> None:
        """Stop watching."""

    async def list(self) -> "list[UnitFacts]":
        """Read every worker's unit again."""

    async def read(self, worker_id: str) -> UnitFacts:
        """Read one worker's unit again; an unknown one is inactive."""

    async def start_unit(self, worker_id: str) -> None:
        """Begin to start; raises WorkerNotFound when there is nothing to start."""

    async def stop_unit(self, worker_id: str) -> None:
        """Begin to stop: drain, then end."""

    async def restart_unit(self, worker_id: str) -> None:
        """Stop if running, then start."""

    async def reset_failed(self, worker_id: str) -> None:
        """Forget a failure and the count of starts."""
