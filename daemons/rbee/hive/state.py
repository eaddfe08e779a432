"""What a unit's facts mean for a worker: its state, and why; pure."""

import re
import signal

from rbee.host.units.facts import CLD_EXITED, UnitFacts
from rbee.wire import shortage
from rbee.wire.messages import Progress, WorkerState

LOADING_TIMEOUT = "LOADING_TIMEOUT"
FORCE_KILLED = "force-killed"
EXIT_CONFIG = 78
EXIT_UNAVAILABLE = 69
EXIT_CREDENTIALS = 243
EXIT_EXEC = 203
_AUTO_RESTART = ("auto-restart", "auto-restart-queued")
_LOADING = "loading: "
_PROGRESS = re.compile(r"(?P<stage>.*?)[ :]*(?P<done>\d{1,18}) ?/ ?(?P<total>\d{1,18})(?: (?P<unit>[A-Za-z]+))?")


def state_of(facts: UnitFacts, *, healthy: bool, busy: bool, stop_reason: str) -> tuple[WorkerState, str]:
    """The state of a worker and the reason for it.

    ``healthy``: its HTTP answers; ``busy``: it has requests in flight; ``stop_reason``: why this hive asked for the
    end of this life (idle, requested ...), empty where it did not.
    """
    match facts.active_state:
        case "activating" if facts.sub_state in _AUTO_RESTART:
            # Between two lives: the unit is not failed for systemd, and nothing serves.
            return WorkerState.FAILED, failure_reason(facts, stop_reason)
        case "activating":
            return WorkerState.LOADING, ""
        case "active" | "reloading" | "refreshing":
            if not healthy:
                return WorkerState.UNHEALTHY, "its HTTP does not answer"
            return (WorkerState.BUSY if busy else WorkerState.IDLE), ""
        case "deactivating":
            return WorkerState.DRAINING, _draining_reason(facts, stop_reason)
        case "failed":
            return WorkerState.FAILED, failure_reason(facts, stop_reason)
        case _:
            if facts.job_result:
                return WorkerState.FAILED, f"its start job ended as '{facts.job_result}'"
            return WorkerState.STOPPED, stop_reason


def became_ready(facts: UnitFacts) -> bool:
    """Whether this life said READY: the unit became active after it began to start."""
    return facts.active_enter_monotonic_us >= facts.inactive_exit_monotonic_us > 0


def crashed(facts: UnitFacts) -> bool:
    """Whether this life is over and ended badly."""
    over = facts.active_state == "failed" or (facts.active_state == "activating" and facts.sub_state in _AUTO_RESTART)
    return over and facts.result not in ("success", "start-limit-hit")


def _draining_reason(facts: UnitFacts, stop_reason: str) -> str:
    if facts.result in ("success", ""):
        return stop_reason
    return failure_reason(facts, stop_reason)


def failure_reason(facts: UnitFacts, stop_reason: str) -> str:
    """Why a life ended badly, in a word that programs know or a sentence for a person."""
    match facts.result:
        case "timeout":
            return FORCE_KILLED if stop_reason or became_ready(facts) else LOADING_TIMEOUT
        case "watchdog" | shortage.OOM_KILL:
            return facts.result
        case "exit-code":
            return _exit_reason(facts)
        case "signal" | "core-dump":
            return f"crashed: {_signal_name(facts.exec_status)}"
        case "start-limit-hit":
            return f"crashed: given up after too many starts ({_last_end(facts)})"
        case "protocol":
            return "crashed: it ended before it was ready"
        case "success" | "":
            return stop_reason or "crashed"
        case other:
            return f"crashed: {other}"


def _exit_reason(facts: UnitFacts) -> str:
    code = facts.exec_status
    if facts.status_text.startswith(LOADING_TIMEOUT):
        return LOADING_TIMEOUT  # the worker ends a stalled load itself, before systemd's own limit, and says so
    if code == shortage.EXIT_NO_MEMORY:
        return shortage.code_told(facts.status_text) or "exit 71: its memory does not suffice"
    if code == EXIT_CONFIG:
        return "exit 78: its configuration is wrong"
    if code == EXIT_UNAVAILABLE:
        return "exit 69: the provider or device that it asks for is not on this machine"
    if code == EXIT_CREDENTIALS:
        return "exit 243: its credential is missing: 'rbee credentials init' makes it"
    if code == EXIT_EXEC:  # systemd's own code (systemd.exec(5)): the program could not be run
        return "exit 203: rbee-worker is not installed on this machine: apt install rbee-worker"
    return f"crashed: exit code {code}"


def _last_end(facts: UnitFacts) -> str:
    if facts.exec_code == CLD_EXITED:
        return f"exit code {facts.exec_status}"
    return _signal_name(facts.exec_status) if facts.exec_code else "no process"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def progress_of(status_text: str) -> Progress | None:
    """The progress that a STATUS= line tells (``loading: weights 12/28 layers``), or None where it tells none."""
    if not status_text.startswith("loading"):
        return None  # such as the error that ended the load, which names how far it was
    text = status_text.removeprefix(_LOADING)
    match = _PROGRESS.search(text)
    if match is None:
        return Progress(text[:512]) if text != status_text else None
    done, total = int(match["done"]), int(match["total"])
    if not 0 <= done <= total:
        return None
    return Progress(match["stage"].strip()[:512] or "loading", done, total, match["unit"] or "steps")
