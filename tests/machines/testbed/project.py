"""The project itself on a machine: its code, commands, units, users and tokens, as its packages would install it."""

import configparser
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

from rbee.keeper.demo import slow_talk
from rbee.keeper.demo.build import DEMO_MODELS
from tests.machines.testbed import cache, packages
from tests.machines.testbed.errors import TestbedError
from tests.machines.testbed.machine import Machine
from tests.machines.testbed.network import Network
from tests.machines.testbed.packages import CHECKOUT, LOCKS, VENV
from tests.machines.testbed.trees import Release

MODELS = "var/lib/rbee/models"
TOKENS = ("rbee-queen.api_token", "rbee.hive_callback_token", "rbee.hive_api_token", "rbee.worker_api_token")
_UNIT_SUFFIXES = {".service", ".socket", ".target", ".slice", ".timer", ".path"}
_UNIT_FOLDERS = {
    "sysusers.d": "usr/lib/sysusers.d",
    "tmpfiles.d": "usr/lib/tmpfiles.d",
    "polkit": "usr/share/polkit-1/rules.d",
}
_SCRIPT = "#!/{venv}/bin/python\nimport sys\nfrom {module} import {name}\nsys.exit({name}())\n"


def _in_tree(machine: Machine, *argv: str) -> None:
    clean = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "HOME": "/root"}
    inside = machine.network.inside(["chroot", machine.disk, *argv])
    done = subprocess.run(inside, capture_output=True, text=True, check=False, env=clean, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise TestbedError(f"{' '.join(argv)} failed on the machine ({done.returncode}): {done.stdout}{done.stderr}")


def install_project(machine: Machine) -> None:
    """Install this checkout on a machine that is off and has the packages' layer.

    Whatever is in units/ and in setup.cfg's console_scripts is taken, so names live there alone.

    Raises:
        TestbedError: one of the steps failed; its output is in the message.
    """
    machine.network.run(["mount", "-t", "proc", "proc", machine.disk / "proc"])
    _install_code(machine)
    _install_units(machine.root)
    _in_tree(machine, "systemd-sysusers")
    _in_tree(machine, "systemd-tmpfiles", "--create", "rbee.conf")
    _in_tree(machine, "/usr/bin/rbee", "credentials", "init")
    missing = [name for name in TOKENS if not machine.path(f"/etc/credstore/{name}").is_file()]
    if missing:
        raise TestbedError(f"`rbee credentials init` did not make {', '.join(missing)}")
    machine.network.run(["umount", machine.disk / "proc"])


def _install_code(machine: Machine) -> None:
    root = machine.root
    (site,) = (root / VENV).glob("lib/python3.*/site-packages")
    shutil.copytree(CHECKOUT / "daemons/rbee", site / "rbee", ignore=shutil.ignore_patterns("__pycache__"))
    setup = configparser.ConfigParser()
    setup.read(CHECKOUT / "setup.cfg")
    for line in setup["options.entry_points"]["console_scripts"].strip().splitlines():
        command, target = (part.strip() for part in line.split("="))
        module, name = target.split(":")
        script = root / VENV / "bin" / command
        script.write_text(_SCRIPT.format(venv=VENV, module=module, name=name))
        script.chmod(0o755)
        (root / "usr/bin" / command).symlink_to(f"/{VENV}/bin/{command}")
    _in_tree(machine, f"/{VENV}/bin/python", "-m", "compileall", "-q", f"/{site.relative_to(root)}/rbee")


def _install_units(root: Path) -> None:
    system = root / "usr/lib/systemd/system"
    for path in (CHECKOUT / "units").iterdir():
        if path.suffix in _UNIT_SUFFIXES:
            shutil.copyfile(path, system / path.name)
    for folder, target in _UNIT_FOLDERS.items():
        (root / target).mkdir(parents=True, exist_ok=True)
        for path in (CHECKOUT / "units" / folder).iterdir():
            shutil.copyfile(path, root / target / path.name)
    shutil.copy(CHECKOUT / "units/refresh-credentials", root / "usr/lib/rbee/refresh-credentials")


def models() -> Path:
    """The layer with the demonstration's models under /var/lib/rbee/models; built once by the project's own builder.

    Raises:
        TestbedError: the builder failed; its last lines are in the message.
    """
    builder = CHECKOUT / "daemons/rbee/keeper/demo"
    locks = [(LOCKS / name).read_bytes() for name in ("demo.txt", "demo-weights.txt")]
    key = cache.digest([cache.digest_files(builder), *locks])

    def build(folder: Path) -> None:
        (folder / MODELS).mkdir(parents=True)
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT / "daemons"), "ORT_DISABLE_TELEMETRY": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "rbee.keeper.demo.build", folder / MODELS, *DEMO_MODELS, slow_talk.NAME],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            env=environment,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise TestbedError(f"the demonstration's models could not be built:\n{done.stdout[-3000:]}")

    return cache.build_once("models", key, build)


class Installation:
    """This checkout installed once a test run; a context manager that gives each machine its layers."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="rbee-installation-"))
        self._layers: dict[Release, Path] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def layers(self, release: Release = Release.BOOKWORM, *, with_models: bool = True) -> list[Path]:
        """What Network.add() lays over the release's tree: the project, its packages, its models."""
        if release not in self._layers:
            self._layers[release] = self._install(release)
        return [self._layers[release], packages.layer(release), *([models()] if with_models else [])]

    def _install(self, release: Release) -> Path:
        target = self._folder / release
        with Network() as network:
            machine = network.add("install", release=release, layers=[packages.layer(release)], boot=False)
            install_project(machine)
            network.run(["cp", "--archive", machine.disk.parent / "upper", target])
        return target
