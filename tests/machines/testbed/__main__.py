"""Commands of the testbed.

`prepare` builds what is cached, `build-packages` the Debian packages that tests install, `native` prints the folder of
the project as it is compiled in them, and `unit-tests RELEASE` runs the unit tests in its tree.
"""

import subprocess
import sys
import time

from tests.machines.testbed import cache, debs, native, packages, project, trees
from tests.machines.testbed.errors import TestbedError
from tests.machines.testbed.network import Network
from tests.machines.testbed.packages import CHECKOUT, TEST_PACKAGES, VENV
from tests.machines.testbed.trees import Release

_CHECKOUT_INSIDE = "/run/project"


def prepare() -> None:
    """Build every release's tree and packages and the models; each step is named as it begins."""
    started = time.monotonic()
    for release in Release:
        _say(f"the tree of {release}", started)
        trees.tree(release)
        _say(f"the Python packages for {release}", started)
        packages.layer(release)
    _say("the models", started)
    project.models()
    cache.prune()
    _say("all is there", started)


def _say(what: str, started: float) -> None:
    print(f"testbed: {what} ({time.monotonic() - started:.0f} s)", flush=True)


def build_packages() -> None:
    """Build the Debian packages of each release that is to be tested, and their higher versions."""
    started = time.monotonic()
    for release in debs.RELEASES:
        debs.repositories(release)
        _say(f"the Debian packages for {release} are there", started)


def unit_tests(release: Release, arguments: list[str]) -> int:
    """pytest's exit code for tests/unit under the release's own Python, with this checkout read-only."""
    with Network() as network:
        machine = network.add("unit", release=release, layers=[packages.layer(release)], boot=False)
        checkout = machine.disk / _CHECKOUT_INSIDE.lstrip("/")
        network.run(["mount", "-t", "proc", "proc", machine.disk / "proc"])
        network.run(["mount", "--rbind", "/dev", machine.disk / "dev"])
        network.run(["mount", "--bind", CHECKOUT, checkout])
        network.run(["mount", "-o", "remount,ro,bind", checkout])
        environment = {
            "PATH": f"/{VENV}/bin:/{TEST_PACKAGES}/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PYTHONPATH": f"/{TEST_PACKAGES}:{_CHECKOUT_INSIDE}/daemons",
            "PYTHONDONTWRITEBYTECODE": "1",
            "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",
            "ORT_DISABLE_TELEMETRY": "1",
        }
        tests = ["python", "-m", "pytest", "-p", "no:cacheprovider", "tests/unit", *arguments]
        enter = ["chroot", str(machine.disk), "env", f"--chdir={_CHECKOUT_INSIDE}", *tests]
        return subprocess.run(network.inside(enter), env=environment, check=False).returncode


def main(arguments: list[str]) -> int:
    """Run one command; the exit code."""
    try:
        match arguments:
            case ["prepare"]:
                prepare()
                return 0
            case ["build-packages"]:
                build_packages()
                return 0
            case ["native"]:
                print(native.folder())
                return 0
            case ["unit-tests", release, *rest] if release in list(Release):
                return unit_tests(Release(release), rest)
    except TestbedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    commands = f"prepare | build-packages | native | unit-tests {'|'.join(Release)} [pytest arguments]"
    print(f"usage: python -m tests.machines.testbed {commands}")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
