"""The tensor model computes, and each faulty model fails in the way it is made for."""

from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tests.unit.demo import runtime
from tokenizers import Tokenizer

from rbee.keeper.demo import decoder, faulty, rank, slow_talk, talk_tokens, tensor


def test_tensor_model_computes_both_outputs(models: dict[str, Path]) -> None:
    x = np.array([[1, 2, 3, 4], [9, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    shift = np.array([[0], [10], [100]], np.int64)
    y, z = runtime.session(models[tensor.NAME]).run(["y", "z"], {"x": x, "shift": shift})
    np.testing.assert_array_equal(y, 2 * x + np.array(tensor.BIAS, np.float32))
    assert (y.dtype, z.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(z, [[3], [10], [102]])


def test_rank_model_scores_by_the_words_of_the_query_that_a_document_has(models: dict[str, Path]) -> None:
    tokenizer = Tokenizer.from_file(str(models[rank.NAME] / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    documents = ["the hive reports facts", "a queen", "bees make honey in the hive and report"]
    pairs = tokenizer.encode_batch([("what does a hive report?", document) for document in documents])
    feeds = {
        "input_ids": np.array([pair.ids for pair in pairs]),
        "attention_mask": np.array([pair.attention_mask for pair in pairs]),
        "token_type_ids": np.array([pair.type_ids for pair in pairs]),
    }
    (logits,) = runtime.session(models[rank.NAME]).run(["logits"], feeds)
    assert logits.shape == (3, 1)
    half, none, both = logits[:, 0].tolist()
    assert -4 <= none < -3 < -1 < half < both <= 4


def test_slow_load_is_slow_to_load_and_quick_to_run(tmp_path: Path) -> None:
    faulty.build_slow_load(tmp_path, 1.5)
    started = perf_counter()
    slow = runtime.session(tmp_path)
    loaded = perf_counter()
    (y,) = slow.run(["y"], {"x": np.zeros((2, 1), np.float32)})
    done = perf_counter()
    assert 0.4 < loaded - started < 15
    assert done - loaded < (loaded - started) / 4
    assert y.shape == (2, 1)


def test_bad_index_fails_for_some_inputs_only(models: dict[str, Path]) -> None:
    session = runtime.session(models[faulty.BAD_INDEX])
    (y,) = session.run(["y"], {"index": np.array([0, faulty.TABLE_ROWS - 1], np.int64)})
    assert y[1].tolist() == [28, 29, 30, 31]
    with pytest.raises(Exception, match="out of data bounds"):
        session.run(["y"], {"index": np.array([faulty.TABLE_ROWS], np.int64)})


@pytest.mark.parametrize(
    ("name", "kind"),
    [(faulty.BROKEN_FILE, "InvalidProtobuf"), (faulty.OUTSIDE_DATA, "Fail")],
)
def test_a_model_that_must_not_load_does_not(models: dict[str, Path], name: str, kind: str) -> None:
    expected: Any = getattr(onnxruntime.capi.onnxruntime_pybind11_state, kind)
    with pytest.raises(expected):
        runtime.session(models[name])


def test_slow_talk_says_the_same_and_takes_its_time(tmp_path: Path, models: dict[str, Path]) -> None:
    slow_talk.build(tmp_path, 0.05)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    prompt = tokenizer.encode(talk_tokens.chat_prompt("what is rbee"), add_special_tokens=False).ids
    quick, slow = runtime.session(models[decoder.NAME]), runtime.session(tmp_path)
    started = perf_counter()
    said = runtime.generate(slow, [prompt], 8, -1)
    assert perf_counter() - started > 8 * 0.05 / 3
    assert said == runtime.generate(quick, [prompt], 8, -1)
