"""Names that cross a boundary: what is accepted, and that nothing of what is refused is repeated."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbee.wire import names
from rbee.wire.errors import InvalidModelReference, InvalidRequest
from rbee.wire.messages import ExternalReady, SpawnRequest


@pytest.mark.parametrize("value", ["a", "worker-1", "A" * 64, "0"])
def test_worker_ids_that_need_no_escaping_are_accepted(value: str) -> None:
    assert names.worker_id(value) == value
    assert names.worker_of(names.unit_of(value)) == value


@pytest.mark.parametrize("value", ["", "a_b", "a.b", "../x", "a" * 65, "a|b", "a;b", "a\n", "é", "a b", "a\\x2d"])
def test_worker_ids_that_need_escaping_are_refused(value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        names.worker_id(value)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "unit",
    ["rbee-worker@..-..-etc-passwd.service", "rbee-worker@.service", "rbee-worker@a\\x2db.service", "ssh.service",
     "rbee-worker@a.service\n", "xrbee-worker@a.service"],
)  # fmt: skip
def test_units_that_are_not_exactly_ours_have_no_worker(unit: str) -> None:
    assert names.worker_of(unit) is None


@pytest.mark.parametrize(
    "value",
    ["hf:org/repo", "hf:org/repo@main", "hf:a/b:onnx/model.onnx", "file:///var/lib/rbee/models/minilm"],
)
def test_model_references_in_an_accepted_form_pass(value: str) -> None:
    assert names.model_reference(value) == value


HOSTILE = [
    "garbage", "hf:", "hf:org", "file:///a/../b", "file://host/x", "hf:org/repo\nx", "hf:o/r\x1b[31m", "hf:o/r\0",
    "hf:o/'; DROP TABLE models", "file:///<script>alert(1)</script>", "hf:🐝/repo", "https://x/y;rm -rf /", "",
]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE)
def test_other_model_references_are_refused_and_not_echoed(value: str) -> None:
    with pytest.raises(InvalidModelReference) as caught:
        names.model_reference(value)
    assert "hf:org/repo" in caught.value.message
    if len(value) > 8:
        assert value not in caught.value.message


@given(st.text(max_size=100))
def test_any_text_is_accepted_or_refused_and_nothing_else(value: str) -> None:
    for check in (names.worker_id, names.model_reference, names.hive_id, names.model_name, names.request_id):
        try:
            assert check(value)
        except InvalidRequest as error:
            assert error.status == 400


@pytest.mark.parametrize(
    "body",
    [
        {"worker_id": "w\n"},
        {"worker_id": "w", "hive_id": "bee\n"},
        {"worker_id": "w", "url": "http://127.0.0.1:8081\n", "model_ref": "file:///m", "backend": "cpu"},
    ],
)
def test_a_line_end_after_a_name_is_refused_at_the_edge(body: dict[str, str]) -> None:
    kind = ExternalReady if "url" in body else SpawnRequest
    with pytest.raises(msgspec.ValidationError, match="matching regex"):
        msgspec.json.decode(msgspec.json.encode(body), type=kind)
