"""The OpenAPI document says what a worker takes and gives, whatever its task."""

from pathlib import Path

import pytest
from tests.unit.documents import check_answer, check_reads, check_whole, document, open_paths
from tests.unit.worker.process import serving

from rbee.worker.api.parameters import LABELS, NEUTRAL

TENSOR = {
    "inputs": [
        {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]},
        {"name": "shift", "shape": [1, 1], "datatype": "INT64", "data": [0]},
    ]
}
CHAT = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
ASKED: dict[str, list[tuple[str, object, int]]] = {
    "bee-talk": [
        ("/v1/inference", {"prompt": "hi", "max_tokens": 2, "stream": False}, 200),
        ("/v1/inference", {"prompt": "hi", "max_tokens": 2}, 200),
        ("/v1/chat/completions", CHAT, 200),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 2, "logprobs": 1}, 200),
        ("/v1/completions", {"prompt": "hi", "max_tokens": 2, "stream": True}, 200),
        ("/v1/embeddings", {"input": "hi"}, 400),
    ],
    "all-minilm-l6-v2": [
        ("/v1/embeddings", {"input": "hi"}, 200),
        ("/v1/rerank", {"query": "hi", "documents": ["a"]}, 400),
    ],
    "tiny-rank": [("/v1/rerank", {"query": "hi", "documents": ["a", "b"], "return_documents": True}, 200)],
    "tiny-tensor": [("/v2/models/{model}/infer", TENSOR, 200), ("/v2/models/{model}/infer", {}, 400)],
}
"""What workers of each task are asked, refused questions among it, and the status of the answer."""


@pytest.mark.parametrize("model", ASKED)
async def test_a_worker_answers_as_its_document_says(tmp_path: Path, models: Path, model: str) -> None:
    async with serving(tmp_path, model=str(models / model)) as worker, worker.session() as client:
        found = await document(client, worker.url)
        check_whole(found)
        assert open_paths(found) == {"/health", "/metrics"}
        await check_reads(client, worker.url, found, {"{model}": model, "{version}": "1"})
        for path, body, status in ASKED[model]:
            async with client.post(path.replace("{model}", model), json=body) as response:
                assert response.status == status, await response.text()
                await check_answer(response, found, found["paths"][path]["post"])


async def test_what_asks_for_nothing_is_taken_and_stands_in_the_document(tmp_path: Path, models: Path) -> None:
    said: dict[str, object] = {"stream": None, "user": "me", "best_of": 1, "echo": False, "store": None}
    strange = {"beams": None}
    asked = CHAT | said | strange
    async with serving(tmp_path, model=str(models / "bee-talk")) as worker, worker.session() as client:
        found = await document(client, worker.url)
        body = found["components"]["schemas"]["ChatBody"]
        properties = body["properties"]
        assert properties.keys() >= {*said, *LABELS, *NEUTRAL}
        assert body["additionalProperties"] == {"type": "null"}
        assert {"type": "null"} in properties["stream"]["anyOf"]
        async with client.post("/v1/chat/completions", json=asked) as response:
            assert response.status == 200, await response.text()


async def test_the_document_is_for_those_with_a_token(tmp_path: Path, models: Path) -> None:
    async with (
        serving(tmp_path, model=str(models / "tiny-tensor")) as worker,
        worker.session(token=None) as stranger,
        stranger.get("/openapi.json") as refused,
    ):
        assert refused.status == 401
