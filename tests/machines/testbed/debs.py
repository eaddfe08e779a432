"""The project's Debian packages for machines: built once by packaging/build, and installed by apt from their folder."""

import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.machines.testbed import cache, project, trees
from tests.machines.testbed.errors import TestbedError
from tests.machines.testbed.machine import Machine
from tests.machines.testbed.network import Network
from tests.machines.testbed.packages import CHECKOUT
from tests.machines.testbed.trees import Release

RELEASES = [Release(name) for name in os.environ.get("RBEE_PACKAGES", " ".join(Release)).split()]
NEXT = "0.99.0"
MIGRATED = "of_the_next_version"
"""The table that NEXT adds to the queen's database."""
PACKAGES = ("rbee", "rbee-queen", "rbee-hive", "rbee-worker", "rbee-common")
_CONTENT = ("daemons", "docs/examples", "docs/man", "packaging", "units", "pyproject.toml", "setup.cfg")
_BUILDER = "tests/machines/testbed"


@dataclass(frozen=True)
class Repositories:
    """Folders that apt installs from: this checkout's packages, and the same code as the higher version NEXT."""

    this: Path
    higher: Path


@functools.cache
def repositories(release: Release) -> Repositories:
    """Both repositories of a release, as this checkout is at the first call: from the cache or built (some minutes).

    Raises:
        TestbedError: packaging/build failed; its last lines are in the message.
    """
    # Copied first: what is edited while the first build runs would otherwise be in the second one.
    with tempfile.TemporaryDirectory(prefix="rbee-snapshot-") as folder:
        snapshot = _copy(CHECKOUT, Path(folder, "this"))
        key = cache.digest(item for part in _CONTENT for item in (part, _content(snapshot / part)))
        this = cache.build_once("debs", f"{release}-this-{key}", lambda to: _build(release, to, snapshot))
        higher = cache.build_once(
            "debs",
            f"{release}-next-{key}",
            lambda to: _build(release, to, _raised(_copy(snapshot, Path(folder, "next"))), "--quick"),
        )
    for kind in ("this", "next"):
        _forget_old(f"{release}-{kind}-")
    return Repositories(this, higher)


def _forget_old(prefix: str) -> None:
    """Each is a quarter of a gigabyte, and every change of the code makes two: the three latest of a kind stay."""
    found = [path for path in (cache.root() / "debs").glob(f"{prefix}*") if path.is_dir()]
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[3:]:
        cache.remove(path)
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)


def _build(release: Release, target: Path, checkout: Path, *options: str) -> None:
    command = [str(checkout / "packaging/build"), "--release", release, "--out", str(target), *options]
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, env=clean)
    if done.returncode:
        raise TestbedError(f"packaging/build for {release} failed: {done.stdout[-1000:]}{done.stderr[-6000:]}")


def _content(path: Path) -> str | bytes:
    return path.read_bytes() if path.is_file() else cache.digest_files(path)


def _copy(checkout: Path, folder: Path) -> Path:
    """Copy what builds the packages; it can build them, being no checkout of git."""
    for part in (*_CONTENT, _BUILDER):
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        if (checkout / part).is_dir():
            shutil.copytree(checkout / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(checkout / part, folder / part)
    for package in ("tests", "tests/machines"):
        (folder / package / "__init__.py").touch()
    return folder


def _raised(checkout: Path) -> Path:
    """Give a copy the version NEXT, with one more migration of the queen's database."""
    module = checkout / "daemons/rbee/__init__.py"
    module.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{NEXT}"', module.read_text()))
    database = checkout / "daemons/rbee/queen/database.py"
    one_more = f'"CREATE TABLE {MIGRATED} (id INTEGER) STRICT;",'
    database.write_text(
        re.sub(r"^MIGRATIONS = \(\n.*?(?=^\))", rf"\g<0>{one_more}\n", database.read_text(), flags=re.M | re.S)
    )
    changelog = checkout / "packaging/debian/changelog"
    text = changelog.read_text()
    changelog.write_text(re.sub(r"^rbee \([^)]*\)", f"rbee ({NEXT})", text, count=1) + "\n" + text)
    return checkout


@contextmanager
def bare_node(release: Release, built: Repositories) -> Iterator[Machine]:
    """A bare machine that knows this checkout's repository; the demo models are in /srv/demo, nothing is installed."""
    with Network() as network:
        binds = [f"{built.this}:/srv/this", f"{built.higher}:/srv/higher", f"{project.models()}:/srv/demo"]
        machine = network.add("node", release=release, binds=binds)
        # There is no way to Debian from here: everything else that the packages need is on the machine.
        machine.run(["sh", "-c", "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*"])
        use(machine, "this")
        yield machine


def use(machine: Machine, repository: str, address: str | None = None) -> None:
    """Have apt install from this repository ("this" or "higher") alone: its folder, or an address where it is shown."""
    keyring = "/usr/share/keyrings/rbee-archive-keyring.gpg"
    machine.run(["cp", f"/srv/{repository}/rbee-archive-keyring.gpg", keyring])
    source = f"deb [signed-by={keyring}] {address or f'file:/srv/{repository}'} {machine.release} main\n"
    machine.write("/etc/apt/sources.list.d/rbee.list", source)
    machine.run(["apt-get", "-q", "update"])


def apt(machine: Machine, *arguments: str, check: bool = True, needrestart: str = "l") -> str:
    """apt-get without questions; everything it said. ``needrestart``: its mode where it is installed, list or auto."""
    settings = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_MODE": needrestart}
    done = machine.run(["apt-get", "-q", "-y", *arguments], env=settings, timeout=300, check=check)
    return done.stdout + done.stderr


def install_on_demand(machine: Machine, package: str) -> None:
    """Install autopkgtest or needrestart with what it needs, from the files in the machine's tree."""
    folder = f"/{trees.ON_DEMAND_FOLDER}/{package}"
    files = sorted(f"{folder}/{path.name}" for path in machine.path(folder).glob("*.deb"))
    apt(machine, "install", "--no-install-recommends", *files)


def version_in(machine: Machine, repository: str, package: str) -> str:
    """The version of a package that a repository has."""
    (deb,) = machine.path(f"/srv/{repository}").glob(f"pool/{machine.release}/{package}_*.deb")
    return deb.name.split("_")[1]


def put_model(machine: Machine, model: str) -> None:
    """Copy a demo model to where workers look for models."""
    machine.run(["cp", "-r", f"/srv/demo/{project.MODELS}/{model}", "/var/lib/rbee/models/"])
