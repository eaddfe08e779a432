"""The routes of each task, over real HTTP to a real process."""

import asyncio
import base64
import io
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
from tests.unit.worker import graphs
from tests.unit.worker.process import TOKEN, WorkerProcess, serving


@asynccontextmanager
async def client_of(folder: Path, model: Path) -> AsyncIterator[tuple[WorkerProcess, aiohttp.ClientSession]]:
    async with serving(folder, model=str(model)) as worker, worker.session() as client:
        yield worker, client


async def test_the_prefix_cache_is_counted(tmp_path: Path, models: Path) -> None:
    async with client_of(tmp_path, models / "bee-talk") as (worker, client):
        asked = {"prompt": "What is a hive? " * 20, "max_tokens": 2, "stream": False}
        for _ in range(2):
            async with client.post(f"{worker.url}/v1/inference", json=asked) as answer:
                assert answer.status == 200, await answer.text()
        async with client.get(f"{worker.url}/metrics") as answer:
            metrics = await answer.text()
    assert 'rbee_worker_prefix_lookups_total{result="miss"} 1.0' in metrics
    assert 'rbee_worker_prefix_lookups_total{result="hit"} 1.0' in metrics
    figures = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if line.startswith("rbee_worker_prefix_"))
    assert float(figures["rbee_worker_prefix_reused_tokens_total"]) >= 32
    assert float(figures["rbee_worker_prefix_bytes"]) > 0


async def test_openais_own_client_talks_to_a_generator(tmp_path: Path, models: Path) -> None:
    async with (
        serving(tmp_path, model=str(models / "bee-talk")) as worker,
        openai.AsyncOpenAI(base_url=f"{worker.url}/v1", api_key=TOKEN, max_retries=0) as client,
    ):
        question: Any = [{"role": "user", "content": "What is a hive?"}]
        whole = await client.chat.completions.create(model="bee-talk", messages=question, temperature=0, max_tokens=20)
        text = whole.choices[0].message.content
        assert text is not None
        assert text.startswith("The hive reports the facts")
        assert whole.choices[0].finish_reason == "length"
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 20
        stream = await client.chat.completions.create(
            model="bee-talk", messages=question, temperature=0, max_tokens=20, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        chunks = [chunk async for chunk in stream]
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(pieces) == text
        assert chunks[0].choices[0].delta.role == "assistant"
        assert chunks[-1].usage == whole.usage
        assert all("usage" in chunk.model_fields_set and chunk.usage is None for chunk in chunks[:-1])
        assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "length"
        plain = await client.completions.create(model="bee-talk", prompt="What is a hive?", temperature=0)
        assert plain.usage is not None
        assert plain.usage.completion_tokens <= 16
        assert [model.id async for model in client.models.list()] == ["bee-talk"]
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.create(model="other", messages=question)
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="bee-talk", messages=question, extra_body={"beams": 4})
        assert (refused.value.code, refused.value.param) == ("UNSUPPORTED_PARAMETER", "beams")
        await client.chat.completions.create(
            model="bee-talk", messages=question, presence_penalty=0, n=1, max_completion_tokens=1,
            user="someone", metadata={"team": "bees"}, tool_choice="none",
        )  # fmt: skip


async def test_openais_own_client_embeds(tmp_path: Path, models: Path) -> None:
    async with serving(tmp_path, model=str(models / "all-minilm-l6-v2")) as worker:
        async with openai.AsyncOpenAI(base_url=f"{worker.url}/v1", api_key=TOKEN, max_retries=0) as client:
            found = await client.embeddings.create(model="all-minilm-l6-v2", input=["a bee", "two bees"])
            assert [len(each.embedding) for each in found.data] == [384, 384]
            assert found.usage.prompt_tokens == found.usage.total_tokens > 4
            short = await client.embeddings.create(model="all-minilm-l6-v2", input="a bee", dimensions=32)
            whole = np.array(found.data[0].embedding)[:32]
            assert short.data[0].embedding == pytest.approx(whole / np.linalg.norm(whole), abs=1e-5)
        async with worker.session() as session:
            floats, packed = [
                (await (await session.post("/v1/embeddings", json={"input": "a bee", "encoding_format": form})).json())
                for form in ("float", "base64")
            ]
            raw = base64.b64decode(packed["data"][0]["embedding"])
            assert struct.unpack("<384f", raw) == pytest.approx(floats["data"][0]["embedding"])
            for body, field in (
                ({"input": []}, "input"),
                ({"input": ["a", 1]}, "input"),
                ({"input": "a", "dimensions": 385}, "dimensions"),
                ({"input": "a", "dimensions": 0}, "dimensions"),
                ({"input": "bee " * 300, "truncate": False}, "302 tokens and the model reads 256"),
                ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
                ({}, "input"),
            ):
                answer = await session.post("/v1/embeddings", json=body)
                error = (await answer.json())["error"]
                assert answer.status == 400, body
                assert field in json.dumps(error)
            other = await session.post("/v1/inference", json={"prompt": "hi"})
            assert other.status == 400
            assert "/v1/embeddings" in (await other.json())["error"]["message"]


