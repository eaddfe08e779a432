"""References to models: taken apart, named on disk, and refused where they could do harm."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.wire.errors import InvalidModelReference
from rbee.wire.model_reference import MANIFEST, MODEL_ID, Provider, kept_folder, model_name_of, of_definition, parse

DIGEST = "a" * 64


def test_a_hub_reference_has_its_parts() -> None:
    reference = parse("hf:org/repo@v1:onnx/*q4*")
    assert (reference.provider, reference.repo) == (Provider.HF, "org/repo")
    assert (reference.revision, reference.pattern, reference.model_name) == ("v1", "onnx/*q4*", "org/repo")
    assert parse("hf:org/repo").revision is None


def test_a_web_reference_has_its_digest_apart() -> None:
    reference = parse(f"https://models.example:8443/a/tiny.tar.gz#sha256={DIGEST}")
    assert (reference.url, reference.sha256) == ("https://models.example:8443/a/tiny.tar.gz", DIGEST)
    assert (reference.provider, reference.model_name) == (Provider.HTTP, "tiny")
    assert parse("http://[::1]:8000/a/tiny/").model_name == "tiny"


@pytest.mark.parametrize(
    "value",
    ["hf:org/..", "hf:../repo", "hf:org/repo:../x", "https://user:secret@host/m/", "https://host/a/../b", "https://h.example",
     "https://host/m?x=1", "https://host/%2e%2e/m", f"https://host/m#sha256={DIGEST[1:]}", "ftp://host/m", "https:///m",
     "hf:" + "a" * 5000 + "/b"],
)  # fmt: skip
def test_references_that_lead_elsewhere_are_refused(value: str) -> None:
    with pytest.raises(InvalidModelReference) as caught:
        parse(value)
    assert value not in caught.value.message


def test_two_references_never_share_a_folder() -> None:
    references = ["hf:a/b--c", "hf:a--b/c", "hf:a/b", "hf:a/b@x", "hf:a/b:x", "https://h/a/b", "https://h/x/b"]
    assert len({parse(each).model_id for each in references}) == len(references)


@given(st.from_regex(r"hf:[A-Za-z0-9][A-Za-z0-9._-]{0,40}/[A-Za-z0-9][A-Za-z0-9._-]{0,40}", fullmatch=True))
def test_the_id_of_any_reference_can_name_a_folder(value: str) -> None:
    assert MODEL_ID.fullmatch(parse(value).model_id)


def test_a_definition_names_a_folder_or_something_to_fetch(tmp_path: Path) -> None:
    assert of_definition("/srv/models/x") is None
    assert of_definition("file:///srv/models/x") is None
    assert model_name_of("/srv/models/x") == "x"
    reference = of_definition("hf:org/repo")
    assert reference is not None
    assert model_name_of("hf:org/repo") == "org/repo"
    assert kept_folder(reference, tmp_path) is None
    folder = tmp_path / reference.model_id
    folder.mkdir()
    assert kept_folder(reference, tmp_path) is None
    (folder / MANIFEST).write_text("{}")
    assert kept_folder(reference, tmp_path) == folder
