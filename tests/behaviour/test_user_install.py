"""Steps of features/user_install.feature."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from pytest_bdd import given, scenarios, then

from rbee import __version__
from rbee.keeper.commands.config import EXAMPLE

scenarios("features/user_install.feature")

CHECKOUT = Path(__file__).resolve().parents[2]
SOURCE = ("daemons", "setup.cfg", "pyproject.toml", "README.md")


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return tmp_path / "prefix"


@given("pip has installed the source into a folder of the user's own")
def install(tmp_path: Path, prefix: Path) -> None:
    copy = tmp_path / "source"  # building leaves files beside the source
    copy.mkdir()
    for name in SOURCE:
        if (CHECKOUT / name).is_dir():
            shutil.copytree(CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(CHECKOUT / name, copy)
    # what it depends on is in the environment of the tests
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "-q", "install", *offline, "--prefix", prefix, copy]
    done = subprocess.run(pip, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def rbee(prefix: Path, *arguments: str) -> str:
    """Run the installed command, from that folder alone, for a user whose home is beside it; what it said."""
    paths = sysconfig.get_paths(vars={"base": str(prefix), "platbase": str(prefix)})
    environment = {"PATH": os.defpath, "PYTHONPATH": paths["purelib"], "HOME": str(prefix.parent)}
    command = [Path(paths["scripts"], "rbee"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=environment, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@then("rbee version, run from that folder, says the version of the source")
def version(prefix: Path) -> None:
    assert __version__ in rbee(prefix, "version")


@then("rbee config init writes ~/.config/rbee/config.yaml, which rbee config show reads")
def configuration(prefix: Path) -> None:
    rbee(prefix, "config", "init")
    written = prefix.parent / ".config/rbee/config.yaml"
    assert written.read_text() == EXAMPLE
    assert str(written) in rbee(prefix, "config", "show")
