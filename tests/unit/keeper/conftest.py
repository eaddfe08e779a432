"""A person, and folders short enough for a Unix socket."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.keeper.command import Person


@pytest.fixture
def person(tmp_path: Path) -> Person:
    """Someone with an empty home."""
    return Person(tmp_path)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short path."""
    with tempfile.TemporaryDirectory(prefix="rbee-") as name:
        yield Path(name)
