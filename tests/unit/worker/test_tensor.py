"""Tensors on the real runtime: every datatype as JSON and as bytes, what is refused, and shared runs."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tests.unit.worker import graphs

from rbee.wire.errors import ConfigError, InferenceError, InvalidRequest
from rbee.wire.worker_spec import Backend
from rbee.worker.engine.datatypes import DATATYPES, bfloat16_bits, bfloat16_values
from rbee.worker.engine.folder import read_folder
from rbee.worker.engine.runner import Runner
from rbee.worker.engine.sessions import DeviceSpec, create_session
from rbee.worker.engine.tensor import NamedTensor, TensorModel, TensorRequest
from rbee.worker.engine.tensor_batches import TensorRow, joined, next_rows, parted
from rbee.worker.engine.tensor_data import from_binary, from_json, to_binary, to_json

CPU = DeviceSpec(Backend.CPU, threads=1)


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    found = Runner(2)
    yield found
    found.close()


async def infer(model: TensorModel, given: Sequence[NamedTensor], wanted: Sequence[str] = ()) -> list[NamedTensor]:
    size = sum(tensor.values.nbytes for tensor in given)
    return await model.infer(size, lambda: (TensorRequest(given, wanted), lambda outputs: outputs))


@pytest.mark.parametrize(
    ("datatype", "element", "data"),
    [
        ("BOOL", TensorProto.BOOL, [True, False]),
        ("UINT8", TensorProto.UINT8, [0, 255]),
        ("UINT16", TensorProto.UINT16, [0, 65535]),
        ("UINT32", TensorProto.UINT32, [0, 2**32 - 1]),
        ("UINT64", TensorProto.UINT64, [0, 2**64 - 1]),
        ("INT8", TensorProto.INT8, [-128, 127]),
        ("INT16", TensorProto.INT16, [-(2**15), 2**15 - 1]),
        ("INT32", TensorProto.INT32, [-(2**31), 2**31 - 1]),
        ("INT64", TensorProto.INT64, [-(2**63), 2**63 - 1]),
        ("FP16", TensorProto.FLOAT16, [0.5, -2]),
        ("FP32", TensorProto.FLOAT, [0.5, -2]),
        ("FP64", TensorProto.DOUBLE, [0.1, -2]),
        ("BF16", TensorProto.BFLOAT16, [0.5, -2]),
        ("BYTES", TensorProto.STRING, ["bee", "é"]),
    ],
)
async def test_every_datatype_goes_through(
    tmp_path: Path, runner: Runner, datatype: str, element: int, data: list[object]
) -> None:
    path = graphs.identity(tmp_path / "model.onnx", element, "n")
    model = TensorModel(create_session(path, CPU), read_folder(tmp_path).facts.graph, runner)
    model.warm_up()
    (out,) = await infer(model, [NamedTensor("x", datatype, from_json("x", datatype, [2], data))])
    assert (out.name, out.datatype) == ("y", datatype)
    assert to_json("y", DATATYPES[datatype], out.values) == data
    raw = bytes(to_binary(DATATYPES[datatype], out.values))
    for shift in range(8):  # the bytes lie behind a JSON of any length
        place = memoryview(b"{" * shift + raw)[shift:]
        (again,) = await infer(model, [NamedTensor("x", datatype, from_binary("x", datatype, [2], place))])
        assert to_json("y", DATATYPES[datatype], again.values) == data


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "sentence"),
    [
        ("INT64", [2], [1.5, 2], "not INT64"),
        ("UINT8", [1], [256], "does not fit UINT8"),
        ("INT8", [1], ["a"], "not INT8"),
        ("FP32", [2], [1, "a"], "not FP32"),
        ("FP32", [2], [[1], [1, 2]], "ragged"),
        ("FP32", [3], [1, 2], "has 2 elements and the shape asks for 3"),
        ("FP32", [2, 1], [[1, 2]], "nested as"),
        ("FP32", [-1], [1], "negative"),
        ("FP32", [10**6, 10**6], [], "more than"),
        ("FP8", [1], [1], "not known"),
        ("BOOL", [1], [1], "not BOOL"),
        ("FP32", [1], [None], "not FP32"),
        ("FP32", [1], {"a": 1}, "not FP32"),
        ("UINT64", [2], [2**64, 0], "does not fit UINT64"),
        ("UINT64", [2], [2**63, 0.5], "not UINT64"),
        ("UINT8", [1], [-1], "does not fit UINT8"),
        ("FP32", [0, 10**22], [], "more than"),
        ("FP32", [0, 10**9, 10**9], [], "more than"),
        ("INT64", [2], [True, 1], "not INT64"),
        ("FP32", [1], [10**400], "does not fit FP32"),
        ("FP16", [1], [70000], "does not fit FP16"),
        ("FP32", [20_001], ["x" * 10_000_000] + [""] * 20_000, "not FP32"),
    ],
)
def test_data_that_does_not_fit_is_refused_by_name(
    datatype: str, shape: list[int], data: object, sentence: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"input 'x': .*{sentence}"):
        from_json("x", datatype, shape, data)


def test_texts_take_no_more_room_than_they_are_long() -> None:
    texts = ["x" * 10_000_000] + [""] * 20_000
    assert from_json("x", "BYTES", [20_001], texts).tolist() == texts


async def test_inputs_are_held_against_the_model(models: Path, runner: Runner) -> None:
    folder = read_folder(models / "tiny-tensor")
    model = TensorModel(create_session(folder.model_file, CPU), folder.facts.graph, runner)
    x = NamedTensor("x", "FP32", np.ones((1, 4), np.float32))
    shift = NamedTensor("shift", "INT64", np.array([[5]]))
    y, z = await infer(model, [x, shift])
    assert (y.values.tolist(), z.values.tolist()) == ([[2.5, 1.5, 3.0, 2.0]], [[7]])
    assert [out.name for out in await infer(model, [x, shift], ["z"])] == ["z"]
    wide = NamedTensor("x", "FP32", np.ones((1, 5), np.float32))
    for tensors, wanted, sentence in (
        ([x], [], "input 'shift': missing"),
        ([x, x, shift], [], "given twice"),
        ([x, shift, NamedTensor("q", "FP32", x.values)], [], "no such input"),
        ([NamedTensor("x", "FP64", x.values), shift], [], "the model wants FP32"),
        ([wide, shift], [], "does not fit"),
        ([x, shift], ["nope"], "no output 'nope'"),
        ([x, shift], ["z", "z"], "asked for twice"),
    ):
        with pytest.raises(InvalidRequest, match=sentence):
            await infer(model, tensors, wanted)


@pytest.mark.parametrize(("kernel", "warm"), [(3, True), (60, True), (300, False)])
def test_a_model_with_free_sizes_is_warmed_up_at_one_that_fits(
    tmp_path: Path, runner: Runner, caplog: pytest.LogCaptureFixture, kernel: int, warm: bool
) -> None:
    weights = np.ones((1, 1, kernel, kernel), np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"])]
    image = graphs.value("x", TensorProto.FLOAT, "batch", 1, "height", "width")
    output = graphs.value("y", TensorProto.FLOAT, "batch", 1, "h", "w2")
    graphs.save(tmp_path / "model.onnx", nodes, [image], [output], (("w", weights),))
    folder = read_folder(tmp_path)
    TensorModel(create_session(folder.model_file, CPU), folder.facts.graph, runner).warm_up()
    assert ("served without one" in caplog.text) is not warm


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "sentence"),
    [
        ("FP32", [2], bytes(7), "has 7 bytes and the shape asks for 8"),
        ("FP32", [2], bytes(12), "has 12 bytes"),
        ("BOOL", [2], b"\0\2", "not BOOL"),
        ("BF16", [2], bytes(2), "has 2 bytes"),
        ("FP32", [-1], b"", "negative"),
        ("FP32", [0, 10**22], b"", "more than"),
        ("FP8", [1], b"a", "not known"),
        ("BYTES", [2], b"\1\0\0\0a", "holds 1 elements and the shape asks for 2"),
        ("BYTES", [1], b"\1\0\0", "holds 0 elements"),
        ("BYTES", [1], b"\5\0\0\0ab", "ends inside element 0"),
        ("BYTES", [1], b"\xff\xff\xff\xffab", "ends inside element 0"),
        ("BYTES", [1], b"\1\0\0\0ab", "goes on after the 1 elements"),
        ("BYTES", [1], b"\1\0\0\0\xff", "element 0 is not UTF-8"),
    ],
)
def test_bytes_that_do_not_fit_are_refused_by_name(datatype: str, shape: list[int], raw: bytes, sentence: str) -> None:
    with pytest.raises(InvalidRequest, match=f"input 'x': .*{sentence}"):
        from_binary("x", datatype, shape, memoryview(raw))


@given(st.binary(max_size=64), st.sampled_from(sorted(DATATYPES)), st.lists(st.integers(-1, 9), max_size=3))
def test_any_bytes_are_an_array_or_refused(raw: bytes, datatype: str, shape: list[int]) -> None:
    try:
        values = from_binary("x", datatype, shape, memoryview(raw))
    except InvalidRequest:
        return
    assert list(values.shape) == shape
    assert bytes(to_binary(DATATYPES[datatype], values)) == raw


def test_numbers_are_not_copied() -> None:
    raw = np.arange(4, dtype=np.float32)
    assert np.shares_memory(from_binary("x", "FP32", [2, 2], raw.data.cast("B")), raw)
    assert np.shares_memory(np.frombuffer(to_binary("float32", raw), np.float32), raw)


@given(st.floats(width=32, allow_nan=False, min_value=-(2.0**127), max_value=2.0**127))
def test_a_bfloat16_is_the_nearest_there_is(value: float) -> None:
    single = np.array([value], np.float32)
    bits = bfloat16_bits(single)
    near = [
        float(bfloat16_values(np.array([int(bits[0]) + step], np.uint16))[0])
        for step in (-1, 0, 1)
        if 0 <= int(bits[0]) + step < 65536
    ]
    found = float(bfloat16_values(bits)[0])
    assert abs(found - value) == min(abs(each - value) for each in near if np.isfinite(each))


def test_not_a_number_stays_one_and_json_does_not_hide_it() -> None:
    assert np.isnan(bfloat16_values(bfloat16_bits(np.array([np.nan], np.float32))))[0]
    with pytest.raises(InferenceError, match="ask for it with binary_data"):
        to_json("y", "float32", np.array([1, np.nan], np.float32))


async def test_requests_that_overlap_share_a_run_where_the_definition_says_so(models: Path, runner: Runner) -> None:
    folder = read_folder(models / "tiny-tensor")
    model = TensorModel(create_session(folder.model_file, CPU), folder.facts.graph, runner, max_batch=8)

    async def ask(rows: int, base: int) -> None:
        x = np.arange(rows * 4, dtype=np.float32).reshape(rows, 4) + base
        shift = np.full((rows, 1), base)
        y, z = await infer(model, [NamedTensor("x", "FP32", x), NamedTensor("shift", "INT64", shift)])
        assert y.values.tolist() == (2 * x + np.array([0.5, -0.5, 1, 0], np.float32)).tolist()
        assert z.values.tolist() == (y.values.argmax(axis=1, keepdims=True) + base).tolist()

    async with asyncio.TaskGroup() as group:
        for base, rows in enumerate((1, 3, 2, 9, 1, 4, 0, 1, 500)):
            group.create_task(ask(rows, base))


def row(rows: int, width: int = 4, wanted: tuple[str, ...] = ("y",)) -> TensorRow:
    return TensorRow({"x": np.full((rows, width), rows, np.float32), "shift": np.zeros((rows, 1), np.int64)}, wanted)


def test_only_what_fits_together_shares_a_run() -> None:
    waiting = [[row(2)], [row(3, width=5)], [row(1)], [row(1, wanted=("z",))], [row(6)], [row(1)], [row(0)]]
    assert [pick.job for pick in next_rows(waiting, 4)] == [0, 2, 5]
    assert [pick.job for pick in next_rows(waiting, 9)] == [0, 2, 4]
    assert [pick.job for pick in next_rows(waiting[6:] + waiting, 9)] == [0]
    assert [pick.job for pick in next_rows([[row(20)], [row(1)]], 4)] == [0]
    rows = [row(2), row(1), row(3)]
    assert [part[0].tolist() for part in parted(rows, [joined(rows)["x"]])] == [
        each.feeds["x"].tolist() for each in rows
    ]
    with pytest.raises(InferenceError, match="leave max_batch out"):
        parted(rows, [np.zeros((7, 1))])


def test_a_model_whose_first_size_is_fixed_cannot_share(tmp_path: Path, runner: Runner) -> None:
    path = graphs.identity(tmp_path / "model.onnx", TensorProto.FLOAT, 3, "n")
    with pytest.raises(ConfigError, match="max_batch: the first size of the model's 'x' is fixed"):
        TensorModel(create_session(path, CPU), read_folder(tmp_path).facts.graph, runner, max_batch=2)
