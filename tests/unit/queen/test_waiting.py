"""Requests that wait: woken by what hives say, in order, bounded, and told why when nothing comes."""

import asyncio
import time
from typing import Any

import aiohttp
import msgspec
import pytest
from tests.unit.queen.conftest import Configured, RunningQueen
from tests.unit.queen.partners import HIVE_TOKEN, MODEL, HivePartner, WorkerPartner, report, served, until

from rbee.wire.messages import Progress, WorkerState

CHAT = "/v1/chat/completions"


async def ask(queen: RunningQueen, model: str = MODEL, **headers: str) -> tuple[int, dict[str, Any]]:
    """One request that is not streamed: status and body."""
    body = {"model": model, "messages": []}
    async with queen.client.post(queen.url + CHAT, json=body, headers=headers) as response:
        return response.status, await response.json()


async def test_a_waiting_request_starts_within_5_ms_of_the_callback(
    queen: RunningQueen, worker: WorkerPartner, hive: HivePartner
) -> None:
    took = []
    for _ in range(20):
        await queen.tell(report(WorkerState.LOADING, url=None))
        waiting = asyncio.create_task(ask(queen))
        await until(lambda: queen.core.admission.waiting == 1)
        await queen.tell(report(url=worker.url))
        row = queen.core.registry.worker(queen.core.registry.find("w", None).key)
        assert row is not None
        assert (await waiting)[0] == 200
        took.append(worker.arrived[-1] - row.hive.heard)
    took.sort()
    assert took[len(took) // 2] <= 0.005, took
    assert await queen.metric("queen_rbee_ready_to_first_request_seconds_count") == 20
    assert await queen.metric("queen_rbee_readiness_fallback_polls_total") == 0


async def test_many_wait_for_one_start(queen: RunningQueen, worker: WorkerPartner, hive: HivePartner) -> None:
    await queen.beat(report(WorkerState.STOPPED, url=None, slots_total=2), api_url=hive.url)
    waiting = [asyncio.create_task(ask(queen)) for _ in range(30)]
    await until(lambda: queen.core.admission.waiting == 30)
    await until(lambda: hive.spawned)
    assert await queen.metric(f'queen_rbee_waiting_requests{{model="{MODEL}",priority="interactive"}}') == 30
    await queen.tell(report(WorkerState.LOADING, url=None))
    await queen.tell(report(url=worker.url, slots_total=2))
    assert {status for status, _ in await asyncio.gather(*waiting)} == {200}
    assert [spawned["worker_id"] for spawned in hive.spawned] == ["w"]
    assert hive.tokens == [f"Bearer {HIVE_TOKEN}"]
    assert queen.core.admission.in_flight == queen.core.admission.waiting == 0


async def test_requests_go_in_the_order_of_their_arrival(queen: RunningQueen, worker: WorkerPartner) -> None:
    worker.hold = asyncio.Event()
    await queen.tell(report(url=worker.url, slots_total=1))
    waiting = []
    for number in range(5):
        waiting.append(asyncio.create_task(ask(queen, **{"X-Request-Deadline": f"{time.time() + 60 + number:.0f}000"})))
        expected = number
        await until(lambda expected=expected: queen.core.admission.waiting == expected)  # type: ignore[misc]
    worker.hold.set()
    await asyncio.gather(*waiting)
    deadlines = [headers["X-Request-Deadline"] for headers in worker.headers]
    assert deadlines == sorted(deadlines)


async def test_slots_are_never_overrun(queen: RunningQueen, worker: WorkerPartner, second: WorkerPartner) -> None:
    worker.hold = second.hold = asyncio.Event()
    await queen.tell(report(url=worker.url, worker="a", slots_total=3))
    await queen.tell(report(url=second.url, worker="b", slots_total=1))
    waiting = [asyncio.create_task(ask(queen)) for _ in range(10)]
    await until(lambda: worker.running + second.running == 4)
    await asyncio.sleep(0.05)
    assert (worker.running, second.running) == (3, 1)
    rows = await queen.rows()
    assert (rows["bee/a"]["slots_available"], rows["bee/b"]["slots_available"]) == (0, 0)
    worker.hold.set()
    assert {status for status, _ in await asyncio.gather(*waiting)} == {200}


async def test_a_model_that_nobody_serves(queen: RunningQueen) -> None:
    status, body = await ask(queen, "nothing")
    assert (status, body["error"]["code"]) == (404, "MODEL_NOT_FOUND")
    assert body["error"]["type"] == "invalid_request_error"
    assert "GET /v1/models" in body["error"]["message"]


async def test_all_fail_with_the_reason_of_the_worker(queen: RunningQueen, hive: HivePartner) -> None:
    await queen.beat(report(WorkerState.STOPPED, url=None), api_url=hive.url)
    waiting = [asyncio.create_task(ask(queen)) for _ in range(3)]
    await until(lambda: hive.spawned)
    await queen.tell(report(WorkerState.LOADING, url=None))
    await queen.tell(report(WorkerState.FAILED, url=None, reason="model.onnx is damaged", exit_status=1))
    for status, body in await asyncio.gather(*waiting):
        assert (status, body["error"]["code"]) == (503, "WORKER_FAILED")
        assert "model.onnx is damaged" in body["error"]["message"]
        assert body["error"]["details"]["reason"] == "model.onnx is damaged"
    assert len(hive.spawned) == 1


async def test_a_wrong_configuration_is_not_started_again(queen: RunningQueen, hive: HivePartner) -> None:
    await queen.beat(report(WorkerState.FAILED, url=None, exit_status=78, reason="w.yaml:3: slots"), api_url=hive.url)
    status, body = await ask(queen)
    assert (status, body["error"]["code"]) == (503, "WORKER_FAILED")
    assert hive.spawned == []


async def test_a_start_that_made_no_progress(queen: RunningQueen, hive: HivePartner) -> None:
    await queen.beat(report(WorkerState.LOADING, url=None), api_url=hive.url)
    waiting = asyncio.create_task(ask(queen))
    await until(lambda: queen.core.admission.waiting == 1)
    await queen.tell(report(WorkerState.FAILED, url=None, reason="LOADING_TIMEOUT", result="timeout"))
    status, body = await waiting
    assert (status, body["error"]["code"]) == (503, "LOADING_TIMEOUT")


async def test_a_draining_worker_is_started_again_for_who_waits(
    queen: RunningQueen, worker: WorkerPartner, hive: HivePartner
) -> None:
    await queen.beat(report(WorkerState.DRAINING, url=worker.url), api_url=hive.url)
    waiting = asyncio.create_task(ask(queen))
    await until(lambda: queen.core.admission.waiting == 1)
    await queen.tell(report(WorkerState.STOPPED, url=None))
    await until(lambda: hive.spawned)
    await queen.tell(report(url=worker.url))
    assert (await waiting)[0] == 200


async def test_a_crash_that_is_reported_twice_does_not_end_the_wait_for_the_next_life(
    queen: RunningQueen, worker: WorkerPartner, hive: HivePartner
) -> None:
    crashed = report(WorkerState.FAILED, url=None, reason="crashed: SIGKILL", invocation_id="first")
    await queen.beat(crashed, api_url=hive.url)
    waiting = asyncio.create_task(ask(queen))
    await until(lambda: hive.spawned)
    await queen.tell(msgspec.structs.replace(crashed, restarts=1))
    await queen.tell(report(WorkerState.LOADING, url=None, invocation_id="second"))
    await queen.tell(report(url=worker.url, invocation_id="second"))
    assert (await waiting)[0] == 200
    assert len(hive.spawned) == 1


async def test_the_second_worker_is_tried_when_the_first_fails(
    queen: RunningQueen, worker: WorkerPartner, hive: HivePartner
) -> None:
    stopped = [report(WorkerState.STOPPED, worker=name, url=None) for name in ("a", "b")]
    await queen.beat(*stopped, api_url=hive.url)
    waiting = asyncio.create_task(ask(queen))
    await until(lambda: len(hive.spawned) == 1)
    await queen.tell(report(WorkerState.FAILED, worker="a", url=None, exit_status=1))
    await until(lambda: len(hive.spawned) == 2)
    await queen.tell(report(worker="b", url=worker.url))
    assert (await waiting)[0] == 200
    assert [spawned["worker_id"] for spawned in hive.spawned] == ["a", "b"]


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (b'{"worker_id": ', "HIVE_PROTOCOL_ERROR", ["line 1 column 15", "systemctl restart rbee-hive"]),
        (b"[1, 2]", "HIVE_PROTOCOL_ERROR", ["does not speak the protocol"]),
    ],
)
async def test_a_hive_that_answers_nonsense(
    queen: RunningQueen, hive: HivePartner, answer: bytes, code: str, words: list[str]
) -> None:
    hive.answer = answer
    await queen.beat(report(WorkerState.STOPPED, url=None), api_url=hive.url)
    status, body = await ask(queen)
    assert (status, body["error"]["code"]) == (503, code)
    for word in words:
        assert word in body["error"]["message"]


