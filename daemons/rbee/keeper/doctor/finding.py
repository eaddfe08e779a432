"""What a check found: ok, warn or fail, in one sentence, with what to do."""

import enum
import subprocess
from collections.abc import Sequence

import msgspec

_LIMIT_S = 60.0


class Level(enum.StrEnum):
    """How bad it is: ``warn`` works and deserves a look, ``fail`` does not work."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True):
    """One line of the doctor's: the subject, what is so, and what to do (empty where nothing is)."""

    level: Level
    subject: str
    message: str
    todo: str = ""


def ok(subject: str, message: str) -> Finding:
    """All is well."""
    return Finding(Level.OK, subject, message)


def warn(subject: str, message: str, todo: str) -> Finding:
    """It works, and somebody should know."""
    return Finding(Level.WARN, subject, message, todo)


def fail(subject: str, message: str, todo: str) -> Finding:
    """It does not work."""
    return Finding(Level.FAIL, subject, message, todo)


class Ran(msgspec.Struct, frozen=True):
    """How a program ended: its exit code (127 where there is none, 124 where it took too long) and its words."""

    code: int
    out: str
    err: str


def run(argv: Sequence[str], environment: dict[str, str] | None = None) -> Ran:
    """Run a program of this machine within 60 s; never raises for what it does."""
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    except FileNotFoundError:
        return Ran(127, "", f"{argv[0]}: not installed")
    except PermissionError as error:
        return Ran(126, "", f"{argv[0]}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Ran(124, "", f"{argv[0]}: no end within {_LIMIT_S:g} s")
    return Ran(done.returncode, done.stdout, done.stderr)
