"""Numbers of a JSON tensor: read by the datatype's own decoder, to the same values and refusals as any JSON."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.worker.process import serving

from rbee.wire.errors import InvalidRequest
from rbee.worker.api.infer_messages import read
from rbee.worker.engine.sessions import Array
from rbee.worker.engine.tensor_data import from_json

FLOATS = ("FP16", "BF16", "FP32", "FP64")
INTEGERS = {"INT8": 8, "UINT8": 8, "INT16": 16, "UINT16": 16, "INT32": 32, "UINT32": 32, "INT64": 64, "UINT64": 64}


def values_of(datatype: str, shape: list[int], data: str) -> Array:
    """What a request's one input becomes; ``data`` is JSON, and comes before the datatype that says how to read it."""
    body = f'{{"inputs":[{{"name":"x","data":{data},"shape":{json.dumps(shape)},"datatype":"{datatype}"}}]}}'
    (tensor,) = read(body.encode(), None).request.given
    return tensor.values


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "sentence"),
    [
        *[(one, [2], "[1, true]", f"input 'x': the data is not {one}") for one in FLOATS],
        *[(one, [1], "[null]", f"input 'x': the data is not {one}") for one in FLOATS],
        *[(one, [2], '[1, "2"]', f"input 'x': the data is not {one}") for one in FLOATS],
        *[(one, [1], '{"0": 1}', f"input 'x': the data is not {one}") for one in FLOATS],
        *[(one, [1], "[1e999]", "out of every range") for one in FLOATS],
        *[(one, [1], "[NaN]", "the body is not valid JSON") for one in FLOATS],
        *[(one, [2], "[1, 2", "the body is not valid JSON") for one in FLOATS],
        *[(one, [3], "[1, 2]", "has 2 elements and the shape asks for 3") for one in FLOATS],
        *[(one, [2], "[[1], [2, 3]]", "ragged") for one in FLOATS],
        *[(one, [2, 1], "[[1, 2]]", "nested as") for one in FLOATS],
        *[(one, [1], "[" * deep + "1" + "]" * deep, "nested as") for one in FLOATS for deep in (32, 33, 64)],
        *[(one, [1], "[" * 65 + "1" + "]" * 65, "ragged") for one in FLOATS],
        *[
            (one, [1], "[" * 5000 + "1" + "]" * 5000, "nested too deep|ragged|the body is not valid JSON")
            for one in FLOATS
        ],
        ("FP16", [1], "[70000]", "does not fit FP16"),
        ("FP32", [1], "[1e39]", "does not fit FP32"),
        ("BF16", [1], "[-1e39]", "does not fit BF16"),
        ("FP64", [1], f"[1{'0' * 400}]", "fit FP64|out of every range"),
        *[(one, [1], "[1.0]", f"not {one}") for one in INTEGERS],
        *[(one, [1], "[true]", f"not {one}") for one in INTEGERS],
        *[(one, [1], f"[{2**bits}]", f"does not fit {one}|not {one}") for one, bits in INTEGERS.items()],
        *[(one, [1], f"[{-(2**bits)}]", f"does not fit {one}|not {one}") for one, bits in INTEGERS.items()],
    ],
)
def test_what_is_no_number_of_the_type_is_refused(datatype: str, shape: list[int], data: str, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=sentence):
        values_of(datatype, shape, data)


@pytest.mark.parametrize(
    "data", ["[0.5, -2, 3e2, 40]", "[[0.5, -2], [3e2, 40]]", "[0.5,-2,300.0,4e1]", "[[[0.5], [-2]], [[300], [40]]]"]
)
@pytest.mark.parametrize("datatype", FLOATS)
def test_flat_and_nested_numbers_are_the_same(datatype: str, data: str) -> None:
    shape = [2, 2, 1] if data.startswith("[[[") else [2, 2]
    found = values_of(datatype, shape, data)
    assert found.shape == tuple(shape)
    assert np.array_equal(found, from_json("x", datatype, shape, [0.5, -2, 300, 40]))


