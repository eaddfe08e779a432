"""One build: dpkg-buildpackage and lintian in the clean root, without a network, as nobody in particular."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.machines.testbed import cache, packages
from tests.machines.testbed.errors import TestbedError
from tests.machines.testbed.trees import Release

from debs import roots, source

# $1 root, $2 an empty folder for the overlay, $3 wheels, $4 the folder with the source in it, then the command.
_ENTER = """
set -e
root=$2/root
mkdir -p "$2/upper" "$2/work" "$root"
mount -t overlay -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work" overlay "$root"
mount --bind "$3" "$root/wheels"
mount -o remount,ro,bind "$root/wheels"
mount --bind "$4" "$root/build"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
shift 4
exec chroot "$root" setpriv --reuid=builder --regid=builder --clear-groups --inh-caps=-all -- \
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME=/nonexistent RBEE_WHEELS=/wheels "$@"
"""
_BUILD = "cd /build/rbee && DEB_BUILD_OPTIONS='noautodbgsym{more}' dpkg-buildpackage --build=binary --no-sign"
_LINT = "cd /build && lintian --fail-on error,warning --tag-display-limit 0 --info ./*.changes"


@contextmanager
def _place(release: Release) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f"rbee-build-{release}-"))
    try:
        yield folder
    finally:
        cache.remove(folder)


def build(release: Release, target: Path, *, lint: bool = True, quick: bool = False) -> list[Path]:
    """Build the release's packages into ``target`` (with the record of the build); the .deb files, sorted.

    ``quick`` compresses less, for what is soon thrown away.

    Raises:
        TestbedError: the build failed, or lintian found what no override explains; both have printed why.
    """
    root, wheels = roots.root(release), packages.wheels(release)
    with _place(release) as folder:
        work = folder / "build"
        work.mkdir()
        source.copy(release, work / "rbee")
        subprocess.run(["chown", "-R", "1000:1000", work], check=True)
        _run(folder, root, wheels, work, _BUILD.format(more=" quick" if quick else ""), "dpkg-buildpackage")
        if lint:
            _run(folder, root, wheels, work, _LINT, "lintian")
        target.mkdir(parents=True, exist_ok=True)
        made = sorted(path for path in work.iterdir() if path.suffix in (".deb", ".buildinfo", ".changes"))
        for path in made:
            shutil.copy(path, target)
        return sorted(target / path.name for path in made if path.suffix == ".deb")


def _run(folder: Path, root: Path, wheels: Path, work: Path, script: str, what: str) -> None:
    overlay = Path(tempfile.mkdtemp(dir=folder))
    spaces = ["unshare", "--mount", "--net", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
    places = [str(root), str(overlay), str(wheels), str(work)]
    command = [*spaces, "--propagation", "private", "--", "sh", "-c", _ENTER, "sh", *places, "sh", "-c", script]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if done.returncode:
        raise TestbedError(f"{what} failed ({done.returncode}): see above")


def differing(one: list[Path], other: list[Path]) -> list[str]:
    """The names of the files that two builds do not have in common, byte for byte."""
    sums = [{path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths} for paths in (one, other)]
    return sorted(name for name in sums[0].keys() | sums[1].keys() if sums[0].get(name) != sums[1].get(name))
