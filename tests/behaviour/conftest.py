"""What scenarios share: an rbee of processes (`stack`), one on a real systemd (`house`), and tags that name rows."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.behaviour.support.house import House
from tests.behaviour.support.model_source import ModelSource
from tests.behaviour.support.stack import Stack
from tests.machines.testbed import Machine, project

_ROW = re.compile(r"[A-Z0-9]+-\d+")


def pytest_bdd_apply_tag(tag: str, function: Callable[..., object]) -> bool | None:
    """A tag that names a row of the behaviours is for tests/behaviour/coverage, not a marker of pytest."""
    return True if _ROW.fullmatch(tag) else None


@pytest.fixture(scope="session")
def models() -> Path:
    """The folder of the demonstration models."""
    return project.models() / project.MODELS


@pytest.fixture
def stack(models: Path) -> Iterator[Stack]:
    """A whole rbee of processes, for one scenario; nothing runs until asked for."""
    made = Stack(models)
    yield made
    made.close()


@pytest.fixture(scope="module")
def shared_stack(models: Path) -> Iterator[Stack]:
    """Queen and hive running, for all scenarios of a module that leave them as they found them."""
    made = Stack(models)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def source() -> Iterator[ModelSource]:
    """A source of models, which a scenario fills and breaks as it likes."""
    made = ModelSource().start()
    yield made
    made.close()


@pytest.fixture
def house(machine: Machine) -> House:
    """A real systemd of its own with the project installed; nothing is started."""
    return House(machine)


@pytest.fixture(scope="module")
def shared_house(shared_machine: Machine) -> House:
    """A real systemd with queen and hive running, for all scenarios of a module."""
    made = House(shared_machine)
    made.start()
    return made