def test_a_number_alone_and_no_number_at_all() -> None:
    assert values_of("FP32", [1], "5").tolist() == [5.0]
    assert values_of("FP32", [0, 4], "[]").shape == (0, 4)


numbers = st.one_of(
    st.floats(-60000, 60000),
    st.integers(-60000, 60000),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
)


@given(data=st.lists(numbers, max_size=20), datatype=st.sampled_from(FLOATS))
def test_any_flat_numbers_are_read_as_numpy_reads_them(data: list[float], datatype: str) -> None:
    expected: Array | None
    try:
        expected = from_json("x", datatype, [len(data)], data)
    except InvalidRequest:
        expected = None
    if expected is None:
        with pytest.raises(InvalidRequest, match="does not fit"):
            values_of(datatype, [len(data)], json.dumps(data))
        return
    found = values_of(datatype, [len(data)], json.dumps(data))
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    assert all(math.isfinite(value) for value in data)


HUGE = "9" * 4000


async def test_a_worker_refuses_them_over_http_and_goes_on(tmp_path: Path, models: Path) -> None:
    def body_of(x: str, *, shape: str = "[1, 4]", datatype: str = "FP32", shift: str = "[5]") -> str:
        first = f'{{"name":"x","shape":{shape},"datatype":"{datatype}","data":{x}}}'
        return f'{{"inputs":[{first},{{"name":"shift","shape":[1,1],"datatype":"INT64","data":{shift}}}]}}'

    def integer(datatype: str, value: object) -> str:
        return body_of(f"[{value}]", shape="[1]", datatype=datatype)

    refused = [
        *[(integer(one, edge), f"does not fit {one}|is not {one}") for one in INTEGERS for edge in outside(one)],
        *[
            (integer(one, each), f"is not {one}|does not fit {one}|out of every range")
            for one in INTEGERS
            for each in ("true", "1.0", "1.5", HUGE)
        ],
        *[(integer(one, each), "not valid JSON") for one in INTEGERS for each in ("NaN", "Infinity", "01", "+1")],
        (body_of("[1, 2, 3, true]"), "the data is not FP32"),
        (body_of("[1, 2, 3, null]"), "the data is not FP32"),
        (body_of('[1, 2, 3, "4"]'), "the data is not FP32"),
        (body_of("[1, 2, 3, NaN]"), "not valid JSON"),
        (body_of(f"[1, 2, 3, {HUGE}]"), "does not fit FP32|out of every range"),
        (body_of("[1, 2, 3, 1e39]"), "does not fit FP32"),
        (body_of("[1, 2, 3]"), "has 3 elements and the shape asks for 4"),
        (body_of("[[1, 2, 3, 4, 5]]"), "has 5 elements and the shape asks for 4"),
        (body_of("[[1, 2], [3]]"), "ragged"),
        (body_of("[[1, 2], [3, 4]]"), r"nested as \[2, 2\]"),
        (body_of("[1, 2, 3, 4]", shift="[5.5]"), "input 'shift': the data is not INT64"),
    ]
    async with serving(tmp_path, model=str(models / "tiny-tensor")) as worker, worker.session() as client:
        for body, sentence in refused:
            answer = await client.post("/v2/models/tiny-tensor/infer", data=body)
            error = (await answer.json())["error"]
            assert (answer.status, error["code"]) == (400, "INVALID_REQUEST"), body[:200]
            assert re.search(sentence, error["message"]), (body[:200], error["message"])
        for whole in ("[1, 1, 1, 1]", "[[1.0, 1, 1e0, 1]]"):
            answer = await client.post("/v2/models/tiny-tensor/infer", data=body_of(whole))
            assert (await answer.json())["outputs"][0]["data"] == [2.5, 1.5, 3.0, 2.0]


def outside(datatype: str) -> tuple[int, int]:
    """The nearest integers below and above those of a type."""
    known = np.iinfo(datatype.lower())
    return int(known.min) - 1, int(known.max) + 1
