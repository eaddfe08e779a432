"""systemd units of this machine, or of a node over SSH: which of them run, started and stopped."""

import subprocess
from collections.abc import Callable, Sequence

from rbee.keeper.failure import CommandFailed
from rbee.keeper.nodes.ssh import Ran

_LOOK_LIMIT_S = 30.0
_ORDER_LIMIT_S = 120.0
_RUNS = ("active", "activating", "reloading")
_WORKERS = "rbee-worker@*.service"
_MOST_TOLD = 600
Run = Callable[[Sequence[str], float, bool], Ran]
"""Runs argv as root within so many seconds; with True an exit status other than 0 is an error that is raised."""


def here(argv: Sequence[str], limit_s: float, check: bool) -> Ran:
    """Run a command on this machine as whoever we are; raises CommandFailed."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=limit_s, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError:
        raise CommandFailed(f"{argv[0]} is not installed: this machine is not run by systemd") from None
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"'{' '.join(argv)}' did not end within {limit_s:g} s: look at its journal") from None
    if check and done.returncode:
        raise CommandFailed(
            f"'{' '.join(argv)}' ended with {done.returncode}: run it as root, or mend what it says\n"
            + done.stderr.strip()[-_MOST_TOLD:]
        )
    return Ran(done.returncode, done.stdout, done.stderr)


def workers_up(run: Run) -> set[str]:
    """The units of workers on a machine that run, or begin to."""
    argv = ["systemctl", "list-units", "--plain", "--no-legend", f"--state={','.join(_RUNS)}", "--", _WORKERS]
    return {line.split()[0] for line in run(argv, _LOOK_LIMIT_S, True).out.splitlines() if line.strip()}


class Units:
    """The units of one daemon in the order of their start, as ``run`` reaches their machine."""

    def __init__(self, run: Run, names: Sequence[str]) -> None:
        self._run = run
        self._names = list(names)

    @property
    def installed(self) -> bool:
        """Whether that machine has them."""
        shown = self._run(["systemctl", "show", "--property=LoadState", "--", self._names[-1]], _LOOK_LIMIT_S, True)
        return shown.out.strip() == "LoadState=loaded"

    def idle(self) -> list[str]:
        """Those that do not run now, by their order."""
        states = self._run(["systemctl", "is-active", "--", *self._names], _LOOK_LIMIT_S, False).out.split()
        return [name for name, state in zip(self._names, states, strict=True) if state not in _RUNS]

    def start(self, names: Sequence[str]) -> None:
        """Start these, past a failure of an earlier life; returns when they are ready."""
        self._run(["systemctl", "--no-ask-password", "reset-failed", "--", *names], _LOOK_LIMIT_S, False)
        self._run(["systemctl", "--no-ask-password", "start", "--", *names], _ORDER_LIMIT_S, True)

    def stop(self, names: Sequence[str]) -> None:
        """Stop these, the last one first; returns when they have ended."""
        self._run(["systemctl", "--no-ask-password", "stop", "--", *reversed(names)], _ORDER_LIMIT_S, True)
