"""The demo models, built once for all tests here."""

import os
from pathlib import Path

import pytest

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from rbee.keeper.demo import build, faulty

NAMES = (*build.DEMO_MODELS, faulty.BAD_INDEX, faulty.BROKEN_FILE, faulty.OUTSIDE_DATA)


@pytest.fixture(scope="session")
def models_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo-models")


@pytest.fixture(scope="session")
def models(models_folder: Path) -> dict[str, Path]:
    return build.build_all(models_folder, NAMES)
