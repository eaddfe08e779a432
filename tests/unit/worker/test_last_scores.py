"""Decoders whose scores are computed after the wanted tokens alone, on the real runtime."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests.bench import decoders
from tests.unit.worker import graphs

from rbee.wire.worker_spec import Backend
from rbee.worker.engine.batch.build import open_decoder
from rbee.worker.engine.decoder import read_layout
from rbee.worker.engine.folder import read_folder
from rbee.worker.engine.last_scores import MOST_BYTES, PLACES, cut_scores
from rbee.worker.engine.sessions import Array, DeviceSpec, create_session, numpy_type, run_session

CPU = DeviceSpec(Backend.CPU, threads=1)
WEIGHTS = np.arange(12, dtype=np.float32).reshape(4, 3)
NODES = {
    "a product": [helper.make_node("MatMul", ["x", "w"], ["logits"])],
    "a cast product": [
        helper.make_node("MatMul", ["x", "w"], ["narrow"]),
        helper.make_node("Cast", ["narrow"], ["logits"], to=TensorProto.FLOAT),
    ],
    "something else behind it": [
        helper.make_node("MatMul", ["x", "w"], ["narrow"]),
        helper.make_node("Tanh", ["narrow"], ["logits"]),
    ],
    "a product that is read elsewhere": [
        helper.make_node("MatMul", ["x", "w"], ["narrow"]),
        helper.make_node("Cast", ["narrow"], ["logits"], to=TensorProto.FLOAT),
        helper.make_node("Identity", ["narrow"], ["other"]),
    ],
    "no product": [helper.make_node("Identity", ["x"], ["logits"])],
}


def head(path: Path, kind: str) -> Path:
    nodes = NODES[kind]
    outputs = [graphs.value(name, TensorProto.FLOAT, "b", "s", "v") for name in ("logits", "other")]
    written = {name for node in nodes for name in node.output}
    known = [output for output in outputs if output.name in written]
    return graphs.save(path, nodes, [graphs.value("x", TensorProto.FLOAT, "b", "s", 4)], known, (("w", WEIGHTS),))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int4"])
def test_the_wanted_scores_are_those_of_the_whole(tmp_path: Path, precision: str) -> None:
    folder = read_folder(decoders.build(tmp_path, decoders.TINY, precision))
    layout = read_layout(folder.facts)
    feeds: dict[str, Array] = {
        "input_ids": np.array([[5, 6, 7], [8, 9, 1]]),
        "attention_mask": np.ones((2, 3), np.int64),
    }
    for pair in layout.pairs:
        _, heads, _, size = pair.empty_shape
        feeds[pair.past] = np.zeros((2, heads, 0, size), numpy_type(pair.element))
    whole = run_session(create_session(folder.model_file, CPU), [layout.scores], feeds)[0]
    cut = open_decoder(folder.model_file, layout, CPU)
    found = run_session(cut, [layout.scores], feeds | {PLACES: np.array([[5], [1]])})[0]
    wanted = np.stack([whole[1, 2:], whole[0, 1:2]]).astype(np.float32)
    np.testing.assert_allclose(found, wanted, atol=(2e-3 if precision == "fp16" else 1e-5) * np.abs(wanted).max())


@pytest.mark.parametrize("kind", ["a product", "a cast product"])
def test_a_product_is_cut_and_what_was_declared_of_its_shape_with_it(tmp_path: Path, kind: str) -> None:
    path = head(tmp_path / "model.onnx", kind)
    model = onnx.load(path)
    model.graph.value_info.append(graphs.value("narrow", TensorProto.FLOAT, "b", "s", "v"))
    onnx.save(model, str(path))
    cut = cut_scores(path, "logits", "float32")
    assert cut is not None
    onnx.checker.check_model(onnx.load_from_string(cut), full_check=True)
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    found = run_session(create_session(cut, CPU), ["logits"], {"x": x, PLACES: np.array([[4]])})[0]
    np.testing.assert_allclose(found, [[x[1, 1] @ WEIGHTS]])


@pytest.mark.parametrize("kind", sorted(NODES.keys() - {"a product", "a cast product"}))
def test_what_is_no_such_product_stays_as_it_is(tmp_path: Path, kind: str) -> None:
    assert cut_scores(head(tmp_path / "model.onnx", kind), "logits", "float32") is None


def test_a_file_that_holds_its_weights_is_not_read_into_memory(tmp_path: Path) -> None:
    path = head(tmp_path / "model.onnx", "a product")
    with path.open("r+b") as file:
        file.truncate(MOST_BYTES + 1)
    assert cut_scores(path, "logits", "float32") is None