async def test_a_hive_that_refuses_is_passed_on(queen: RunningQueen, hive: HivePartner) -> None:
    hive.status = 503
    hive.answer = b'{"error": {"code": "INSUFFICIENT_RAM", "message": "8 GB short", "details": {"required": 9}}}'
    await queen.beat(report(WorkerState.STOPPED, url=None), api_url=hive.url)
    status, body = await ask(queen)
    assert (status, body["error"]["code"], body["error"]["details"]["required"]) == (503, "INSUFFICIENT_RAM", 9)


async def test_a_hive_that_is_gone_is_tried_three_times(queen: RunningQueen) -> None:
    await queen.beat(report(WorkerState.STOPPED, url=None), api_url="http://127.0.0.1:9")
    began = time.monotonic()
    status, body = await ask(queen)
    assert (status, body["error"]["code"]) == (503, "HIVE_UNREACHABLE")
    assert body["error"]["details"]["tries"] == 3
    assert 0.6 <= time.monotonic() - began < 2.0
    assert "127.0.0.1" not in body["error"]["message"]


async def test_a_hive_of_another_version(queen: RunningQueen, hive: HivePartner) -> None:
    await queen.beat(report(WorkerState.STOPPED, url=None), api_url=hive.url, version="9.0.0")
    status, body = await ask(queen)
    assert (status, body["error"]["code"]) == (503, "VERSION_MISMATCH")
    assert body["error"]["details"]["hive_version"] == "9.0.0"
    assert "9.0.0" in body["error"]["message"]
    assert hive.spawned == []


