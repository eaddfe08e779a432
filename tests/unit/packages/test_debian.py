"""The Debian folder keeps to the code: its version, its tokens, and a reason for every exception."""

import re
import subprocess
from pathlib import Path

import pytest

import rbee
from rbee.host.machine import DRIVER_PACKAGE, OLDEST_DRIVER
from rbee.keeper.commands.credentials import FILES
from rbee.worker.engine.cuda_advice import PACKAGES

CHECKOUT = Path(__file__).resolve().parents[3]
DEBIAN = CHECKOUT / "packaging/debian"
SCRIPTS = sorted(path for path in DEBIAN.iterdir() if path.suffix in (".postinst", ".postrm", ".prerm", ".in"))


def check_version(version: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DEBIAN / "check-version", version], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )


def test_the_changelog_has_the_version_of_the_code() -> None:
    found = re.match(r"rbee \(([^)]+)\)", (DEBIAN / "changelog").read_text())
    assert found is not None
    assert found[1] == rbee.__version__


def test_a_build_of_another_version_is_refused_by_name() -> None:
    assert check_version(rbee.__version__).returncode == 0
    assert check_version(f"{rbee.__version__}+deb12").returncode == 0
    refused = check_version("7.7.7")
    assert refused.returncode == 1
    assert "7.7.7" in refused.stderr


@pytest.mark.parametrize("path", sorted(DEBIAN.glob("*.lintian-overrides")), ids=lambda path: path.name)
def test_every_override_has_its_reason(path: Path) -> None:
    reason = False
    for line in path.read_text().splitlines():
        assert reason or line.startswith("#"), f"no comment above {line}"
        reason = True
        assert line.startswith("#") or line.startswith(f"{path.name.removesuffix('.lintian-overrides')}: "), line


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_maintainer_script_ends_at_its_first_failure_and_is_a_shell_script(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[:2] == ["#!/bin/sh", "set -e"]
    assert "#DEBHELPER#" in lines
    subprocess.run(["sh", "-n", path], check=True)


def test_a_purge_removes_the_tokens_that_an_installation_makes() -> None:
    purge = (DEBIAN / "rbee-common.postrm").read_text()
    assert [name for name in FILES if name not in purge] == []
    assert len(re.findall(r"rbee[-.]\S*_token", purge)) == len(FILES)


def test_the_cuda_packages_that_an_advice_names_are_those_that_the_package_and_the_man_page_name() -> None:
    control = (DEBIAN / "control").read_text()
    page = (CHECKOUT / "docs/man/rbee-worker.yaml.5").read_text()
    needed = ("libcublas", "libcudnn", "libcudart", "libcufft", "libcurand", "libnvrtc")
    advised = {package for prefix, package in PACKAGES if prefix in needed}
    assert len(advised) == len(needed)
    (recommends,) = re.findall(r"^Recommends: (cuda-.*?)^\S", control, re.M | re.S)
    firsts = {entry.split("|")[0].strip() for entry in recommends.split(",")}
    assert advised == firsts - {"rbee-hive"}
    (line,) = re.findall(r"^apt install (cuda-.*?)\n\.Ed", page, re.M | re.S)
    assert advised == set(line.replace("\\e", "").split())
    assert f"apt install {DRIVER_PACKAGE}" in page
    assert f"driver {OLDEST_DRIVER} or later" in page


def test_a_downgrade_is_held_against_every_database() -> None:
    asked = (DEBIAN / "environment").read_text()
    daemons = CHECKOUT / "daemons"
    found = []
    for path in sorted(daemons.rglob("*.py")):
        for kind in re.findall(r"^class (\w+)\(SqliteFile\)", path.read_text(), re.M):
            module = ".".join(path.relative_to(daemons).with_suffix("").parts)
            found.append((f"from {module} import {kind}\n" in asked, f"len({kind}.MIGRATIONS)" in asked, module))
    assert found
    assert [module for imported, counted, module in found if not (imported and counted)] == []
