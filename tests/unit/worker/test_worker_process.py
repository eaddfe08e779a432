"""A worker's life as its partners see it: the service manager, a client over TCP, an administrator by Unix socket."""

import asyncio
import json
import signal
import time
import uuid
from pathlib import Path

import aiohttp
import pytest
from tests.unit.worker.process import define, read_events, serving, spawned

from rbee.hive.facts_file import read_worker_facts
from rbee.host.units.facts import UnitFacts

GREEDY = {"prompt": "What is a hive?", "temperature": 0, "max_tokens": 24}


def peak_of(pid: int) -> int:
    """The most memory, in bytes, that a process has had in RAM."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))


async def test_listens_loads_and_says_ready_once(tmp_path: Path, models: Path) -> None:
    define(tmp_path, model=str(models / "faulty-slow-load"), name="slow", slots=2)
    async with spawned(tmp_path) as worker:
        await worker.until("STATUS=loading")
        async with worker.local() as client:
            assert (await (await client.get("/v1/ready")).json()) == {
                "ready": False,
                "state": "loading",
                "model_loaded": False,
                "progress_url": "/v1/loading/progress",
            }
            answer = await client.post("/v2/models/slow/infer", json={"inputs": []})
            body = (await answer.json())["error"]
            assert (answer.status, body["code"]) == (503, "MODEL_LOADING")
            assert answer.headers["Retry-After"] == "1"
            early = json.loads(worker.facts.read_text())
            assert (early["worker_id"], early["ready_monotonic_us"]) == ("w", 0)
            await worker.until("STATUS=loading: creating the session 2/4 steps")
            events = await read_events(await client.get("/v1/loading/progress"))
            ready = await (await client.get("/v1/ready")).json()
        assert [event.event for event in events[-2:]] == ["ready", "message"]
        assert events[-1].data == b"[DONE]"
        assert {event.event for event in events[:-2]} == {"progress"}
        stages = [json.loads(event.data) for event in events[:-2]]
        assert any(stage["total"] and stage["done"] < stage["total"] for stage in stages)
        assert (ready["ready"], ready["state"], ready["model_loaded"]) == (True, "idle", True)
        assert len([notice for notice in worker.notices if "READY=1" in notice]) == 1
        assert any(notice.startswith("EXTEND_TIMEOUT_USEC=") for notice in worker.notices)
        facts = json.loads(worker.facts.read_text())
        assert (facts["url"], facts["ready_monotonic_us"] > 0) == (early["url"], True)
        assert (facts["worker_id"], facts["model"], facts["task"], facts["slots_total"]) == ("w", "slow", "tensor", 2)
        assert facts["pid"] == worker.process.pid
        assert 10 << 20 < facts["memory_bytes"] <= facts["memory_peak_bytes"] <= 1.1 * peak_of(worker.process.pid)
        await worker.until("WATCHDOG=1")
        assert await worker.stop() == 0
        assert not worker.facts.exists()
        assert not worker.unix_socket.exists()


async def test_one_that_listens_everywhere_states_an_address_that_its_hive_believes(
    tmp_path: Path, models: Path
) -> None:
    define(tmp_path, model=str(models / "tiny-tensor"), listen_host="0.0.0.0")
    async with spawned(tmp_path) as worker:
        await worker.until("READY=1")
        facts = read_worker_facts(worker.facts, UnitFacts(worker_id="w", main_pid=worker.process.pid))
        async with aiohttp.ClientSession() as client, client.get(f"{facts.url}/health") as answer:
            assert answer.status == 200


async def test_loading_that_stalls_ends_with_its_reason(tmp_path: Path, models: Path) -> None:
    define(tmp_path, model=str(models / "faulty-slow-load"), load_stall_s=0.8)
    async with spawned(tmp_path) as worker:
        async with asyncio.timeout(20):
            code = await worker.process.wait()
        assert code == 1
        await worker.until("STATUS=LOADING_TIMEOUT: no progress for 0.8 s at 'creating the session 2/4 steps'")
        assert "code=LOADING_TIMEOUT" in worker.log


@pytest.mark.parametrize(
    ("definition", "sentence"),
    [
        ({"slots": "many"}, "w.yaml:2: slots: "),
        ({"colour": "red"}, "colour"),
        ({"model": "/etc"}, "w.yaml:1: model: the folder lies outside the model roots"),
        ({"model": "models/x"}, "expected an absolute path"),
        ({"model": "hf:org/none"}, "w.yaml:1: model: it is not on this machine: fetch it with 'rbee model pull"),
        ({"model": "hf:none"}, "w.yaml:1: model: the model reference has none of the accepted forms"),
        ({"ports": {"first": 80}}, "ports.first"),
    ],
)
async def test_a_wrong_definition_ends_with_78_and_says_where(
    tmp_path: Path, models: Path, definition: dict[str, object], sentence: str
) -> None:
    define(tmp_path, **{"model": str(models / "tiny-tensor")})
    define(tmp_path, **{"model": str(models / "tiny-tensor"), **definition})
    async with spawned(tmp_path) as worker:
        assert await worker.process.wait() == 78
        await worker.until("STATUS=")
        assert any(sentence in notice for notice in worker.notices), worker.notices
        assert sentence in worker.log


@pytest.mark.parametrize(
    ("model", "sentence"),
    [("faulty-broken-file", "model.onnx"), ("faulty-outside-data", "leads outside its folder")],
)
async def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path, models: Path, model: str, sentence: str) -> None:
    define(tmp_path, model=str(models / model))
    async with spawned(tmp_path) as worker:
        assert await worker.process.wait() == 78
        await worker.until("STATUS=")
        assert sentence in worker.log


async def test_cuda_without_a_driver_never_falls_back(tmp_path: Path, models: Path) -> None:
    define(tmp_path, model=str(models / "tiny-tensor"), backend="cuda")
    async with spawned(tmp_path) as worker:
        assert await worker.process.wait() == 69
        status = await worker.until("STATUS=backend cuda was asked for")
        assert "install " in status
        assert not any("READY=1" in notice for notice in worker.notices)


async def test_streams_typed_events_token_by_token(tmp_path: Path, models: Path) -> None:
    async with serving(tmp_path, model=str(models / "bee-talk")) as worker, worker.session() as client:
        request_id, correlation = str(uuid.uuid4()), str(uuid.uuid4())
        headers = {"X-Request-Id": request_id, "X-Correlation-Id": correlation, "X-Rbee-Caller": "token:abcdef"}
        async with client.post("/v1/inference", json=GREEDY, headers=headers) as answer:
            assert answer.headers["X-Request-Id"] == request_id
            assert answer.headers["X-Correlation-Id"] == correlation
            events = await read_events(answer)
        names = [event.event for event in events]
        tokens = [json.loads(event.data) for event in events if event.event == "token"]
        assert names == ["started", *["token"] * len(tokens), "metrics", "end", "message"]
        started, metrics, end = (json.loads(events[at].data) for at in (0, -3, -2))
        assert (started["request_id"], started["model"]) == (request_id, "bee-talk")
        assert [token["index"] for token in tokens] == list(range(len(tokens)))
        text = "".join(token["text"] for token in tokens)
        assert text.startswith("The hive reports the facts of its machine and does what the queen tells it.")
        assert end["text_length"] == len(text)
        assert metrics["completion_tokens"] <= 24
        assert metrics["prompt_tokens"] == started["prompt_tokens"] > 0
        ended = [line for line in worker.log.splitlines() if f"request_id={request_id}" in line]
        assert len(ended) == 1
        for part in ("outcome=ok", f"correlation_id={correlation}", "client=token:abcdef", "caller=token:"):
            assert part in ended[0]


async def test_every_tcp_route_but_two_wants_the_token(tmp_path: Path, models: Path) -> None:
    async with serving(tmp_path, model=str(models / "tiny-tensor")) as worker:
        async with worker.session(token=None) as client:
            for path in ("/health", "/metrics"):
                assert (await client.get(path)).status == 200
            for path in ("/v1/ready", "/v1/loading/progress", "/v1/models", "/v2", "/v2/models/tiny-tensor"):
                answer = await client.get(path)
                assert (answer.status, (await answer.json())["error"]["code"]) == (401, "MISSING_API_KEY")
        async with worker.session(token="wrong") as client:
            assert (await client.post("/v1/inference", json=GREEDY)).status == 401
        async with worker.local() as client:
            assert (await client.get("/v1/ready")).status == 200


async def test_reload_takes_another_token(tmp_path: Path, models: Path) -> None:
    async with serving(tmp_path, model=str(models / "tiny-tensor")) as worker:
        (tmp_path / "token").write_text("the-next-token")
        worker.notices.clear()
        worker.process.send_signal(signal.SIGHUP)
        await worker.until("READY=1")
        async with worker.session() as old, worker.session(token="the-next-token") as new:
            assert (await old.get("/v1/ready")).status == 401
            assert (await new.get("/v1/ready")).status == 200
        (tmp_path / "token").chmod(0o644)
        worker.notices.clear()
        worker.process.send_signal(signal.SIGHUP)
        assert "reload refused" in await worker.until("READY=1")
        async with worker.session(token="the-next-token") as new:
            assert (await new.get("/v1/ready")).status == 200
        assert "the-next-token" not in worker.log


async def test_the_last_slot_is_given_once(tmp_path: Path, models: Path) -> None:
    async with serving(tmp_path, model=str(models / "bee-talk"), slots=2) as worker, worker.session() as client:
        endless = {"prompt": "What is a hive?", "max_tokens": 900, "temperature": 10, "seed": 1}
        async with client.post("/v1/inference", json=endless) as first:
            await first.content.readline()
            answers = await asyncio.gather(*(client.post("/v1/inference", json=endless) for _ in range(3)))
            assert sorted(answer.status for answer in answers) == [200, 503, 503]
            refused = next(answer for answer in answers if answer.status == 503)
            error = (await refused.json())["error"]
            assert error["code"] == "ALL_SLOTS_BUSY"
            assert error["details"] == {"slots_total": 2, "slots_busy": 2}
            assert "Retry-After" in refused.headers
            health = await (await client.get("/health")).json()
            assert (health["state"], health["slots_busy"]) == ("busy", 2)
            for answer in answers:
                answer.close()
        await _idle(client)


async def _idle(client: aiohttp.ClientSession, limit_s: float = 1.0) -> None:
    async with asyncio.timeout(limit_s):
        while (await (await client.get("/health")).json())["state"] != "idle":  # noqa: ASYNC110 - from outside
            await asyncio.sleep(0.02)


async def test_delete_cancels_and_is_idempotent(tmp_path: Path, models: Path) -> None:
    async with serving(tmp_path, model=str(models / "bee-talk"), slots=1) as worker, worker.session() as client:
        request_id = str(uuid.uuid4())
        body = {"prompt": "What is a hive?", "max_tokens": 1000, "temperature": 10, "seed": 4}
        async with client.post("/v1/inference", json=body, headers={"X-Request-Id": request_id}) as answer:
            await answer.content.readline()
            assert (await client.delete(f"/v1/inference/{request_id}")).status == 204
            events = await read_events(answer)
        assert [event.event for event in events[-2:]] == ["error", "message"]
        assert json.loads(events[-2].data)["code"] == "CANCELLED"
        assert not any(event.event == "end" for event in events)
        assert (await client.delete(f"/v1/inference/{request_id}")).status == 204
        assert (await client.delete("/v1/inference/not-a-uuid")).status == 400
        await _idle(client)
        assert worker.log.count(f"request_id={request_id}") == 1


async def test_a_client_that_vanishes_frees_its_slot(tmp_path: Path, models: Path) -> None:
    async with serving(tmp_path, model=str(models / "bee-talk"), slots=1) as worker, worker.session() as client:
        body = {"prompt": "What is a hive?", "max_tokens": 1000, "temperature": 10, "seed": 4}
        answer = await client.post("/v1/inference", json=body)
        await answer.content.readline()
        answer.close()
        await _idle(client)
        metrics = await (await client.get("/metrics")).text()
        assert 'rbee_worker_requests_total{outcome="client_gone",route="/v1/inference"} 1.0' in metrics
        assert worker.log.count("outcome=client_gone") == 1


async def test_a_deadline_before_the_first_byte_is_408_and_later_an_event(tmp_path: Path, models: Path) -> None:
    async with serving(tmp_path, model=str(models / "bee-talk")) as worker, worker.session() as client:
        late = await client.post("/v1/inference", json=GREEDY, headers={"X-Request-Deadline": "1000"})
        error = (await late.json())["error"]
        assert (late.status, error["code"], error["details"]["deadline"]) == (408, "REQUEST_TIMEOUT", "1000")
        soon = str(int((time.time() + 0.15) * 1000))
        body = {"prompt": "What is a hive?", "max_tokens": 1000, "temperature": 10, "seed": 4}
        async with client.post("/v1/inference", json=body, headers={"X-Request-Deadline": soon}) as answer:
            events = await read_events(answer)
        assert json.loads(events[-2].data)["code"] == "REQUEST_TIMEOUT"
        await _idle(client)
        assert worker.log.count("outcome=request_timeout") == 1


async def test_a_slow_reader_loses_nothing(tmp_path: Path, models: Path) -> None:
    async with serving(tmp_path, model=str(models / "bee-talk")) as worker, worker.session() as client:
        body = {"prompt": "What is a hive?", "max_tokens": 600, "temperature": 10, "seed": 7}
        async with client.post("/v1/inference", json=body) as answer:
            await asyncio.sleep(0.5)
            slow = await read_events(answer)
        async with client.post("/v1/inference", json=body) as answer:
            fast = await read_events(answer)
        tokens = [[event.data for event in events if event.event == "token"] for events in (slow, fast)]
        assert tokens[0] == tokens[1]
        assert [json.loads(data)["index"] for data in tokens[0]] == list(range(len(tokens[0])))


async def test_sigterm_drains(tmp_path: Path, models: Path) -> None:
    async with serving(tmp_path, model=str(models / "bee-talk")) as worker, worker.session() as client:
        body = {"prompt": "What is a hive?", "max_tokens": 600, "temperature": 10, "seed": 7}
        async with client.post("/v1/inference", json=body) as answer:
            await answer.content.readline()
            worker.process.send_signal(signal.SIGTERM)
            await worker.until("STOPPING=1")
            await worker.until("STATUS=draining: 1 running")
            refused = await client.post("/v1/inference", json=GREEDY)
            assert (refused.status, (await refused.json())["error"]["code"]) == (503, "WORKER_DRAINING")
            assert (await (await client.get("/health")).json())["state"] == "draining"
            events = await read_events(answer)
        assert events[-2].event == "end"
        assert await worker.process.wait() == 0


async def test_the_drain_limit_cuts_with_an_error_event(tmp_path: Path, models: Path) -> None:
    async with (
        serving(tmp_path, model=str(models / "bee-talk"), drain_limit_s=0.2) as worker,
        worker.session() as client,
    ):
        body = {"prompt": "What is a hive?", "max_tokens": 1000, "temperature": 10, "seed": 7}
        async with client.post("/v1/inference", json=body) as answer:
            await answer.content.readline()
            worker.process.send_signal(signal.SIGTERM)
            events = await read_events(answer)
        assert (events[-2].event, json.loads(events[-2].data)["code"]) == ("error", "CANCELLED")
        assert await worker.process.wait() == 0


async def test_a_crash_of_a_run_fails_the_request_only(tmp_path: Path, models: Path) -> None:
    async with serving(tmp_path, model=str(models / "faulty-bad-index")) as worker, worker.session() as client:
        model = await (await client.get("/v2/models/faulty-bad-index")).json()
        name, shape = model["inputs"][0]["name"], [max(size, 1) for size in model["inputs"][0]["shape"]]
        for value, status in ((10_000, 500), (0, 200)):
            tensor = {"name": name, "shape": shape, "datatype": model["inputs"][0]["datatype"], "data": [value]}
            answer = await client.post("/v2/models/faulty-bad-index/infer", json={"inputs": [tensor]})
            assert answer.status == status, await answer.text()
            if status == 500:
                error = (await answer.json())["error"]
                assert error["code"] == "INFERENCE_FAILED"
                assert "/" not in json.dumps(error["details"])


async def test_a_taken_port_is_skipped(tmp_path: Path, models: Path) -> None:
    taken = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = taken.sockets[0].getsockname()[1]
    ports = {"first": port, "last": port + 20}
    async with serving(tmp_path, model=str(models / "tiny-tensor"), ports=ports) as worker:
        assert int(worker.url.rpartition(":")[2]) > port
        assert "ports taken" in worker.log
    taken.close()
    await taken.wait_closed()


@pytest.mark.parametrize("model", ["tiny-tensor", "all-minilm-l6-v2", "bee-talk"])
async def test_nothing_is_imported_after_ready(tmp_path: Path, models: Path, model: str) -> None:
    requests: dict[str, list[tuple[str, object]]] = {
        "tiny-tensor": [("/v2/models/m/infer", {"inputs": [{"name": "x"}]})],
        "all-minilm-l6-v2": [("/v1/embeddings", {"input": "bees"})],
        "bee-talk": [
            ("/v1/inference", {**GREEDY, "temperature": 0.7}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 3}),
        ],
    }
    async with (
        serving(tmp_path, "-X", "importtime", model=str(models / model), name="m") as worker,
        worker.session() as client,
    ):
        for path, body in requests[model]:
            await (await client.post(path, json=body)).read()
        for path in ("/health", "/metrics", "/v1/ready", "/v1/loading/progress", "/nothing"):
            await (await client.get(path)).read()
        _, _, after = worker.log.partition("worker ready")
        assert "import time:" in worker.log
        late = [line for line in after.splitlines() if line.startswith("import time:")]
        assert late == []
