"""Things that are slow to build, kept outside the checkout under a name made of everything that went in."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

KINDS = ("debs", "models", "native", "packages", "trees", "wheels")


def root() -> Path:
    """The cache folder: $RBEE_TEST_CACHE, else rbee in the user's cache folder."""
    chosen = os.environ.get("RBEE_TEST_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(chosen) if chosen else base / "rbee"


def digest(parts: Iterable[str | bytes]) -> str:
    """A short hash of the parts, each kept apart from its neighbours."""
    whole = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        whole.update(len(data).to_bytes(8, "big") + data)
    return whole.hexdigest()[:16]


def digest_files(folder: Path, suffixes: tuple[str, ...] = ()) -> str:
    """The hash of the names and contents of all files below folder (only of these suffixes, when given)."""
    parts: list[str | bytes] = []
    for path in sorted(folder.rglob("*")):
        wanted = not suffixes or path.suffix in suffixes
        if path.is_file() and wanted and "__pycache__" not in path.parts:
            parts += [str(path.relative_to(folder)), path.read_bytes()]
    return digest(parts)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_once(kind: str, name: str, build: Callable[[Path], None]) -> Path:
    """The folder kind/name of the cache; build fills it the first time.

    The build happens beside the final place and is renamed when whole, so an interrupted one is never taken
    for finished; a lock makes a second process wait for the first one's result.
    """
    home = root() / kind
    home.mkdir(parents=True, exist_ok=True)
    done = home / name
    if done.is_dir():
        os.utime(done)
        return done
    with _locked(home / f"{name}.lock"):
        if done.is_dir():
            return done
        for stale in home.glob(f".{name}.*"):
            remove(stale)
        building = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=home))
        building.chmod(0o755)
        try:
            build(building)
        except BaseException:
            remove(building)
            raise
        building.rename(done)
    return done


def remove(folder: Path) -> None:
    """Delete a folder unless something is still mounted below it."""
    mounts = Path("/proc/self/mounts").read_text()
    if f"{folder}/" in mounts:
        subprocess.run(["umount", "--recursive", folder], check=False)
    if f"{folder}/" not in Path("/proc/self/mounts").read_text():
        shutil.rmtree(folder, ignore_errors=True)


def prune(days: float = 14) -> None:
    """Delete what no test run has used for this many days."""
    oldest = time.time() - days * 86400
    for done in root().glob("*/*/"):
        if done.parent.name in KINDS and done.stat().st_mtime < oldest:
            remove(done)
            done.with_name(f"{done.name}.lock").unlink(missing_ok=True)