async def test_the_deadline_of_a_request_ends_its_wait(queen: RunningQueen) -> None:
    await queen.tell(report(WorkerState.LOADING, url=None))
    deadline = str(int((time.time() + 0.3) * 1000))
    began = time.monotonic()
    status, body = await ask(queen, **{"X-Request-Deadline": deadline})
    assert (status, body["error"]["code"]) == (408, "REQUEST_TIMEOUT")
    assert body["error"]["details"]["deadline"] == deadline
    assert 0.2 < time.monotonic() - began < 1.0
    assert queen.core.admission.waiting == 0


async def test_who_does_not_want_to_wait_is_told_how_far_it_is(queen: RunningQueen) -> None:
    await queen.tell(report(WorkerState.LOADING, url=None, progress=Progress("weights", 50, 200, "bytes")))
    status, body = await ask(queen, Prefer="respond-async")
    assert (status, body["error"]["code"]) == (503, "MODEL_LOADING")
    loading = body["error"]["details"]["loading"]
    assert (loading["state"], loading["node"], loading["progress"]) == ("loading", "bee", 0.25)


async def test_waiting_is_bounded_in_number(configured: Configured) -> None:
    async with configured(requests={"max_waiting_per_model": 2}) as queen:
        await queen.tell(report(WorkerState.LOADING, url=None))
        waiting = [asyncio.create_task(ask(queen)) for _ in range(2)]
        await until(lambda: queen.core.admission.waiting == 2)
        async with queen.client.post(queen.url + CHAT, json={"model": MODEL}) as response:
            assert response.status == 429
            assert response.headers["Retry-After"] == "5"
            assert (await response.json())["error"]["code"] == "TOO_MANY_REQUESTS"
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await until(lambda: queen.core.admission.waiting == 0)  # clients that left do not wait


