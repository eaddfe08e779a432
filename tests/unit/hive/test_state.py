"""What a unit's facts mean for a worker."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.hive.state import FORCE_KILLED, LOADING_TIMEOUT, crashed, progress_of, state_of
from rbee.host.units.facts import CLD_EXITED, CLD_KILLED, UnitFacts
from rbee.wire.messages import Progress, WorkerState

ACTIVE_STATES = ("active", "reloading", "refreshing", "inactive", "failed", "activating", "deactivating", "maintenance")
SUB_STATES = ("dead", "start", "running", "stop-sigterm", "stop-sigkill", "failed", "auto-restart", "exited")
RESULTS = (
    "success", "resources", "protocol", "timeout", "exit-code", "signal", "core-dump", "watchdog",
    "start-limit-hit", "oom-kill", "exec-condition",
)  # fmt: skip
FACTS = st.builds(
    UnitFacts,
    worker_id=st.just("w"),
    active_state=st.sampled_from(ACTIVE_STATES),
    sub_state=st.sampled_from(SUB_STATES),
    result=st.sampled_from(RESULTS),
    exec_code=st.sampled_from((0, 1, 2, 3)),
    exec_status=st.integers(0, 255),
    inactive_exit_monotonic_us=st.integers(0, 10),
    active_enter_monotonic_us=st.integers(0, 10),
    job_result=st.sampled_from(("", "dependency")),
)


def facts(active_state: str, sub_state: str = "", **rest: object) -> UnitFacts:
    return UnitFacts(worker_id="w", active_state=active_state, sub_state=sub_state, **rest)  # type: ignore[arg-type]


def told(unit: UnitFacts, *, healthy: bool = True, busy: bool = False, stop: str = "") -> tuple[WorkerState, str]:
    return state_of(unit, healthy=healthy, busy=busy, stop_reason=stop)


@given(FACTS, st.booleans(), st.booleans(), st.sampled_from(("", "idle", "requested")))
def test_only_an_active_healthy_unit_is_routable(unit: UnitFacts, healthy: bool, busy: bool, stop: str) -> None:
    state, reason = state_of(unit, healthy=healthy, busy=busy, stop_reason=stop)
    assert state.ready == (unit.active_state in ("active", "reloading", "refreshing") and healthy)
    assert state is not WorkerState.STALE
    assert state is not WorkerState.FAILED or reason
    assert "\n" not in reason


@given(FACTS)
def test_a_crash_is_over_and_bad(unit: UnitFacts) -> None:
    if crashed(unit):
        assert told(unit)[0] is WorkerState.FAILED
        assert unit.result != "success"


@pytest.mark.parametrize(
    ("unit", "state", "reason"),
    [
        (facts("activating", "start"), WorkerState.LOADING, ""),
        (facts("active", "running"), WorkerState.IDLE, ""),
        (facts("inactive", "dead"), WorkerState.STOPPED, ""),
        (facts("deactivating", "stop-sigterm"), WorkerState.DRAINING, ""),
        (
            facts("activating", "auto-restart", result="signal", exec_code=CLD_KILLED, exec_status=9),
            WorkerState.FAILED,
            "crashed: SIGKILL",
        ),
        (facts("failed", "failed", result="oom-kill"), WorkerState.FAILED, "oom-kill"),
        (
            facts(
                "failed",
                "failed",
                result="exit-code",
                exec_code=CLD_EXITED,
                exec_status=71,
                status_text="VRAM_FRAGMENTED: the model needs 4096 MB at once on cuda:0, 5000 MB are free in pieces",
            ),
            WorkerState.FAILED,
            "VRAM_FRAGMENTED",
        ),
        (
            facts("failed", "failed", result="exit-code", exec_code=CLD_EXITED, exec_status=71, status_text="ready"),
            WorkerState.FAILED,
            "exit 71: its memory does not suffice",
        ),
        (facts("failed", "failed", result="watchdog"), WorkerState.FAILED, "watchdog"),
        (
            facts("failed", "failed", result="timeout", inactive_exit_monotonic_us=9, active_enter_monotonic_us=3),
            WorkerState.FAILED,
            LOADING_TIMEOUT,
        ),
        (
            facts("failed", "failed", result="timeout", inactive_exit_monotonic_us=3, active_enter_monotonic_us=9),
            WorkerState.FAILED,
            FORCE_KILLED,
        ),
        (
            facts("failed", "failed", result="exit-code", exec_code=CLD_EXITED, exec_status=78),
            WorkerState.FAILED,
            "exit 78: its configuration is wrong",
        ),
        (
            facts("failed", "failed", result="exit-code", exec_code=CLD_EXITED, exec_status=1),
            WorkerState.FAILED,
            "crashed: exit code 1",
        ),
        (
            facts(
                "failed",
                "failed",
                result="exit-code",
                exec_code=CLD_EXITED,
                exec_status=1,
                status_text="LOADING_TIMEOUT: no progress for 300 s",
            ),
            WorkerState.FAILED,
            LOADING_TIMEOUT,
        ),
        (
            facts("failed", "failed", result="start-limit-hit", exec_code=CLD_EXITED, exec_status=3),
            WorkerState.FAILED,
            "crashed: given up after too many starts (exit code 3)",
        ),
        (
            facts("inactive", "dead", job_result="dependency"),
            WorkerState.FAILED,
            "its start job ended as 'dependency'",
        ),
    ],
)
def test_each_case(unit: UnitFacts, state: WorkerState, reason: str) -> None:
    assert told(unit) == (state, reason)


def test_health_and_requests_tell_apart_what_runs() -> None:
    unit = facts("active", "running")
    assert told(unit, healthy=False)[0] is WorkerState.UNHEALTHY
    assert told(unit, busy=True)[0] is WorkerState.BUSY


def test_the_reason_of_a_stop_is_the_one_it_was_asked_for() -> None:
    assert told(facts("inactive", "dead"), stop="idle") == (WorkerState.STOPPED, "idle")
    assert told(facts("deactivating", "stop-sigterm"), stop="requested") == (WorkerState.DRAINING, "requested")
    stuck = facts("failed", "failed", result="timeout", inactive_exit_monotonic_us=9, active_enter_monotonic_us=0)
    assert told(stuck, stop="requested") == (WorkerState.FAILED, FORCE_KILLED)


@pytest.mark.parametrize(
    ("text", "progress"),
    [
        ("loading: weights 12/28 layers", Progress("weights", 12, 28, "layers")),
        ("loading: reading files 120/300 MB", Progress("reading files", 120, 300, "MB")),
        ("loading: warming up", Progress("warming up")),
        ("loading weights 3/4", Progress("loading weights", 3, 4)),
        ("loading: 9/4 layers", None),
        ("LOADING_TIMEOUT: no progress for 0.5 s at 'creating the session 2/4', 0.8 s after the start", None),
        ("ready: tiny (tensor) on cpu, 4 slots", None),
        ("", None),
    ],
)
def test_progress_is_read_from_the_status_line(text: str, progress: Progress | None) -> None:
    assert progress_of(text) == progress


@given(st.text(max_size=600))
def test_any_status_line_is_borne(text: str) -> None:
    found = progress_of(text)
    assert found is None or found.done <= found.total
