"""Ranking with a cross-encoder: its order, its scores, what is refused, and the route over HTTP."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from onnx import TensorProto, helper
from tests.unit.worker import graphs
from tests.unit.worker.process import serving

from rbee.wire.errors import ConfigError, InferenceError, InvalidRequest
from rbee.wire.worker_spec import Backend, Task
from rbee.worker.engine.folder import read_folder
from rbee.worker.engine.rank import Ranker, has_sigmoid
from rbee.worker.engine.recognise import FolderFacts, recognise
from rbee.worker.engine.runner import Runner
from rbee.worker.engine.sessions import DeviceSpec, create_session
from rbee.worker.engine.token_batches import Budget
from rbee.worker.engine.tokenise import LengthRule, TextReader, load_tokenizer

CPU = DeviceSpec(Backend.CPU, threads=1)
LIMIT = 32
QUERY = "what does a hive report?"
DOCUMENTS = ["a queen decides", "the hive reports facts", "bees make honey in the hive and report"]


@pytest.fixture
async def runner() -> AsyncIterator[Runner]:
    found = Runner(2)
    yield found
    found.close()


def ranker_of(folder: Path, runner: Runner, models: Path, *, truncate: bool = False) -> Ranker:
    tokenizer, _ = load_tokenizer(models / "tiny-rank")
    facts, session = read_folder(folder).facts, create_session(folder / "model.onnx", CPU)
    found = Ranker(session, facts, TextReader(tokenizer, LengthRule(LIMIT, truncate)), runner, Budget(256, 8))
    found.warm_up()
    return found


@pytest.fixture
def ranker(models: Path, runner: Runner) -> Ranker:
    return ranker_of(models / "tiny-rank", runner, models)


async def test_a_cross_encoder_is_known_by_its_files_and_scores_by_sigmoid(models: Path, ranker: Ranker) -> None:
    assert recognise(read_folder(models / "tiny-rank").facts).task is Task.RANK
    found = await ranker.rank(QUERY, DOCUMENTS)
    assert all(0 < score < 1 for score in found.scores)
    assert found.scores[0] < found.scores[1] < found.scores[2]
    assert found.prompt_tokens == sum([(await ranker.rank(QUERY, [each])).prompt_tokens for each in DOCUMENTS])


async def test_company_changes_no_score(ranker: Ranker) -> None:
    documents = [" ".join(["hive", "report", "bee", "queen"][: 1 + at % 4] * (1 + at % 5)) for at in range(40)]
    alone = [(await ranker.rank(QUERY, [each])).scores[0] for each in documents]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ranker.rank(QUERY, documents[first : first + 5])) for first in range(0, 40, 5)]
    assert [score for task in tasks for score in task.result().scores] == pytest.approx(alone, abs=1e-6)


async def test_a_document_that_is_too_long_is_refused_or_cut_and_the_query_stays_whole(
    models: Path, runner: Runner, ranker: Ranker
) -> None:
    long = "honey " * 40 + "hive report"
    with pytest.raises(InvalidRequest, match=f"documents 1 has 51 tokens and the model reads {LIMIT}") as refused:
        await ranker.rank(QUERY, ["hive", long])
    assert refused.value.param == "documents"
    cut = await ranker.rank(QUERY, [long, "honey"], truncate=True)
    assert cut.prompt_tokens == LIMIT + 10
    assert cut.scores[0] == pytest.approx(cut.scores[1])
    by_files = ranker_of(models / "tiny-rank", runner, models, truncate=True)
    assert (await by_files.rank(QUERY, [long])).prompt_tokens == LIMIT
    for query in ("bee " * 40, " "):
        with pytest.raises(InvalidRequest, match="the query has") as refused:
            await ranker.rank(query, ["hive"], truncate=True)
        assert refused.value.param == "query"


def facts_of(config: dict[str, object], models: Path) -> FolderFacts:
    return FolderFacts(frozenset(), {"config.json": config}, read_folder(models / "tiny-rank").facts.graph)


def test_the_activation_is_the_models_own(models: Path) -> None:
    def said(**config: object) -> bool:
        return has_sigmoid(facts_of(config, models))

    assert said()
    assert not said(sbert_ce_default_activation_function="torch.nn.modules.linear.Identity")
    assert not said(sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
    assert said(sentence_transformers={"activation_fn": "torch.nn.modules.activation.Sigmoid"})
    with pytest.raises(ConfigError, match="the activation Tanh is not served"):
        said(sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"})


async def test_without_an_activation_scores_are_the_logits(tmp_path: Path, models: Path, runner: Runner) -> None:
    for each in (models / "tiny-rank").iterdir():
        (tmp_path / each.name).write_bytes(each.read_bytes())
    plain = {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}
    (tmp_path / "config.json").write_text(json.dumps(plain))
    logits = (await ranker_of(tmp_path, runner, models).rank(QUERY, DOCUMENTS)).scores
    scores = (await ranker_of(models / "tiny-rank", runner, models).rank(QUERY, DOCUMENTS)).scores
    assert logits[0] < -3
    assert scores == pytest.approx([1 / (1 + math.exp(-each)) for each in logits])


def test_a_model_with_several_scores_does_not_come_up(tmp_path: Path, models: Path, runner: Runner) -> None:
    nodes = [helper.make_node("Cast", ["input_ids"], ["logits"], to=TensorProto.FLOAT)]
    ids = graphs.value("input_ids", TensorProto.INT64, "batch", "length")
    graphs.save(tmp_path / "model.onnx", nodes, [ids], [graphs.value("logits", TensorProto.FLOAT, "batch", "labels")])
    with pytest.raises(InferenceError, match="one score for each pair"):
        ranker_of(tmp_path, runner, models)


async def test_rerank_over_http(tmp_path: Path, models: Path) -> None:
    async with serving(tmp_path, model=str(models / "tiny-rank")) as worker, worker.session() as client:
        body = {"model": "tiny-rank", "query": QUERY, "documents": [DOCUMENTS[0], {"text": DOCUMENTS[1]}, DOCUMENTS[2]]}
        whole = await (await client.post("/v1/rerank", json=body)).json()
        assert [each["index"] for each in whole["results"]] == [2, 1, 0]
        assert whole["results"] == sorted(whole["results"], key=lambda each: -each["relevance_score"])
        assert "document" not in whole["results"][0]
        assert whole["usage"]["total_tokens"] > 30
        best = await (await client.post("/v1/rerank", json={**body, "top_n": 1, "return_documents": True})).json()
        assert best["results"] == [{**whole["results"][0], "document": {"text": DOCUMENTS[2]}}]
        same = await (await client.post("/v1/rerank", json={**body, "documents": ["a"] * 3, "top_n": 9})).json()
        assert [each["index"] for each in same["results"]] == [0, 1, 2]
        for change, code, named in (
            ({"query": ""}, "INVALID_REQUEST", "query"),
            ({"query": None}, "INVALID_REQUEST", "query"),
            ({"documents": []}, "INVALID_REQUEST", "documents"),
            ({"documents": [{"title": "a"}]}, "INVALID_REQUEST", "documents"),
            ({"documents": ["hive " * 600]}, "INVALID_REQUEST", "documents"),
            ({"top_n": 0}, "INVALID_REQUEST", "top_n"),
            ({"rank_fields": ["a"]}, "UNSUPPORTED_PARAMETER", "rank_fields"),
            ({"model": "other"}, "MODEL_NOT_FOUND", "tiny-rank"),
        ):
            answer = await client.post("/v1/rerank", json={**body, **change})
            error = (await answer.json())["error"]
            assert error["code"] == code, change
            assert named in json.dumps(error)
            assert "param" in error
        other = await client.post("/v1/embeddings", json={"input": "hi"})
        assert "/v1/rerank" in (await other.json())["error"]["message"]
        metadata = await (await client.get("/v2/models/tiny-rank")).json()
        assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 1]}]
        facts = json.loads(worker.facts.read_text())
        assert facts["task"] == "rank"