async def test_waiting_is_bounded_in_time(configured: Configured, worker: WorkerPartner) -> None:
    worker.hold = asyncio.Event()
    async with configured(requests={"admission_timeout_s": 0.2, "cold_wait_s": 0.5}) as queen:
        await queen.tell(report(url=worker.url, slots_total=1))
        first = asyncio.create_task(ask(queen))
        await until(lambda: worker.running == 1)
        status, body = await ask(queen)
        assert (status, body["error"]["code"]) == (503, "ALL_SLOTS_BUSY")
        assert body["error"]["details"]["slots_total"] == body["error"]["details"]["slots_busy"] == 1
        worker.hold.set()
        assert (await first)[0] == 200
        await queen.tell(report(WorkerState.LOADING, url=None))
        began = time.monotonic()
        status, body = await ask(queen)
        assert (status, body["error"]["code"]) == (503, "MODEL_LOADING")
        assert 0.4 < time.monotonic() - began < 1.0


async def test_a_client_that_leaves_in_the_queue_takes_no_slot(serving: RunningQueen, worker: WorkerPartner) -> None:
    worker.hold = asyncio.Event()
    await serving.tell(report(url=worker.url, slots_total=1))
    first = asyncio.create_task(ask(serving))
    await until(lambda: worker.running == 1)
    leaver = asyncio.create_task(ask(serving))
    await until(lambda: serving.core.admission.waiting == 1)
    leaver.cancel()
    await until(lambda: serving.core.admission.waiting == 0)
    worker.hold.set()
    assert (await first)[0] == 200
    await until(lambda: serving.core.admission.in_flight == 0)
    assert len(worker.bodies) == 1


async def test_an_operators_hold_keeps_work_away(serving: RunningQueen, worker: WorkerPartner) -> None:
    url = f"{serving.url}/v2/workers/bee/w"
    async with serving.client.patch(url, json={"state": "busy"}) as response:
        assert (await response.json())["state"] == "busy"
    waiting = asyncio.create_task(ask(serving))
    await until(lambda: serving.core.admission.waiting == 1)
    async with serving.client.patch(url, json={"state": "idle"}) as response:
        assert response.status == 200
    assert (await waiting)[0] == 200


async def test_a_silent_hive_of_a_loading_worker_brings_the_fallback(
    queen: RunningQueen, worker: WorkerPartner
) -> None:
    await queen.beat(report(WorkerState.LOADING, url=worker.url), interval_s=0.1)
    status, _ = await asyncio.wait_for(ask(queen), 5.0)
    assert status == 200
    assert worker.polls == await queen.metric("queen_rbee_readiness_fallback_polls_total") == 1


async def test_what_the_hive_says_while_its_worker_is_asked_stands(queen: RunningQueen, worker: WorkerPartner) -> None:
    worker.ready_hold = asyncio.Event()
    await queen.beat(report(WorkerState.LOADING, url=worker.url), interval_s=0.1)
    waiting = asyncio.create_task(ask(queen))
    await until(lambda: worker.polls == 1)
    await queen.beat(report(WorkerState.FAILED, url=None, reason="broken", exit_status=1), interval_s=5.0)
    worker.ready_hold.set()
    assert (await waiting)[0] == 503
    await asyncio.sleep(0.05)
    assert queen.state() is WorkerState.FAILED


