"""Configuration: the file, line and field of what is wrong, overrides named, no value in an error."""

from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from msgspec import Meta

from rbee.host.config import Override, load_config
from rbee.wire.errors import ConfigError
from rbee.wire.worker_spec import WorkerSpec


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    callback_url: str | None = None
    limits: list[int] = []


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    port: int = 8080
    queen: Inner = Inner()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sample.yaml"
    path.write_text(text)
    return path


def test_a_file_gives_its_values_and_says_where_they_came_from(tmp_path: Path) -> None:
    path = write(tmp_path, "name: bee\nport: 9\n")
    loaded = load_config(Sample, path, required=True)
    assert loaded.value == Sample(name="bee", port=9)
    assert loaded.describe()["file"] == str(path)
    assert loaded.describe()["overrides"] == "none"


def test_overrides_win_in_order_and_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "name: bee\nqueen:\n  callback_url: http://a\n")
    overrides = [
        Override("queen.callback_url", "http://b", "QUEEN_CALLBACK_URL"),
        Override("queen.callback_url", "http://c", "--callback-url"),
    ]
    loaded = load_config(Sample, path, required=True, overrides=overrides)
    assert loaded.value.queen.callback_url == "http://c"
    assert loaded.overrides == ("queen.callback_url from QUEEN_CALLBACK_URL", "queen.callback_url from --callback-url")


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ("name: bee\nport: many\n", 2, "port"),
        ("port: 1\n", 1, "name"),
        ("name: bee\n\nqueen:\n  callback_url: 5\n", 4, "queen.callback_url"),
        ("name: bee\nqueen:\n  limits:\n    - 1\n    - two\n", 5, "queen.limits"),
        ("name: bee\ncolour: s3cret\n", 2, "colour"),
        ("name: bee\nqueen:\n  typo: s3cret\n", 3, "queen.typo"),
    ],
)
def test_what_is_wrong_is_named_by_line_and_field(tmp_path: Path, text: str, line: int, field: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(Sample, path, required=True)
    assert f"{path}:{line}: {field}" in caught.value.message
    assert "s3cret" not in caught.value.message


@pytest.mark.parametrize(
    "text", ["a: [1,\n", "- 1\n", "'\n", "? [a]: b\n", "\t: x", "just words", "a: 2024-13-45", "[" * 5000]
)
def test_files_that_are_no_mapping_are_refused_with_their_name(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(Sample, path, required=True)
    assert str(path) in caught.value.message


def test_an_absent_file_gives_defaults_or_is_refused(tmp_path: Path) -> None:
    assert load_config(Inner, tmp_path / "none.yaml", required=False).value == Inner()
    with pytest.raises(ConfigError, match="missing"):
        load_config(Inner, tmp_path / "none.yaml", required=True)


def test_a_bad_override_names_its_source(tmp_path: Path) -> None:
    path = write(tmp_path, "name: bee\n")
    with pytest.raises(ConfigError, match="--port: port"):
        load_config(Sample, path, required=True, overrides=[Override("port", "x", "--port")])


def test_a_worker_definition_says_what_it_accepts(tmp_path: Path) -> None:
    path = write(tmp_path, "model: /m\nbackend: metal\n")
    with pytest.raises(ConfigError, match=r"sample\.yaml:2: backend"):
        load_config(WorkerSpec, path, required=True)


Key = Annotated[str, Meta(pattern=r"^[a-z.]+\Z")]


class Mapped(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    of: dict[Key, Inner] = {}
    deep: list[dict[str, dict[str, int]]] = []


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ("of:\n  a: {}\n  b.c:\n    colour: red\n", 4, "of.b.c.colour"),
        ("of:\n  a: {}\n  b.c:\n    limits: [1,\n    two]\n", 5, "of.b.c.limits[1]"),
        ("of:\n  a: {}\n  B: {}\n", 3, "of.B"),
        ("deep:\n- a: {x: 1}\n- a: {x: 1}\n  b:\n    y: 1\n    z: no\n", 6, "deep[1].b.z"),
    ],
)
def test_keys_that_a_person_chose_are_named_too(tmp_path: Path, text: str, line: int, field: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(Mapped, path, required=True)
    assert caught.value.message.startswith(f"{path}:{line}: {field}: "), caught.value.message
    assert caught.value.details["line"] == line


@pytest.mark.parametrize(
    ("text", "line"), [("name: a\nport: 1\nname: b\n", 3), ("queen:\n  limits: []\n  limits: [1]\n", 3)]
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, line: int) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=f":{line}: .* stands here twice"):
        load_config(Sample, path, required=True)
