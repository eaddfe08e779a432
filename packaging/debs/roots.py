"""The clean root of a release: what a build may use, and nothing of the machine that builds."""

import subprocess
from pathlib import Path

from tests.machines.testbed import apt, cache
from tests.machines.testbed.errors import TestbedError
from tests.machines.testbed.trees import Release

BUILDER = "builder"
_PYTHON = ("python3", "python3-dev", "python3-venv")
_TOOLS = ("build-essential", "debhelper", "pkgconf", *_PYTHON, "lintian", "apt-utils", "mandoc")
# Debian 12 has the folders of units in systemd's own pkg-config file, Debian 13 in a package of its own.
_UNIT_FOLDERS = {Release.BOOKWORM: "systemd", Release.TRIXIE: "systemd-dev"}
_POINTS = ("wheels", "build")


def root(release: Release) -> Path:
    """The release's build root, read-only by agreement; made at the first call.

    Raises:
        TestbedError: mmdebstrap failed; its last lines are in the message.
    """
    tools = (*_TOOLS, _UNIT_FOLDERS[release])
    key = cache.digest([release, *tools, *_POINTS, BUILDER])

    def build(folder: Path) -> None:
        made = folder / "root"
        options = [f"--aptopt={line}" for line in apt.network_options()]
        hooks = [f"--customize-hook=chroot $1 useradd --no-create-home --uid 1000 {BUILDER}"]
        command = ["mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={','.join(tools)}"]
        done = subprocess.run(
            [*command, *options, *hooks, release, made, apt.mirror()], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise TestbedError(f"mmdebstrap of a build root for {release} failed:\n{done.stderr[-3000:]}")
        for point in _POINTS:
            (made / point).mkdir()

    return cache.build_once("trees", f"build-{release}-{key}", build) / "root"
