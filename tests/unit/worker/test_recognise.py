"""What a model folder holds is read from its files."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from tests.unit.worker import graphs

from rbee.wire.errors import ConfigError
from rbee.wire.worker_spec import Task
from rbee.worker.engine.decoder import read_layout
from rbee.worker.engine.embed import Pooling, pooling_rule
from rbee.worker.engine.folder import read_folder, read_through, resolve_folder
from rbee.worker.engine.onnx_file import read_graph
from rbee.worker.engine.recognise import recognise
from rbee.worker.engine.tokenise import length_rule


def write(folder: Path, **files: object) -> None:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))


def test_the_demo_models_are_recognised(models: Path) -> None:
    expected = {"all-minilm-l6-v2": Task.EMBED, "bee-talk": Task.GENERATE, "tiny-tensor": Task.TENSOR}
    for name, task in expected.items():
        facts = recognise(read_folder(models / name).facts)
        assert (facts.task, facts.precision) == (task, "fp32")


def test_a_generators_facts_come_from_its_files(models: Path) -> None:
    facts = recognise(read_folder(models / "bee-talk").facts)
    config = json.loads((models / "bee-talk/config.json").read_text())
    assert facts.vocabulary == config["vocab_size"]
    assert facts.eos_ids == {config["eos_token_id"]}
    assert facts.context_length == config["max_position_embeddings"]
    assert facts.chat_template is not None
    assert "add_generation_prompt" in facts.chat_template


def test_every_eos_id_counts_and_genai_config_wins(tmp_path: Path) -> None:
    graphs.decoder_like(tmp_path / "net.onnx", "past_0_k", "present_0_k")
    decoder = {
        "filename": "net.onnx",
        "inputs": {"past_key_names": "past_%d_k"},
        "outputs": {"present_key_names": "present_%d_k"},
    }
    model = {"decoder": decoder, "vocab_size": 7, "context_length": 99, "eos_token_id": [3, 4]}
    write(tmp_path, genai_config_json={"model": model}, generation_config_json={"eos_token_id": 5})
    write(tmp_path, config_json={"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 5})
    folder = read_folder(tmp_path)
    facts = recognise(folder.facts)
    assert (facts.task, facts.vocabulary, facts.context_length) == (Task.GENERATE, 7, 99)
    assert facts.eos_ids == {3, 4, 5}
    (pair,) = read_layout(folder.facts).pairs
    assert (pair.past, pair.present, pair.element) == ("past_0_k", "present_0_k", "float16")
    assert pair.empty_shape == (1, 2, 0, 8)


@pytest.mark.parametrize(
    ("config", "labels"),
    [({"id2label": {"0": "LABEL_0"}}, 1), ({"num_labels": 1}, 1), ({"id2label": {"0": "a", "1": "b"}}, 2), ({}, None)],
)
def test_a_classifier_of_one_score_ranks_and_another_is_served_as_tensor_when_asked(
    tmp_path: Path, config: dict[str, object], labels: int | None
) -> None:
    nodes = [helper.make_node("Cast", ["input_ids"], ["logits"], to=TensorProto.FLOAT)]
    ends = [
        graphs.value("input_ids", TensorProto.INT64, "batch", "length"),
        graphs.value("logits", TensorProto.FLOAT, "batch", "labels"),
    ]
    graphs.save(tmp_path / "model.onnx", nodes, ends[:1], ends[1:])
    write(tmp_path, tokenizer_json={}, config_json={"architectures": ["BertForSequenceClassification"], **config})
    facts = read_folder(tmp_path).facts
    if labels == 1:
        assert recognise(facts).task is Task.RANK
    else:
        with pytest.raises(ConfigError, match=f"into {labels or 'several'} classes"):
            recognise(facts)
    assert recognise(facts, Task.TENSOR).task is Task.TENSOR


def test_the_graph_tells_how_many_scores_there_are_where_it_can(tmp_path: Path) -> None:
    graphs.encoder_like(tmp_path / "model.onnx", output="logits")
    write(
        tmp_path,
        tokenizer_json={},
        config_json={"architectures": ["BertForSequenceClassification"], "num_labels": 1},
    )
    with pytest.raises(ConfigError, match="into 4 classes"):
        recognise(read_folder(tmp_path).facts)


def test_an_encoder_without_tokenizer_is_a_tensor_model(tmp_path: Path) -> None:
    graphs.encoder_like(tmp_path / "model.onnx")
    assert recognise(read_folder(tmp_path).facts).task is Task.TENSOR
    write(tmp_path, tokenizer_json={})
    assert recognise(read_folder(tmp_path).facts).task is Task.EMBED


@pytest.mark.parametrize(
    ("element", "operator", "precision"),
    [(np.float16, "Identity", "fp16"), (np.int8, "DequantizeLinear", "int8"), (np.uint8, "MatMulNBits", "int4")],
)
def test_precision(tmp_path: Path, element: type, operator: str, precision: str) -> None:
    weight: np.ndarray[Any, Any] = np.zeros((4, 4), element)
    node = helper.make_node(operator, ["w"], ["y"], domain="com.microsoft" if operator == "MatMulNBits" else "")
    graphs.save(tmp_path / "model.onnx", [node], [], [graphs.value("y", 1, 4, 4)], (("w", weight),))
    assert recognise(read_folder(tmp_path).facts).precision == precision


def test_pooling_and_lengths_are_the_models_own(tmp_path: Path) -> None:
    graphs.encoder_like(tmp_path / "model.onnx")
    write(tmp_path, modules_json=[{"type": "sentence_transformers.models.Transformer"}])
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    facts = read_folder(tmp_path).facts
    rule = pooling_rule(facts)
    assert (rule.pooling, rule.normalise) == (Pooling.CLS, False)
    assert length_rule(facts, None, 512).truncate is False
    assert length_rule(facts, None, None).limit == 2048  # attention's memory grows with the square of the length
    assert length_rule(facts, 128, 512).limit == 128
    write(tmp_path, sentence_bert_config_json={"max_seq_length": 256})
    assert length_rule(read_folder(tmp_path).facts, 128, 512).limit == 256
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(ConfigError, match="pooling_mode_max_tokens"):
        pooling_rule(read_folder(tmp_path).facts)


def test_weights_that_cannot_be_read_are_named_with_what_to_look_at(tmp_path: Path) -> None:
    """A process's memory stands for a file whose disk fails: it opens, and the read of it is an error of the device."""
    with pytest.raises(ConfigError, match=r"model: mem cannot be read: Input/output error; check its owner") as caught:
        read_through([Path("/proc/self/mem")], lambda done, total: None)
    assert "the disk that it lies on" in caught.value.message


