"""The locked Python packages inside a release's tree: a layer with the product's private virtual environment."""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.machines.testbed import cache, trees
from tests.machines.testbed.errors import TestbedError
from tests.machines.testbed.trees import Release

CHECKOUT = Path(__file__).resolve().parents[3]
LOCKS = CHECKOUT / "packaging/requirements"
VENV = "usr/lib/rbee/venv"
TEST_PACKAGES = "usr/lib/rbee/test-packages"
_LOCKED = ("build", "worker", "test", "demo-weights")
_NEWEST_GLIBC = 36
_INSTALL = """
set -e
root=$2 venv=/$4 extra=/$5
mount --bind "$1$venv" "$root$venv"
mount --bind "$1$extra" "$root$extra"
mount --bind "$3" "$root/run/wheels"
mount --bind /proc "$root/proc"
mount --bind /dev "$root/dev"
run() { chroot "$root" env -i PATH=/usr/bin:/bin HOME=/tmp PIP_NO_INDEX=1 PIP_FIND_LINKS=/run/wheels "$@"; }
pip="-m pip -q --no-cache-dir --disable-pip-version-check install --root-user-action=ignore"
install() { run "$venv/bin/python" $pip --require-hashes --no-deps "$@"; }
run python3 -m venv "$venv"
install -r /run/wheels/build.txt
install --no-build-isolation -r /run/wheels/worker.txt
install --no-build-isolation --target "$extra" -r /run/wheels/extra.txt
"""


def blocks(lock: Path) -> dict[str, str]:
    """A lock file's requirements: by its first line without the backslash, the whole block with its hashes."""
    found: dict[str, str] = {}
    for block in re.split(r"\n(?=\S)", lock.read_text()):
        if block and not block.startswith("#"):
            found[block.splitlines()[0].rstrip(" \\")] = block
    return found


def layer(release: Release) -> Path:
    """The layer with the worker's packages in a virtual environment, and the tests' further ones beside it.

    What a worker needs is in /usr/lib/rbee/venv; what only tests need (pytest, openai, onnx) is in
    /usr/lib/rbee/test-packages, which is on nobody's path, so a package missing from the product's lock shows.

    Raises:
        TestbedError: a package could not be fetched or installed; pip's words are in the message.
    """
    locks = [(LOCKS / f"{name}.txt").read_text() for name in _LOCKED]
    key = cache.digest([*locks, _INSTALL, str(trees.tree(release))])

    def build(folder: Path) -> None:
        for part in (VENV, TEST_PACKAGES):
            (folder / part).mkdir(parents=True)
        folders = [str(folder), str(trees.tree(release)), str(wheels(release))]
        script = ["sh", "-c", _INSTALL, "sh", *folders, VENV, TEST_PACKAGES]
        _tell(["unshare", "--mount", "--propagation", "private", "--", *script])

    return cache.build_once("packages", f"{release}-{key}", build)


def wheels(release: Release) -> Path:
    """Every locked package as a file for the release's Python, with the lock files they were fetched by."""
    texts = {name: (LOCKS / f"{name}.txt").read_text() for name in _LOCKED}
    key = cache.digest([release.python, platform.machine(), *texts.values()])

    def build(folder: Path) -> None:
        known = blocks(LOCKS / "worker.txt") | blocks(LOCKS / "build.txt")
        tested = blocks(LOCKS / "test.txt") | blocks(LOCKS / "demo-weights.txt")
        extra = [block for name, block in tested.items() if name not in known]
        shutil.copy(LOCKS / "build.txt", folder)
        shutil.copy(LOCKS / "worker.txt", folder)
        (folder / "extra.txt").write_text("\n".join(extra) + "\n")
        wanted = known | tested
        _fetch(release.python, [block for name, block in wanted.items() if _applies(name, release.python)], folder)

    return cache.build_once("wheels", f"{release.python}-{key}", build)


def _applies(requirement: str, python: str) -> bool:
    """Whether a requirement's marker holds for that Python on this kind of machine."""
    from packaging.requirements import Requirement

    marker = Requirement(requirement).marker
    return marker is None or marker.evaluate({"python_full_version": f"{python}.2", "python_version": python})


def _fetch(python: str, wanted: list[str], folder: Path) -> None:
    """Download for another Python: pip reads markers for its own one, so they were judged before and go."""
    plain = [re.sub(r"^(\S+) ;[^\\]*", r"\1 ", block) for block in wanted]
    sources = [block for block in plain if block.startswith("sdnotify==")]
    (folder / "wheels.lock").write_text("\n".join(block for block in plain if block not in sources) + "\n")
    (folder / "sources.lock").write_text("\n".join(sources) + "\n")
    arch = platform.machine()
    platforms = [f"manylinux_2_{minor}_{arch}" for minor in range(_NEWEST_GLIBC, 4, -1)]
    platforms += [f"{name}_{arch}" for name in ("manylinux2014", "manylinux2010", "manylinux1", "linux")]
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "download", "--require-hashes"]
    pip += ["--no-deps", "--progress-bar=off", f"--dest={folder}"]
    aim = [f"--python-version={python}", "--implementation=cp", "--only-binary=:all:"]
    aim += [f"--platform={name}" for name in platforms]
    aim += [f"--abi={abi}" for abi in (f"cp{python.replace('.', '')}", "abi3", "none")]
    _tell([*pip, *aim, "-r", folder / "wheels.lock"])
    _tell([*pip, "--no-build-isolation", "-r", folder / "sources.lock"])


def _tell(argv: Sequence[str | Path]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise TestbedError(f"{argv[0]} failed ({done.returncode}):\n{done.stdout[-1500:]}{done.stderr[-3000:]}")
