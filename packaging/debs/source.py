"""The source tree that is built: the checkout's files, the version with the release it is built for."""

import re
import shutil
import subprocess
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path

from tests.machines.testbed import cache
from tests.machines.testbed.errors import TestbedError
from tests.machines.testbed.packages import CHECKOUT
from tests.machines.testbed.trees import Release

PARTS = ("daemons", "docs/examples", "docs/man", "units", "packaging", "setup.cfg", "pyproject.toml")
_DEBIAN = {Release.BOOKWORM: "deb12", Release.TRIXIE: "deb13"}
_HEAD = re.compile(r"^rbee \(([^)]+)\) (\S+); (.*)$", re.M)
_FOOT = re.compile(r"^ -- (.*)  (.*)$", re.M)


def files() -> list[str]:
    """The checkout's files that packages are made of: those of git, with what is new and not ignored."""
    listed = ["git", "-C", str(CHECKOUT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run([*listed, "--", *PARTS], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        names = [name for name in done.stdout.split("\0") if name]
    else:
        found = (path for part in PARTS for path in [CHECKOUT / part, *(CHECKOUT / part).rglob("*")])
        names = [
            str(path.relative_to(CHECKOUT)) for path in found if path.is_file() and "__pycache__" not in path.parts
        ]
    return sorted(name for name in set(names) if (CHECKOUT / name).is_file())


def key(release: Release) -> str:
    """A hash of everything that goes into the release's packages."""
    parts: list[str | bytes] = [release]
    for name in files():
        parts += [name, (CHECKOUT / name).read_bytes()]
    return cache.digest(parts)


def version(release: Release) -> str:
    """The packages' version: the changelog's, and the release they are for, later releases above earlier ones."""
    head = _HEAD.search((CHECKOUT / "packaging/debian/changelog").read_text())
    if head is None:
        raise TestbedError("packaging/debian/changelog does not begin with `rbee (VERSION) DISTRIBUTION; ...`")
    return f"{head[1]}+{_DEBIAN[release]}"


def copy(release: Release, folder: Path) -> None:
    """Copy the source to ``folder``, with debian/ at its top and an entry of the changelog for this build."""
    for name in files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, target, follow_symlinks=False)
    shutil.move(folder / "packaging/debian", folder / "debian")
    changelog = folder / "debian/changelog"
    text = changelog.read_text()
    foot = _FOOT.search(text)
    if foot is None:
        raise TestbedError("packaging/debian/changelog has no line ` -- MAINTAINER  DATE`")
    # A second after the entry below, not now: the date becomes SOURCE_DATE_EPOCH, which two builds have to share.
    date = format_datetime(parsedate_to_datetime(foot[2]) + timedelta(seconds=1))
    head = f"rbee ({version(release)}) {release}; urgency=medium"
    entry = f"{head}\n\n  * Built for {release}.\n\n -- {foot[1]}  {date}\n\n"
    changelog.write_text(entry + text)