def test_external_data_counts_and_stays_inside(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    weights = np.arange(4096, dtype=np.float32)
    graphs.save(folder / "plain.onnx", [helper.make_node("Identity", ["w"], ["y"])], [], [graphs.value("y", 1, 4096)],
                (("w", weights),))  # fmt: skip
    model = onnx.load(str(folder / "plain.onnx"))
    (folder / "plain.onnx").unlink()
    onnx.save(model, str(folder / "model.onnx"), save_as_external_data=True, location="data.bin", size_threshold=0)
    read = read_folder(folder)
    assert [path.name for path in read.weight_files] == ["model.onnx", "data.bin"]
    assert read.weight_bytes > weights.nbytes
    seen: list[tuple[int, int]] = []
    read_through(read.weight_files, lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, read.weight_bytes)
    assert seen[-1] == (read.weight_bytes, read.weight_bytes)
    (folder / "data.bin").rename(tmp_path / "data.bin")
    (folder / "data.bin").symlink_to(tmp_path / "data.bin")
    with pytest.raises(ConfigError, match="outside"):
        read_folder(folder)
    (folder / "data.bin").unlink()
    with pytest.raises(ConfigError, match=r"data\.bin is missing"):
        read_folder(folder)


@pytest.mark.parametrize("where", ["function", "sparse initializer", "sparse attribute"])
def test_external_data_is_found_wherever_a_graph_may_hold_a_tensor(tmp_path: Path, where: str) -> None:
    outside = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="../../etc/shadow")
    sparse = onnx.SparseTensorProto(values=outside, indices=helper.make_tensor("i", TensorProto.INT64, [1], [0]))
    sparse.dims.append(1)
    graphs.identity(tmp_path / "model.onnx", TensorProto.FLOAT, 1)
    model = onnx.load(str(tmp_path / "model.onnx"))
    if where == "function":
        node = helper.make_node("Constant", [], ["c"])
        node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR, t=outside)
        model.functions.append(helper.make_function("d", "f", [], ["c"], [node], [helper.make_opsetid("", 17)]))
    elif where == "sparse initializer":
        model.graph.sparse_initializer.append(sparse)
    else:
        node = model.graph.node.add(op_type="Constant", output=["c"])
        node.attribute.add(name="sparse_value", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match="outside"):
        read_folder(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja", "tokenizer.json"])
def test_no_file_of_a_model_leads_outside(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    graphs.identity(folder / "model.onnx", TensorProto.FLOAT, 1)
    (tmp_path / "secret").write_text("{}")
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ConfigError, match=f"{name}.* leads outside"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [("config.json", b"[" * 100_000), ("chat_template.jinja", b"\xff"), ("chat_template.jinja", b" " * (17 << 20))],
)
def test_a_file_that_cannot_be_read_is_a_config_error(tmp_path: Path, name: str, content: bytes) -> None:
    graphs.identity(tmp_path / "model.onnx", TensorProto.FLOAT, 1)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        read_folder(tmp_path)


def test_a_model_must_lie_under_a_root(tmp_path: Path) -> None:
    root, outside = tmp_path / "models", tmp_path / "elsewhere"
    for folder in (root / "m", outside):
        folder.mkdir(parents=True)
    (root / "link").symlink_to(outside)
    assert resolve_folder(f"file://{root}/m", [root]) == root / "m"
    for reference in (str(outside), f"{root}/../elsewhere", f"{root}/link", "m", "hf:a/b", f"{root}/none"):
        with pytest.raises(ConfigError):
            resolve_folder(reference, [root])


def test_the_file_to_load_is_never_guessed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \.onnx file"):
        read_folder(tmp_path)
    graphs.identity(tmp_path / "a.onnx", TensorProto.FLOAT, 1)
    assert read_folder(tmp_path).model_file.name == "a.onnx"
    graphs.identity(tmp_path / "b.onnx", TensorProto.FLOAT, 1)
    with pytest.raises(ConfigError, match="several ONNX files"):
        read_folder(tmp_path)
    graphs.identity(tmp_path / "model.onnx", TensorProto.FLOAT, 1)
    assert read_folder(tmp_path).model_file.name == "model.onnx"


def test_the_reader_agrees_with_onnx(models: Path) -> None:
    for name in ("all-minilm-l6-v2", "bee-talk", "tiny-tensor"):
        path = models / name / "model.onnx"
        model, facts = onnx.load(str(path)), read_graph(path)
        assert [tensor.name for tensor in facts.outputs] == [output.name for output in model.graph.output]
        initializers = {tensor.name for tensor in model.graph.initializer}
        inputs = [tensor for tensor in model.graph.input if tensor.name not in initializers]
        assert [tensor.name for tensor in facts.inputs] == [tensor.name for tensor in inputs]
        for ours, theirs in zip(facts.inputs, inputs, strict=True):
            tensor = theirs.type.tensor_type
            shape = tuple(dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in tensor.shape.dim)
            assert (ours.shape, np.dtype(ours.element)) == (shape, helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        assert facts.operators >= {node.op_type for node in model.graph.node}


@given(st.binary(max_size=200))
def test_bytes_that_are_no_model_are_a_config_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(ConfigError):
        read_graph(path)


@given(st.integers(0, 413))
def test_a_truncated_model_never_crashes_the_reader(
    models: Path, tmp_path_factory: pytest.TempPathFactory, length: int
) -> None:
    whole = (models / "tiny-tensor/model.onnx").read_bytes()
    path = tmp_path_factory.mktemp("cut") / "model.onnx"
    path.write_bytes(whole[: length % len(whole)])
    try:
        graph = read_graph(path)
    except ConfigError:
        return
    # a cut between two fields of the message leaves a message: what it holds is then whole
    assert graph == read_graph(models / "tiny-tensor/model.onnx")
