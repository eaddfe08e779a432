"""How requests share workers: between clients and priorities, by prompt, within limits, and around what fails."""

import asyncio
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from tests.unit.queen.conftest import Configured, RunningQueen, write_secret
from tests.unit.queen.partners import MODEL, WorkerPartner, report, until

from rbee.queen.routing.breaker import FAILURES
from rbee.queen.routing.decision import Key, Reason
from rbee.wire.messages import Progress, WorkerState

CHAT = "/v1/chat/completions"


async def ask(queen: RunningQueen, content: str = "hi", **headers: str) -> aiohttp.ClientResponse:
    """One request that is not streamed, with its body read."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": content}]}
    async with queen.client.post(queen.url + CHAT, json=body, headers=headers) as response:
        await response.read()
        return response


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def clients(folder: Path, **limits: dict[str, Any]) -> dict[str, Any]:
    """Fields of a configuration in which each client has a token of its own, ``NAME-token``."""
    folder.mkdir(exist_ok=True)
    files = {name: write_secret(folder / f"client-{name}", f"{name}-token") for name in limits}
    tokens = {name: str(folder / name) for name in ("api_token", "hive_callback_token", "worker_api_token")}
    return {"clients": limits, "tokens": tokens | {"clients": files}}


async def test_a_client_with_many_requests_does_not_hold_up_another(
    configured: Configured, worker: WorkerPartner, tmp_path: Path
) -> None:
    worker.hold = asyncio.Event()
    async with configured(**clients(tmp_path, greedy={}, modest={})) as queen:
        await queen.tell(report(url=worker.url, slots_total=1))
        many = [asyncio.create_task(ask(queen, f"greedy {n}", **bearer("greedy-token"))) for n in range(20)]
        await until(lambda: queen.core.admission.waiting == 19)
        one = asyncio.create_task(ask(queen, "modest", **bearer("modest-token")))
        await until(lambda: queen.core.admission.waiting == 20)
        worker.hold.set()
        assert {answer.status for answer in await asyncio.gather(*many, one)} == {200}
    assert next(number for number, body in enumerate(worker.bodies) if b"modest" in body) <= 2


async def test_batch_waits_for_interactive_and_odd_priorities_are_refused(
    serving: RunningQueen, worker: WorkerPartner
) -> None:
    worker.hold = asyncio.Event()
    await serving.tell(report(url=worker.url, slots_total=1))
    first = asyncio.create_task(ask(serving))
    await until(lambda: worker.running == 1)
    batch = [asyncio.create_task(ask(serving, "batch", **{"X-Rbee-Priority": "batch"})) for _ in range(3)]
    await until(lambda: serving.core.admission.waiting == 3)
    waiting = f'queen_rbee_waiting_requests{{model="{MODEL}",priority="batch"}}'
    assert await serving.metric(waiting) == 3
    urgent = [asyncio.create_task(ask(serving, "urgent")) for _ in range(3)]
    await until(lambda: serving.core.admission.waiting == 6)
    worker.hold.set()
    await asyncio.gather(first, *batch, *urgent)
    assert [b"urgent" in body for body in worker.bodies[1:4]] == [True] * 3
    odd = await ask(serving, **{"X-Rbee-Priority": "vip"})
    assert odd.status == 400
    assert (await odd.json())["error"]["details"] == {
        "header": "X-Rbee-Priority",
        "accepted": ["interactive", "batch"],
    }


async def test_a_client_is_held_to_its_limits(configured: Configured, worker: WorkerPartner, tmp_path: Path) -> None:
    limits = {"slow": {"requests_per_minute": 1, "burst": 2}, "narrow": {"concurrent": 1}}
    worker.hold = asyncio.Event()
    async with configured(**clients(tmp_path, **limits)) as queen:
        await queen.tell(report(url=worker.url, slots_total=8))
        running = asyncio.create_task(ask(queen, **bearer("narrow-token")))
        await until(lambda: worker.running == 1)
        refused = await ask(queen, **bearer("narrow-token"))
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert (await refused.json())["error"]["details"]["limit"] == "concurrent"
        worker.hold.set()
        assert (await running).status == 200
        assert (await ask(queen, **bearer("narrow-token"))).status == 200
        assert [(await ask(queen, **bearer("slow-token"))).status for _ in range(2)] == [200, 200]
        refused = await ask(queen, **bearer("slow-token"))
        assert (refused.status, refused.headers["Retry-After"]) == (429, "60")
        assert (await refused.json())["error"]["code"] == "TOO_MANY_REQUESTS"
        assert (await ask(queen)).status == 200  # the token without a name has no limits here
        assert await queen.metric('queen_rbee_shed_requests_total{reason="client_limit"}') == 2


async def test_two_names_for_one_token_are_refused(configured: Configured, tmp_path: Path) -> None:
    fields = clients(tmp_path, alice={}, bob={})
    write_secret(tmp_path / "client-bob", "alice-token")
    with pytest.raises(Exception, match="alice and bob have the same token"):
        async with configured(**fields):
            pass


async def test_a_full_queue_takes_a_modest_client_for_the_greedy_ones_latest(
    configured: Configured, worker: WorkerPartner, tmp_path: Path
) -> None:
    worker.hold = asyncio.Event()
    fields = clients(tmp_path, greedy={}, modest={}) | {"routing": {"models": {MODEL: {"max_waiting": 3}}}}
    async with configured(**fields) as queen:
        await queen.tell(report(url=worker.url, slots_total=1))
        many = [asyncio.create_task(ask(queen, **bearer("greedy-token"))) for _ in range(4)]
        await until(lambda: queen.core.admission.waiting == 3)
        assert (await ask(queen, **bearer("greedy-token"))).status == 429
        one = asyncio.create_task(ask(queen, **bearer("modest-token")))
        await until(lambda: sum(task.done() for task in many) == 1)
        assert queen.core.admission.waiting == 3
        worker.hold.set()
        assert sorted(answer.status for answer in await asyncio.gather(*many)) == [200, 200, 200, 429]
        assert (await one).status == 200


async def test_what_could_not_be_served_in_time_is_refused_at_once(
    configured: Configured, worker: WorkerPartner
) -> None:
    async with configured(requests={"admission_timeout_s": 0.7}) as queen:
        await queen.tell(report(url=worker.url, slots_total=1))
        for _ in range(8):
            queen.core.admission.times.note(MODEL, 0.2)
        worker.hold = asyncio.Event()
        running = asyncio.create_task(ask(queen))
        await until(lambda: worker.running == 1)
        waiting = [asyncio.create_task(ask(queen)) for _ in range(2)]
        await until(lambda: queen.core.admission.waiting == 2)
        refused = await ask(queen)
        assert (refused.status, refused.headers["Retry-After"]) == (429, "1")
        assert (await refused.json())["error"]["details"]["expected_wait_s"] == 0.6
        _, told = await queen.get(f"/v2/explain/{refused.headers['X-Correlation-Id']}")
        assert told["code"] == "TOO_MANY_REQUESTS"
        assert [(step["what"], step["status"]) for step in told["steps"]] == [("denied", 429)]
        assert told["steps"][0]["why"].endswith("waiting 2, expected_wait_s 0.6")
        deadline = str(int((time.time() + 60) * 1000))
        patient = asyncio.create_task(ask(queen, **{"X-Request-Deadline": deadline}))  # has the time
        await until(lambda: queen.core.admission.waiting == 3)
        worker.hold.set()
        assert {answer.status for answer in await asyncio.gather(running, *waiting, patient)} == {200}
        assert await queen.metric('queen_rbee_shed_requests_total{reason="expected_wait"}') == 1


async def test_a_conversation_stays_with_its_worker_until_that_is_overloaded(
    queen: RunningQueen, worker: WorkerPartner, second: WorkerPartner
) -> None:
    await queen.tell(report(url=worker.url, worker="a", slots_total=2, invocation_id="1"))
    await queen.tell(report(url=second.url, worker="b", slots_total=2, invocation_id="1"))
    talks = {name: f"{name} " * 200 for name in ("first", "other", "third")}
    for _ in range(4):
        for content in talks.values():
            assert (await ask(queen, content)).status == 200
    for name in talks:
        holders = [sum(name.encode() in body for body in partner.bodies) for partner in (worker, second)]
        assert sorted(holders) == [0, 4]
    assert await queen.metric('queen_rbee_affinity_total{outcome="hit"}') == 9
    assert await queen.metric('queen_rbee_affinity_total{outcome="miss"}') == 3
    worker.hold = second.hold = asyncio.Event()
    crowd = [asyncio.create_task(ask(queen, talks["first"])) for _ in range(4)]
    await until(lambda: worker.running == second.running == 2)
    assert await queen.metric('queen_rbee_affinity_total{outcome="overloaded"}') >= 1
    worker.hold.set()
    await asyncio.gather(*crowd)


async def test_a_worker_that_was_started_again_is_not_sought_for_its_cache(
    queen: RunningQueen, worker: WorkerPartner, second: WorkerPartner
) -> None:
    await queen.tell(report(url=worker.url, worker="a", invocation_id="1"))
    await queen.tell(report(url=second.url, worker="b", invocation_id="1"))
    await ask(queen, "x" * 900)
    for name, partner in (("a", worker), ("b", second)):
        await queen.tell(report(url=partner.url, worker=name, invocation_id="2"))
    await ask(queen, "x" * 900)
    assert await queen.metric('queen_rbee_affinity_total{outcome="miss"}') == 2


async def test_a_model_may_have_no_affinity(
    configured: Configured, worker: WorkerPartner, second: WorkerPartner
) -> None:
    async with configured(routing={"models": {MODEL: {"affinity": False}}, "weights": {"bee/a": 3}}) as queen:
        await queen.tell(report(url=worker.url, worker="a"))
        await queen.tell(report(url=second.url, worker="b"))
        for _ in range(8):
            await ask(queen, "x" * 900)
    assert (len(worker.bodies), len(second.bodies)) == (6, 2)


async def test_what_was_decided_is_kept_with_the_request(queen: RunningQueen, worker: WorkerPartner) -> None:
    await queen.tell(report(url="http://127.0.0.1:9", worker="a"))
    await queen.tell(report(url=worker.url, worker="b"))
    want = queen.core.admission.want(MODEL, b'{"prompt": ""}', "somebody")
    lease = queen.core.admission.take_now(want)
    assert lease is not None
    placement = lease.placement
    assert (placement.chosen, placement.reason, placement.workers) == (Key("bee", "a"), Reason.LEAST_WORK, 2)
    assert [(seen.key.worker_id, seen.in_flight, seen.slots) for seen in placement.considered] == [
        ("a", 0, 4),
        ("b", 0, 4),
    ]
    assert placement.work > 256
    lease.release()
    assert queen.core.admission.in_flight == 0


async def test_a_worker_whose_http_fails_is_tried_by_one_request_at_a_time(
    queen: RunningQueen, worker: WorkerPartner, second: WorkerPartner
) -> None:
    answer = b'{"error": {"code": "INTERNAL", "message": "broken", "details": {}}}'
    worker.refuse_with = [(500, answer)] * (FAILURES + 1)
    await queen.tell(report(url=worker.url, worker="a"))
    failed = [(await ask(queen)).status for _ in range(FAILURES)]
    assert failed == [500] * FAILURES
    assert queen.state("a") is WorkerState.UNHEALTHY
    assert await queen.metric('queen_rbee_breakers{state="open"}') == 1
    assert await queen.metric("queen_rbee_breaker_opened_total") == 1
    row = queen.core.registry.worker(Key("bee", "a"))
    assert row is not None
    queen.core.registry.sweep(row.breaker.until)  # the time until its trial has passed
    assert (row.state, row.slots) == (WorkerState.IDLE, 1)
    assert (await ask(queen)).status == 500
    assert queen.state("a") is WorkerState.UNHEALTHY
    queen.core.registry.sweep(row.breaker.until)
    assert (await ask(queen)).status == 200
    assert (row.state, row.slots) == (WorkerState.IDLE, 4)
    assert await queen.metric('queen_rbee_breakers{state="closed"}') == 1


async def test_tries_anew_end_with_their_budget(configured: Configured) -> None:
    async with configured(routing={"retry_share": 0, "retry_reserve": 1}) as queen:
        for name in "abcd":
            await queen.tell(report(url="http://127.0.0.1:9", worker=name))
        answers = [await ask(queen) for _ in range(2)]
        assert [answer.status for answer in answers] == [503, 503]
        assert await queen.metric('queen_rbee_retries_total{reason="unreachable"}') == 1
        assert await queen.metric("queen_rbee_retries_refused_total") == 2


async def test_who_waits_for_a_worker_that_loads_behind_a_silent_hive_waits_on(
    configured: Configured, worker: WorkerPartner
) -> None:
    async with configured(requests={"silent_wait_s": 0.3}, heartbeat={"stale_after_intervals": 1}) as queen:
        loading = report(url=worker.url, state=WorkerState.LOADING)
        await queen.beat(loading, interval_s=0.2)
        await until(lambda: queen.state() is WorkerState.STALE)
        asked = asyncio.create_task(ask(queen))
        await until(lambda: bool(queen.core.admission.waiting))
        assert (await asked).status == 200  # the worker was asked itself, and said that it is ready
        assert await queen.metric("queen_rbee_readiness_fallback_polls_total") >= 1


async def test_a_silent_node_is_named_after_a_short_grace(configured: Configured, worker: WorkerPartner) -> None:
    async with configured(requests={"silent_wait_s": 0.3}, heartbeat={"stale_after_intervals": 1}) as queen:
        await queen.beat(report(url=worker.url), interval_s=0.2)
        await until(lambda: queen.state() is WorkerState.STALE)
        deadline = str(int((time.time() + 60) * 1000))
        patient = asyncio.create_task(ask(queen, **{"X-Request-Deadline": deadline}))
        refused = await ask(queen)
        assert (refused.status, "Retry-After" in refused.headers) == (503, True)
        error = (await refused.json())["error"]
        assert error["code"] == "HIVE_UNREACHABLE"
        assert error["details"]["node"] == "bee"
        assert error["details"]["silent_s"] >= 0.2
        assert "systemctl status rbee-hive" in error["message"]
        assert not patient.done()
        await queen.beat(report(url=worker.url), interval_s=5.0)
        assert (await patient).status == 200


async def test_when_a_model_will_be_ready_is_told_from_its_last_loads(queen: RunningQueen) -> None:
    for began in (1000.0, 2000.0, 3000.0):
        await queen.tell(report(WorkerState.LOADING, url=None))
        await queen.tell(report(url="http://127.0.0.1:9", spawned_unix=began, ready_unix=began + 40.0))
    await queen.tell(report(WorkerState.LOADING, url=None, progress=Progress("weights", 1, 4)))
    answer = await ask(queen, Prefer="respond-async")
    assert answer.status == 503
    loading = (await answer.json())["error"]["details"]["loading"]
    assert loading["progress"] == 0.25
    assert 35.0 <= loading["eta_seconds"] <= 40.0
    assert 35 <= int(answer.headers["Retry-After"]) <= 40
