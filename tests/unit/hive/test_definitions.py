"""Definition files and model references."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.hive.definitions import Definitions, model_folder
from rbee.host.paths import Paths
from rbee.wire.errors import InvalidModelReference, StorageUnavailable
from rbee.wire.worker_spec import Backend, WorkerSpec

SPEC = WorkerSpec(model="/models/tiny", slots=2, idle_limit_s=0.0)


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    made = Paths(tmp_path / "etc", tmp_path / "state", tmp_path / "run")
    for folder in made.definition_folders:
        folder.mkdir(parents=True)
    return made


def test_what_is_written_is_read_back(paths: Paths) -> None:
    definitions = Definitions(paths)
    path = definitions.write("w", SPEC, ephemeral=False)
    assert path == paths.state_dir / "workers/w.yaml"
    assert path.stat().st_mode & 0o777 == 0o644
    assert [entry.name for entry in path.parent.iterdir()] == ["w.yaml"]
    read = definitions.read("w")
    assert read is not None
    assert read.spec == SPEC


def test_ephemeral_and_kept_take_each_others_place(paths: Paths) -> None:
    definitions = Definitions(paths)
    definitions.write("w", SPEC, ephemeral=False)
    assert definitions.write("w", SPEC, ephemeral=True) == paths.run_dir / "workers/w.yaml"
    assert not (paths.state_dir / "workers/w.yaml").exists()
    assert definitions.forget("w")
    assert not definitions.forget("w")
    assert definitions.read("w") is None


@pytest.mark.parametrize("ephemeral", [True, False])
def test_what_the_disk_refuses_is_told_with_what_to_do(paths: Paths, ephemeral: bool) -> None:
    definitions = Definitions(paths)
    (paths.state_dir / "workers/w.yaml").mkdir()  # in the way of a file, to be written or removed
    told = r"cannot be (written|removed): Is a directory; check the disk, owner and mode of the folder workers"
    with pytest.raises(StorageUnavailable, match=told) as caught:
        definitions.write("w", SPEC, ephemeral=ephemeral)
    assert str(paths.state_dir) not in caught.value.message
    with pytest.raises(StorageUnavailable, match="cannot be removed: Is a directory"):
        definitions.forget("w")


def test_the_operators_file_wins_and_stays(paths: Paths) -> None:
    definitions = Definitions(paths)
    definitions.write("w", SPEC, ephemeral=False)
    (paths.config_dir / "workers/w.yaml").write_text("model: /models/other\nbackend: cpu\n")
    found = definitions.read_all()["w"]
    assert found.spec == WorkerSpec(model="/models/other", backend=Backend.CPU)
    assert definitions.operators(found)
    definitions.forget("w")
    assert definitions.read("w") == found


def test_a_wrong_file_has_its_line_and_a_changed_one_is_read_again(paths: Paths) -> None:
    path = paths.config_dir / "workers/w.yaml"
    path.write_text("model: /m\nslots: many\n")
    definitions = Definitions(paths)
    wrong = definitions.read_all()["w"]
    assert wrong.spec is None
    assert "w.yaml:2: slots" in wrong.problem
    path.write_text("model: /m\nslots: 3\n")
    os.utime(path, ns=(1, 1))
    right = definitions.read_all()["w"]
    assert right.spec is not None
    assert right.spec.slots == 3


def test_names_that_are_no_worker_are_left_alone(paths: Paths) -> None:
    for name in ("under_score.yaml", ".hidden.yaml", "w.yml", "..yaml", "a" * 65 + ".yaml"):
        (paths.config_dir / "workers" / name).write_text("model: /m\n")
    assert Definitions(paths).read_all() == {}
    assert Definitions(Paths(paths.run_dir / "absent")).read_all() == {}


def test_a_model_folder_under_a_root_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "models/tiny"
    folder.mkdir(parents=True)
    assert model_folder(f"file://{folder}", (tmp_path / "other", tmp_path / "models")) == folder


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("file:///etc", "not under a model root"),
        ("file://{root}", "not under a model root"),
        ("file://{root}/../secret", "none of the accepted forms"),
        ("file://{root}/absent", "no such model folder"),
        ("file://{root}/link", "symbolic link"),
        ("file://{root}/link/deep", "symbolic link"),
        ("file://{root}/file", "no such model folder"),
        ("hf:org/repo", "file:///FOLDER"),
        ("garbage", "none of the accepted forms"),
        ("file://{root}/a\nb", "none of the accepted forms"),
        ("file://{root}/a;b", "none of the accepted forms"),
        ("file://{root}/\x1b[31m", "none of the accepted forms"),
    ],
)
def test_other_references_are_refused_and_not_repeated(tmp_path: Path, reference: str, why: str) -> None:
    root, outside = tmp_path / "models", tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    root.mkdir()
    (root / "link").symlink_to(outside)
    (root / "file").write_text("")
    with pytest.raises(InvalidModelReference, match=why) as refused:
        model_folder(reference.format(root=root), (root,))
    assert str(tmp_path) not in refused.value.message


@given(st.text(max_size=100))
def test_any_reference_is_taken_or_refused(text: str) -> None:
    with pytest.raises(InvalidModelReference):
        model_folder(text, (Path("/nonexistent/models"),))
