"""The hive as a process of its own, with workers as its child processes: the real worker, a real model."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.hive.process import Answer, Hive, free_port
from tests.unit.hive.queen import Queen


@pytest.fixture
async def queen() -> AsyncIterator[Queen]:
    queen = Queen()
    await queen.start()
    yield queen
    await queen.stop()


@pytest.fixture
async def hive(tmp_path: Path, queen: Queen) -> AsyncIterator[Hive]:
    hive = Hive(tmp_path, queen={"callback_url": queen.url})
    await hive.start()
    yield hive
    await hive.stop()


def code_of(answer: Answer) -> tuple[int, str]:
    return answer[0], answer[1]["error"]["code"]


async def test_spawn_ready_stop_and_end(hive: Hive, queen: Queen) -> None:
    status, answer = await hive.spawn("w1")
    assert (status, answer["state"]) == (202, "loading")
    row = await hive.until("w1", "idle")
    assert (row["model"], row["task"], row["slots_available"]) == ("tiny", "tensor", 4)
    assert (await hive.spawn("w1"))[0] == 200
    assert code_of(await hive.spawn("w1", slots=7)) == (409, "CONFLICT")
    await queen.until(lambda: "ready" in queen.paths())
    assert (await hive.call("GET", "/v1/workers/w1/logs?lines=5&follow=maybe"))[0] == 400
    assert (await hive.call("DELETE", "/v1/workers/w1"))[0] == 202
    stopped = await hive.until("w1", "stopped")
    assert (stopped["reason"], stopped["result"], stopped["url"]) == ("requested", "success", None)
    assert (await hive.call("POST", "/v1/workers/spawn", {"worker_id": "w1"}))[0] == 202
    again = await hive.until("w1", "idle")
    assert again["invocation_id"] != row["invocation_id"]
    await queen.until(lambda: queen.paths().count("ready") == 2)
    assert await hive.stop() == 0
    assert not _alive(again["pid"])
    told = [body["state"] for path, body, _ in queen.seen if path.endswith("state") or path.endswith("ready")]
    assert told[-1] == "stopped"
    assert "Traceback" not in hive.log.read_text()


@pytest.mark.parametrize(
    ("order", "code"),
    [
        ({"worker_id": "under_score"}, (400, "INVALID_REQUEST")),
        ({"worker_id": "a" * 65}, (400, "INVALID_REQUEST")),
        ({"worker_id": "a|b"}, (400, "INVALID_REQUEST")),
        ({"backend": "metal"}, (400, "BACKEND_UNAVAILABLE")),
        ({"device": -1}, (400, "INVALID_DEVICE")),
        ({"device": 4}, (400, "INVALID_DEVICE")),
        ({"model_ref": "file:///etc"}, (400, "INVALID_MODEL_REFERENCE")),
        ({"model_ref": "garbage"}, (400, "INVALID_MODEL_REFERENCE")),
        ({"model_ref": "hf:a/b\nforged"}, (400, "INVALID_MODEL_REFERENCE")),
        ({"model_ref": None}, (404, "WORKER_NOT_FOUND")),
        ({"name": "<script>"}, (400, "INVALID_REQUEST")),
        ({"slots": 0}, (400, "INVALID_REQUEST")),
        ({"unknown": 1}, (400, "INVALID_REQUEST")),
        ({"hive_id": "elsewhere"}, (400, "INVALID_REQUEST")),
    ],
)
async def test_a_wrong_order_is_refused(hive: Hive, order: dict[str, object], code: tuple[int, str]) -> None:
    answer = await hive.spawn("w1", **order)
    assert code_of(answer) == code
    assert (await hive.row("w1")) == {}
    assert "forged" not in hive.log.read_text()


async def test_a_worker_from_outside_is_checked_then_taken(hive: Hive) -> None:
    await hive.spawn("inside")
    row = await hive.until("inside", "idle")
    ready = {"worker_id": "outside", "url": row["url"], "model_ref": "file:///m/tiny", "backend": "cpu"}
    assert code_of(await hive.call("POST", "/v1/workers/ready", ready)) == (502, "PROTOCOL_ERROR")
    nobody = ready | {"url": f"http://127.0.0.1:{free_port()}"}
    assert (await hive.call("POST", "/v1/workers/ready", nobody))[0] == 503
    foreign = ready | {"url": "http://192.0.2.1:80"}
    assert code_of(await hive.call("POST", "/v1/workers/ready", foreign)) == (400, "INVALID_REQUEST")
    assert code_of(await hive.call("POST", "/v1/workers/ready", ready | {"worker_id": "inside"})) == (409, "CONFLICT")


async def test_capabilities_resources_and_metrics(hive: Hive) -> None:
    _, capabilities = await hive.call("GET", "/v1/capabilities")
    assert "cpu" in capabilities["backends"]
    assert capabilities["onnxruntime_version"]
    _, resources = await hive.call("GET", "/v1/resources")
    assert resources["ram_total_bytes"] >= resources["ram_available_bytes"] > 0
    assert resources["disk_total_bytes"] > 0
    _, health = await hive.call("GET", "/v1/health")
    assert (health["status"], health["api_version"], health["hive_id"]) == ("healthy", "v1", "test")


async def test_a_required_queen_that_is_absent_ends_the_start(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    hive = Hive(tmp_path, queen={"callback_url": url, "required": True})
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "rbee.hive.main", "--config", str(tmp_path / "etc/hive.yaml"), stderr=subprocess.PIPE
    )
    _, complaint = await process.communicate()
    assert process.returncode == 78
    assert b"start the queen, or mend the URL" in complaint
    assert hive.process is None


async def test_an_absent_queen_degrades_and_a_standalone_hive_is_healthy(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    hive = Hive(tmp_path / "a", queen={"callback_url": f"http://127.0.0.1:{free_port()}"})
    await hive.start()
    try:
        _, health = await hive.call("GET", "/v1/health")
        assert (health["status"], health["callback"]["status"]) == ("degraded", "unreachable")
    finally:
        assert await hive.stop() == 0
    (tmp_path / "b").mkdir()
    alone = Hive(tmp_path / "b")
    await alone.start()
    try:
        _, health = await alone.call("GET", "/v1/health")
        assert (health["status"], health["callback"]["status"]) == ("healthy", "standalone")
    finally:
        assert await alone.stop() == 0


def test_check_config_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "hive.yaml"
    path.write_text("hive_id: x\nidle_limit_s: soon\n")
    done = subprocess.run(
        [sys.executable, "-m", "rbee.hive.main", "--config", str(path), "--check-config"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 78
    assert "hive.yaml:2: idle_limit_s" in done.stderr


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
