"""The demo models, built once for every test of the worker; loops in debug mode."""

import asyncio
from pathlib import Path

import pytest
import pytest_asyncio

from rbee.keeper.demo.build import DEMO_MODELS, build_all

FAULTY = ("faulty-slow-load", "faulty-bad-index", "faulty-broken-file", "faulty-outside-data")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, one folder each."""
    folder = tmp_path_factory.mktemp("worker-models")
    build_all(folder, (*DEMO_MODELS, *FAULTY))
    return folder


@pytest_asyncio.fixture(autouse=True)
async def debug() -> None:
    """asyncio says what was never awaited, and what is called from the wrong thread."""
    asyncio.get_running_loop().set_debug(True)
