"""The installation: users, tokens, units, configuration, and which workers still run an older version."""

import grp
import os
import pwd
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from rbee import __version__
from rbee.host.paths import Paths
from rbee.keeper.commands.credentials import FILES, FOLDER
from rbee.keeper.doctor.finding import Finding, fail, ok, run, warn
from rbee.wire.messages import WorkerFacts
from rbee.wire.names import WORKER_ID, unit_of

USERS = ("rbee-queen", "rbee-hive", "rbee-worker")
GROUP = "rbee"
DAEMONS = ("queen", "hive")
_REINSTALL = "apt install --reinstall rbee-common"


def users() -> Iterator[Finding]:
    """The daemons' users and the administrators' group."""
    missing = [name for name in USERS if not _known(pwd.getpwnam, name)]
    missing += [] if _known(grp.getgrnam, GROUP) else [f"group {GROUP}"]
    if missing:
        yield fail("users", f"{', '.join(missing)} missing", f"systemd-sysusers, or {_REINSTALL}")
    else:
        yield ok("users", f"{', '.join(USERS)} and the group {GROUP} are there")


def _known(ask: object, name: str) -> bool:
    try:
        ask(name)  # type: ignore[operator]
    except KeyError:
        return False
    return True


def tokens(folder: Path = FOLDER, files: Sequence[str] = FILES) -> Iterator[Finding]:
    """The token files: there, readable by their owner alone, not empty. Their content is not shown."""
    if not os.access(folder, os.X_OK) and folder.exists():
        yield warn("tokens", f"{folder} is closed to you", "run rbee doctor as root")
        return
    for name in files:
        path = folder / name
        try:
            facts = path.stat()
        except OSError:
            yield fail("tokens", f"{path} is missing", f"rbee credentials init, then {restart(*DAEMONS)}")
            continue
        mode = stat.S_IMODE(facts.st_mode)
        if mode & 0o077:
            yield fail("tokens", f"{path} has mode {mode:04o}: others can read it", f"chmod 600 {path}, then rotate it")
        elif facts.st_size == 0:
            yield fail("tokens", f"{path} is empty", f"rbee credentials init --rotate {name}")
        else:
            yield ok("tokens", f"{path} is there, mode {mode:04o}")


def units(systemd: Path = Path("/run/systemd/system")) -> Iterator[Finding]:
    """The daemons' units and sockets: installed, enabled, running."""
    if not systemd.is_dir():
        yield fail("units", "this machine is not run by systemd", "rbee dev runs everything in one terminal")
        return
    yield from _unit("rbee.target", "rbee-common")
    for daemon in DAEMONS:
        service = f"rbee-{daemon}.service"
        if _show(service).get("ActiveState") != "failed":  # a daemon that failed has closed its socket
            yield from _unit(f"rbee-{daemon}.socket", f"rbee-{daemon}")
        yield from _unit(service, f"rbee-{daemon}")
    loaded = _show(unit_of("x"))
    if loaded.get("LoadState") != "loaded":
        yield warn("units", "rbee-worker@.service is not installed: no worker can run here", "apt install rbee-worker")


def restart(*daemons: str) -> str:
    """The command that starts daemons again after they failed; their sockets come with them."""
    return f"systemctl restart {' '.join(f'rbee-{daemon}' for daemon in daemons)}"


def _show(unit: str) -> dict[str, str]:
    wanted = "LoadState,ActiveState,UnitFileState,Result,StatusText"
    said = run(["systemctl", "show", f"--property={wanted}", unit]).out
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def _unit(unit: str, package: str) -> Iterator[Finding]:
    facts = _show(unit)
    state, enabled = facts.get("ActiveState", "unknown"), facts.get("UnitFileState", "")
    if facts.get("LoadState") != "loaded":
        # a machine of a fleet has either; what is missing is what this one may lack
        yield warn("units", f"{unit} is not installed", f"apt install {package}, where this machine is to have it")
    elif state == "active":
        if enabled == "enabled":
            yield ok("units", f"{unit} is active and enabled")
        else:
            yield warn("units", f"{unit} is active, not enabled: not so after a reboot", f"systemctl enable {unit}")
    elif state == "failed":
        why = facts.get("StatusText") or facts.get("Result", "")
        daemon = unit.removeprefix("rbee-").partition(".")[0]
        # a daemon that failed and failed again while it was up: systemd counts the operator's own start as well
        reset = f"systemctl reset-failed rbee-{daemon} && " if facts.get("Result") == "start-limit-hit" else ""
        again = f"{reset}{restart(daemon)}"
        yield fail("units", f"{unit} failed: {why}", f"systemctl status rbee-{daemon}; once it is mended, {again}")
    else:
        yield fail("units", f"{unit} is {state}", f"systemctl enable --now {unit}")


def configuration(paths: Paths) -> Iterator[Finding]:
    """What the daemons themselves say of their files, and of each worker's definition."""
    for daemon in DAEMONS:
        yield from _checked(f"{daemon}.yaml", [f"rbee-{daemon}", "--check-config"], f"mend it, then {restart(daemon)}")
    found = {path.stem for folder in paths.definition_folders for path in folder.glob("*.yaml")}
    for worker in sorted(name for name in found if WORKER_ID.fullmatch(name)):
        argv = ["rbee-worker", "--id", worker, "--check-config"]
        yield from _checked(f"worker {worker}", argv, f"mend it, then systemctl restart {unit_of(worker)}")


def _checked(subject: str, argv: list[str], todo: str) -> Iterator[Finding]:
    done = run(argv)
    if done.code == 127:
        return  # not installed: the units have said so
    last = (done.err.strip() or done.out.strip()).rpartition("\n")[2]
    if done.code == 0:
        yield ok("configuration", f"{subject}: {last}")
    else:
        yield fail("configuration", f"{subject}: {last}", todo)


def versions(paths: Paths) -> Iterator[Finding]:
    """Workers that run another version than this command's: an upgrade leaves them running."""
    old = []
    for file in sorted((paths.run_dir / "workers").glob("*/worker.json")):
        try:
            facts = msgspec.json.decode(file.read_bytes(), type=WorkerFacts)
        except (OSError, msgspec.MsgspecError):
            continue  # it has just ended, or just begins
        if facts.version != __version__:
            old.append(f"{facts.worker_id} ({facts.version})")
    if old:
        names = " ".join(unit_of(each.partition(" ")[0]) for each in old)
        yield warn("versions", f"older code than {__version__}: {', '.join(old)}", f"systemctl restart {names}")
    else:
        yield ok("versions", f"no worker runs another version than {__version__}")