@pytest.mark.parametrize(
    ("body", "code", "named"),
    [
        ({}, "INVALID_REQUEST", "prompt"),
        ({"prompt": "a", "messages": []}, "INVALID_REQUEST", "prompt"),
        ({"messages": []}, "INVALID_REQUEST", "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "INVALID_REQUEST", "messages"),
        ({"prompt": "a", "temperature": -1}, "INVALID_REQUEST", "temperature"),
        ({"prompt": "a", "top_p": 0}, "INVALID_REQUEST", "top_p"),
        ({"prompt": "a", "max_tokens": 0}, "INVALID_REQUEST", "max_tokens"),
        ({"prompt": "a", "seed": "x"}, "INVALID_REQUEST", "seed"),
        ({"prompt": "a", "stop": [""]}, "INVALID_REQUEST", "stop"),
        ({"prompt": "a", "beams": 4}, "UNSUPPORTED_PARAMETER", "beams"),
        ({"prompt": "a", "model": "gpt"}, "MODEL_NOT_FOUND", "bee-talk"),
        ([], "INVALID_REQUEST", "body"),
    ],
)
async def test_inference_refuses_by_name(generator: aiohttp.ClientSession, body: object, code: str, named: str) -> None:
    answer = await generator.post("/v1/inference", json=body)
    error = (await answer.json())["error"]
    assert error["code"] == code
    assert named in error["message"] + json.dumps(error["details"])
    assert error["correlation_id"] == answer.headers["X-Correlation-Id"]


@pytest.fixture
async def generator(tmp_path: Path, models: Path) -> AsyncIterator[aiohttp.ClientSession]:
    async with client_of(tmp_path, models / "bee-talk") as (_, client):
        yield client


async def test_of_two_fields_of_one_name_the_last_one_counts(generator: aiohttp.ClientSession) -> None:
    body = b'{"model": "an alias", "prompt": "hi", "max_tokens": 1, "stream": false, "model": "bee-talk"}'
    answer = await generator.post("/v1/inference", data=body)
    assert answer.status == 200, await answer.text()


async def test_inference_at_once_and_its_metrics(generator: aiohttp.ClientSession) -> None:
    body = {"prompt": "What is a hive?", "temperature": 0, "max_tokens": 10, "stream": False, "stop": [" machine"]}
    for _ in range(3):
        answer = await (await generator.post("/v1/inference", json=body)).json()
    assert answer["text"] == "The hive reports the facts of its"
    assert answer["finish_reason"] == "stop"
    for _ in range(2):
        await generator.get("/health")
        metrics = await (await generator.get("/metrics")).text()
    assert 'rbee_worker_requests_total{outcome="ok",route="/v1/inference"} 3.0' in metrics
    assert f'rbee_worker_tokens_total{{kind="completion"}} {3.0 * answer["metrics"]["completion_tokens"]}' in metrics
    assert 'rbee_worker_texts_total{finish="stop"} 3.0' in metrics
    assert "rbee_worker_time_to_first_token_seconds_count 3.0" in metrics
    assert "rbee_worker_inference_seconds_count 3.0" in metrics
    assert 'rbee_worker_slots{state="free"} 4.0' in metrics
    assert 'rbee_worker_slots{state="busy"} 0.0' in metrics
    assert 'rbee_worker_info{backend="cpu",model="bee-talk"' in metrics
    assert "process_resident_memory_bytes" in metrics
    health = await (await generator.get("/health")).json()
    assert health["requests_total"] == 3
    assert health["idle_s"] > 0


async def test_a_body_over_the_limit_is_413(generator: aiohttp.ClientSession) -> None:
    answer = await generator.post("/v1/inference", data=io.BytesIO(b'{"prompt": "' + b"a" * (1 << 20) + b'"}'))
    assert (answer.status, (await answer.json())["error"]["code"]) == (413, "PAYLOAD_TOO_LARGE")


async def test_a_stuck_step_withholds_the_watchdog_and_a_cancel_brings_it_back(tmp_path: Path) -> None:
    graphs.endless(tmp_path / "models/endless/model.onnx")
    model = str(tmp_path / "models/endless")
    async with (
        serving(tmp_path, model=model, step_limit_s=0.3, threads=1) as worker,
        worker.session() as client,
    ):
        await worker.until("WATCHDOG=1")
        tensor = {"name": "count", "shape": [1], "datatype": "INT64", "data": [10**9]}
        request = asyncio.ensure_future(client.post("/v2/models/endless/infer", json={"inputs": [tensor]}))
        await asyncio.sleep(0.8)
        worker.notices.clear()
        health = await client.get("/health")
        assert (health.status, (await health.json())["status"]) == (503, "unhealthy")
        await asyncio.sleep(0.6)
        assert "WATCHDOG=1" not in worker.notices
        request.cancel()
        await worker.until("WATCHDOG=1", limit_s=2)
        assert (await client.get("/health")).status == 200
        assert await worker.stop() == 0


async def test_an_idle_worker_uses_no_processor(tmp_path: Path, models: Path) -> None:
    async with client_of(tmp_path, models / "bee-talk") as (worker, client):
        body = {"prompt": "What is a hive?", "temperature": 0, "max_tokens": 8, "stream": False}
        await (await client.post("/v1/inference", json=body)).read()
        await asyncio.sleep(0.3)
        before = _cpu_ticks(worker.process.pid)
        await asyncio.sleep(1.5)
        assert _cpu_ticks(worker.process.pid) - before <= 1


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