async def test_a_model_whose_only_worker_turns_out_to_be_another_is_unknown_at_once(queen: RunningQueen) -> None:
    await queen.tell(report(WorkerState.LOADING, url=None))
    waiting = asyncio.create_task(ask(queen))
    await until(lambda: queen.core.admission.waiting == 1)
    await queen.tell(report(WorkerState.LOADING, url=None, model="other"))
    status, body = await asyncio.wait_for(waiting, 2.0)
    assert (status, body["error"]["code"]) == (404, "MODEL_NOT_FOUND")


async def test_a_ready_worker_without_an_address_is_passed_over(queen: RunningQueen, worker: WorkerPartner) -> None:
    await queen.tell(report(worker="a", url=None), ready=False)
    await queen.tell(report(worker="b", url=worker.url))
    async with asyncio.timeout(5.0):
        assert [(await ask(queen))[0] for _ in range(3)] == [200] * 3


async def test_a_hive_that_speaks_brings_no_fallback(queen: RunningQueen, worker: WorkerPartner) -> None:
    waiting = None
    for _ in range(30):
        await queen.beat(report(WorkerState.LOADING, url=worker.url), interval_s=1.0)
        waiting = waiting or asyncio.create_task(ask(queen))
        await asyncio.sleep(0.1)
    assert waiting is not None
    assert not waiting.done()
    assert worker.polls == 0
    await queen.tell(report(url=worker.url))
    assert (await waiting)[0] == 200


async def test_a_new_life_of_the_queen_waits_for_the_hives_that_she_knew(
    configured: Configured, worker: WorkerPartner
) -> None:
    async with configured() as before:
        await before.beat(report(url=worker.url))
        await before.core.store.aliases()  # the note before it is written by now
    async with configured() as after:
        async with after.client.get(after.url + "/v2/health/ready") as response:
            assert response.status == 503
        known = asyncio.create_task(ask(after))
        unknown = asyncio.create_task(ask(after, "nothing"))
        await until(lambda: after.core.admission.waiting == 2)
        await after.beat(report(url=worker.url))
        assert (await known)[0] == 200
        assert (await unknown)[0] == 404
        async with after.client.get(after.url + "/v2/health/ready") as response:
            assert response.status == 200


async def test_two_requests_for_the_last_slot(queen: RunningQueen, worker: WorkerPartner) -> None:
    """The queen gives one of them the slot and lets the other wait for it."""
    worker.hold = asyncio.Event()
    await queen.tell(report(url=worker.url, slots_total=4))
    first = [asyncio.create_task(ask(queen)) for _ in range(3)]
    await until(lambda: worker.running == 3)
    two = [asyncio.create_task(ask(queen)) for _ in range(2)]
    await until(lambda: worker.running == 4 and queen.core.admission.waiting == 1)
    worker.hold.set()
    assert {status for status, _ in await asyncio.gather(*first, *two)} == {200}


async def test_a_worker_that_comes_back_on_another_port(serving: RunningQueen, worker: WorkerPartner) -> None:
    other = WorkerPartner(tokens=["moved"])
    async with served(other.app()) as url:
        await serving.tell(report(url=url, invocation_id="next"))
        status, body = await ask(serving)
    assert (status, body["answer"]) == (200, "moved")
    assert worker.bodies == []


async def test_errors_of_the_client_itself(queen: RunningQueen) -> None:
    async with aiohttp.ClientSession() as nobody, nobody.post(queen.url + CHAT, json={"model": MODEL}) as response:
        assert response.status == 401
    for body, field in (({}, "model"), ({"model": 3}, "model"), ({"model": "a b"}, "model")):
        async with queen.client.post(queen.url + CHAT, json=body) as response:
            assert response.status == 400
            assert (await response.json())["error"]["details"]["field"] in (field, "body")
    status, answer = await ask(queen, **{"X-Request-Deadline": "tomorrow"})
    assert (status, answer["error"]["code"]) == (400, "INVALID_REQUEST")
