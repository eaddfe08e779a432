"""The fixtures of every test, and what a failed test on a machine shows."""

from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from tests.machines.testbed import debs, packages, project, trees
from tests.machines.testbed.fixtures import (
    bare_machine,
    installation,
    machine,
    network,
    release,
    repositories,
    shared_machine,
)
from tests.machines.testbed.machine import Machine
from tests.machines.testbed.network import Network

__all__ = ["bare_machine", "installation", "machine", "network", "release", "repositories", "shared_machine"]

_SHOWN_LINES = 40

# examples that take long on a busy machine are no failure: each test has pytest's own time limit
settings.register_profile("rbee", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rbee")


def _machines(arguments: dict[str, object]) -> list[Machine]:
    found = [value for value in arguments.values() if isinstance(value, Machine)]
    for value in arguments.values():
        if isinstance(value, Network):
            found += [machine for machine in value.machines if machine not in found]
    return [machine for machine in found if machine.pid]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Trees, packages (Python's and Debian's) and models are there before the first test's time limit begins to run."""
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    if session.config.option.collectonly or not wanted & {"network", "installation", "repositories"}:
        return
    for each in trees.Release:
        packages.layer(each)
    if wanted & {"installation", "repositories"}:
        project.models()
    if "repositories" in wanted:
        for each in debs.RELEASES:
            debs.repositories(each)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows the end of its machines' journals."""
    report = yield
    if report.when == "call" and report.failed:
        for found in _machines(getattr(item, "funcargs", {})):
            command = ["journalctl", "--no-pager", "--boot", f"--lines={_SHOWN_LINES}", "--output=short-monotonic"]
            report.sections.append((f"journal of {found.name}", found.run(command, check=False).stdout))
    return report
