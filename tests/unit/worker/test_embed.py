"""Embeddings on the real model: what they mean, that company does not change them, what is refused."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper
from tests.unit.worker import graphs

from rbee.wire.errors import ConfigError, InferenceError, InvalidRequest
from rbee.wire.worker_spec import Backend
from rbee.worker.engine.embed import Embedder, Pooling, PoolingRule, pool, pooling_rule
from rbee.worker.engine.folder import read_folder
from rbee.worker.engine.recognise import recognise
from rbee.worker.engine.runner import Runner
from rbee.worker.engine.sessions import DeviceSpec, create_session
from rbee.worker.engine.token_batches import Budget
from rbee.worker.engine.tokenise import LengthRule, TextReader, length_rule, load_tokenizer

CPU = DeviceSpec(Backend.CPU, threads=1)
BUDGET = Budget(512, 8)
TEXTS = ["A bee collects nectar from flowers.", "Honey bees gather nectar.", "The stock market fell on Monday."]


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    found = Runner(2)
    yield found
    found.close()


@pytest.fixture
def embedder(models: Path, runner: Runner) -> Embedder:
    folder = read_folder(models / "all-minilm-l6-v2")
    tokenizer, declared = load_tokenizer(folder.path)
    rule = length_rule(folder.facts, declared, recognise(folder.facts).context_length)
    session = create_session(folder.model_file, CPU)
    found = Embedder(session, folder.facts, TextReader(tokenizer, rule), runner, BUDGET)
    found.warm_up()
    return found


async def test_embeddings_mean_what_the_texts_mean(embedder: Embedder) -> None:
    found = await embedder.embed(TEXTS)
    near, far = found.vectors[0] @ found.vectors[1], found.vectors[0] @ found.vectors[2]
    assert found.vectors.shape == (3, 384)
    assert np.allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
    assert near > 0.6 > 0.2 > far


async def test_company_changes_no_vector(embedder: Embedder) -> None:
    texts = [" ".join(["bee", "hive", "nectar", "queen"][: 1 + at % 4] * (1 + at * 7 % 23)) for at in range(40)]
    alone = np.concatenate([(await embedder.embed([text])).vectors for text in texts])
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(embedder.embed(texts[first : first + 5])) for first in range(0, 40, 5)]
    together = np.concatenate([task.result().vectors for task in tasks])
    assert (alone * together).sum(axis=1).min() > 0.99999


async def test_texts_that_cannot_be_read_are_refused(embedder: Embedder) -> None:
    with pytest.raises(InvalidRequest, match="input 1 is empty"):
        await embedder.embed([[5], []])
    with pytest.raises(InvalidRequest, match="outside the vocabulary"):
        await embedder.embed([[10**7]])
    with pytest.raises(InvalidRequest, match="dimensions is 385 and the model's vectors have 384"):
        await embedder.embed(["a"], dimensions=385)


async def test_too_long_a_text_is_cut_as_the_model_says_or_as_the_request_does(embedder: Embedder) -> None:
    long = "bee " * 300
    assert (await embedder.embed([long])).prompt_tokens == 256
    assert (await embedder.embed([long], truncate=True)).prompt_tokens == 256
    with pytest.raises(InvalidRequest, match="input 0 has 302 tokens and the model reads 256") as refused:
        await embedder.embed([long], truncate=False)
    assert refused.value.details == {"tokens": 302, "limit": 256}
    with pytest.raises(InvalidRequest, match="input 1 has 257 tokens"):
        await embedder.embed([[5], [5] * 257], truncate=False)
    assert (await embedder.embed([[5] * 257], truncate=True)).prompt_tokens == 256


async def test_fewer_dimensions_are_the_first_ones_at_length_1(embedder: Embedder) -> None:
    whole, short = (await embedder.embed(TEXTS)).vectors, (await embedder.embed(TEXTS, dimensions=16)).vectors
    assert short.shape == (3, 16)
    assert np.allclose(short, whole[:, :16] / np.linalg.norm(whole[:, :16], axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [(Pooling.MEAN, [[2, 3], [1, 2]]), (Pooling.CLS, [[1, 2], [1, 2]]), (Pooling.LAST, [[3, 4], [1, 2]])],
)
def test_pooling_reads_no_padding(pooling: Pooling, expected: list[list[float]]) -> None:
    hidden = np.array([[[1, 2], [3, 4]], [[1, 2], [99, 99]]], np.float32)
    mask = np.array([[1, 1], [1, 0]])
    assert pool(hidden, mask, PoolingRule(pooling, normalise=False)).tolist() == expected


def test_a_module_that_would_change_the_vectors_is_refused(tmp_path: Path) -> None:
    modules = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Dense")]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    graphs.encoder_like(tmp_path / "model.onnx")
    with pytest.raises(ConfigError, match="Dense is not served"):
        pooling_rule(read_folder(tmp_path).facts)
    graphs.encoder_like(tmp_path / "model.onnx", "sentence_embedding")
    assert not pooling_rule(read_folder(tmp_path).facts).normalise


async def test_what_is_no_number_is_an_error_of_its_own_request(tmp_path: Path, models: Path, runner: Runner) -> None:
    table = np.ones((30522, 4), np.float32)
    table[7] = np.nan
    ids = graphs.value("input_ids", TensorProto.INT64, "batch", "length")
    hidden = graphs.value("last_hidden_state", TensorProto.FLOAT, "batch", "length", 4)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])]
    path = graphs.save(tmp_path / "model.onnx", nodes, [ids], [hidden], (("table", table),))
    tokenizer, _ = load_tokenizer(models / "all-minilm-l6-v2")
    reader = TextReader(tokenizer, LengthRule(8, truncate=False))
    embedder = Embedder(create_session(path, CPU), read_folder(tmp_path).facts, reader, runner, BUDGET)
    good, bad = await asyncio.gather(embedder.embed([[5]]), embedder.embed([[5], [7]]), return_exceptions=True)
    assert not isinstance(good, BaseException)
    assert isinstance(bad, InferenceError)
    assert "no numbers" in bad.message
