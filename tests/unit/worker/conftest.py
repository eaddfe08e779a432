"""The demo models, built once for every test of the worker."""

import tempfile
from pathlib import Path

import pytest

from rbee.keeper.demo.build import DEMO_MODELS, build_all

FAULTY = ("faulty-slow-load", "faulty-bad-index", "faulty-broken-file", "faulty-outside-data")


@pytest.fixture(scope="session")
def models() -> Path:
    """A folder of models, one folder each; kept between runs, rebuilt when their sources change."""
    folder = Path(tempfile.gettempdir()) / "rbee-unit-models"
    build_all(folder, (*DEMO_MODELS, *FAULTY))
    return folder
