"""What hives say to the queen: taken, ordered, refused, and told her instance."""

import asyncio
import time

import aiohttp
import msgspec
import pytest
from tests.unit.queen.conftest import Configured, Fields, RunningQueen
from tests.unit.queen.partners import MACHINE, WorkerPartner, report, until

from rbee import __version__
from rbee.wire.messages import MachineFacts, WorkerState
from rbee.wire.sse import SseDecoder, SseEvent

READY = "/v2/workers/ready"


async def post(queen: RunningQueen, path: str, body: Fields) -> tuple[int, Fields]:
    async with queen.hive.post(queen.url + path, data=msgspec.json.encode(body)) as response:
        return response.status, await response.json()


async def first_event(response: aiohttp.ClientResponse) -> SseEvent:
    decoder = SseDecoder()
    async for chunk in response.content.iter_any():
        for event in decoder.feed(chunk):
            return event
    raise AssertionError("the stream ended without an event")


async def test_a_worker_never_seen_is_stored(queen: RunningQueen) -> None:
    status, answer = await post(queen, READY, report(invocation_id="life", sent_unix=time.time()))
    assert (status, answer) == (200, {"success": True, "message": "stored: a new worker"})
    assert (await queen.rows())["bee/w"]["state"] == "idle"
    assert await queen.metric("queen_rbee_worker_ready_notifications_received_total") == 1
    assert await queen.metric("queen_rbee_callback_delivery_seconds_count") == 1
    assert await queen.metric('queen_rbee_workers{state="idle"}') == 1
    assert await queen.metric('queen_rbee_hives{state="live"}') == 1


@pytest.mark.parametrize("field", ["url", "model_ref", "backend", "worker_id", "hive_id", "boot_id", "state"])
async def test_what_a_ready_worker_must_have(queen: RunningQueen, field: str) -> None:
    body = msgspec.to_builtins(report())
    del body[field]
    status, answer = await post(queen, READY, body)
    assert (status, answer["error"]["code"]) == (400, "INVALID_REQUEST")
    assert field in answer["error"]["message"]
    assert not (await queen.rows())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("worker_id", "a/b"),
        ("hive_id", "-x"),
        ("url", "ftp://x"),
        ("url", "http://user:secret@host"),
        ("backend", "tpu"),
        ("revision", -1),
        ("state", "odd"),
        ("state", "loading"),
    ],
)
async def test_what_a_ready_worker_must_not_have(queen: RunningQueen, field: str, value: object) -> None:
    status, answer = await post(queen, READY, msgspec.to_builtins(report()) | {field: value})
    assert (status, answer["error"]["details"]["field"]) == (400, field)
    assert "secret" not in str(answer)


async def test_older_news_is_answered_and_ignored(queen: RunningQueen) -> None:
    await post(queen, READY, report(revision=5))
    for late in (report(revision=5), report(WorkerState.LOADING, revision=4)):
        status, answer = await post(queen, "/v2/workers/state", late)
        assert (status, answer["success"]) == (200, True)
        assert "revision 5 is known already" in answer["message"]
    assert (await post(queen, READY, report(boot="boot-2", revision=1)))[1]["message"].startswith("stored")
    _, answer = await post(queen, READY, report(boot="boot-1", revision=99))
    assert answer == {"success": True, "message": "ignored: this life of the hive has been superseded"}
    assert await queen.metric("queen_rbee_worker_ready_notifications_received_total") == 3


async def test_three_hives_claim_one_worker_id_at_once(queen: RunningQueen) -> None:
    messages = [report(hive=f"bee-{number}") for number in range(3)]
    answers = await asyncio.gather(*(post(queen, READY, message) for message in messages * 2))
    assert {status for status, _ in answers} == {200}
    assert sorted(await queen.rows()) == ["bee-0/w", "bee-1/w", "bee-2/w"]


async def test_a_heartbeat_is_the_whole_picture(queen: RunningQueen) -> None:
    await queen.tell(report(worker="old"))
    answer = await queen.beat(report(worker="a"), report(WorkerState.STOPPED, worker="b", url=None))
    assert answer["instance_id"] == queen.core.instance_id
    assert (answer["success"], answer["version"]) == (True, __version__)
    rows = await queen.rows()
    assert {name: row["state"] for name, row in rows.items()} == {"bee/a": "idle", "bee/b": "stopped"}
    assert await queen.metric("queen_rbee_heartbeats_total") == 1


async def test_a_heartbeat_speaks_for_its_own_hive_only(queen: RunningQueen) -> None:
    answer = await queen.beat(report(hive="other"))
    assert (answer["status"], answer["error"]["details"]["field"]) == (400, "workers")
    assert not await queen.rows()
    async with queen.hive.post(f"{queen.url}/v2/hives/-/heartbeat", json={}) as response:
        assert response.status == 400


async def test_a_hive_speaks_for_addresses_of_its_own_machine_only(
    queen: RunningQueen, worker: WorkerPartner, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = "http://198.51.100.7:8081"
    status, answer = await post(queen, READY, report(url=elsewhere))
    assert (status, answer["error"]["details"]["field"]) == (400, "url")
    assert "198.51" not in str(answer)
    here = report(worker="here", url=worker.url)
    await queen.beat(report(url=elsewhere), here, api_url="http://169.254.169.254")
    rows = await queen.rows()
    assert (rows["bee/w"]["state"], rows["bee/w"].get("url")) == ("unhealthy", None)
    assert rows["bee/w"]["reason"] == "its address is not one of the machine that reports it"
    assert rows["bee/here"]["state"] == "idle"
    hive = queen.core.registry.hive("bee")
    assert hive is not None
    assert hive.api_url is None
    assert caplog.text.count("addresses that are not of its machine") == 1
    await queen.beat(here, api_url="http://hive.example:9200")  # a name is the operator's
    assert hive.api_url == "http://hive.example:9200"


async def test_hive_routes_want_the_token_of_hives(queen: RunningQueen) -> None:
    body = msgspec.json.encode(report())
    async with queen.client.post(queen.url + READY, data=body) as response:
        assert response.status == 403
    async with queen.hive.get(queen.url + "/v2/workers/list") as response:
        assert response.status == 403
    async with aiohttp.ClientSession() as nobody, nobody.post(queen.url + READY, data=body) as response:
        assert response.status == 401


async def test_a_session_says_hello_and_ends_with_the_queen(configured: Configured) -> None:
    async with configured() as queen:
        response = await queen.hive.get(f"{queen.url}/v2/hives/bee/session")
        hello = await first_event(response)
        assert (hello.event, msgspec.json.decode(hello.data)) == ("hello", {"instance_id": queen.core.instance_id})
        assert queen.core.sessions.is_open("bee")
        began = time.monotonic()
        queen.core.begin_close()
        assert await response.content.read() == b""
        assert time.monotonic() - began < 1.0


async def test_the_queen_sees_the_end_of_a_session(queen: RunningQueen) -> None:
    response = await queen.hive.get(f"{queen.url}/v2/hives/bee/session")
    await first_event(response)
    response.close()
    await until(lambda: not queen.core.sessions.is_open("bee"), 1.0)


async def test_one_hive_id_is_one_living_hive(queen: RunningQueen) -> None:
    async with queen.hive.get(f"{queen.url}/v2/hives/bee/session") as session:
        await first_event(session)
        assert (await queen.beat(report(), boot="first"))["status"] == 200
        refused = await queen.beat(boot="second")
        assert (refused["status"], refused["error"]["code"]) == (409, "CONFLICT")
        status, answer = await post(queen, READY, report(boot="second"))
        assert (status, answer["error"]["code"]) == (409, "CONFLICT")
        async with queen.hive.get(f"{queen.url}/v2/hives/bee/session?boot_id=second") as second:
            assert second.status == 409
        assert (await queen.rows())["bee/w"]["boot_id"] == "first"
    await until(lambda: not queen.core.sessions.is_open("bee"))
    assert (await queen.beat(report(), boot="second"))["status"] == 200


async def test_a_hive_that_restarts_keeps_its_workers_routable(queen: RunningQueen) -> None:
    await queen.beat(report(invocation_id="life"), boot="first")
    await queen.beat(report(invocation_id="life"), boot="second")
    assert queen.state() is WorkerState.IDLE
    assert (await queen.rows())["bee/w"]["boot_id"] == "second"


async def test_a_silent_hives_workers_get_no_new_work_and_are_dropped(configured: Configured) -> None:
    async with configured(heartbeat={"drop_after_s": 2.5}) as queen:
        await queen.beat(report(), interval_s=0.1)
        await until(lambda: queen.state() is WorkerState.STALE)
        _, health = await queen.get("/health")
        assert health["degraded"] == ["hive bee: silent"]
        await until(lambda: not queen.core.registry.workers())
        await queen.beat(report(), interval_s=0.1)
        assert queen.state() is WorkerState.IDLE


async def test_a_picture_that_is_repeated_is_known_and_still_a_sign_of_life(
    queen: RunningQueen, worker: WorkerPartner
) -> None:
    picture = {
        "hive_id": "bee", "boot_id": "boot-1", "revision": 3, "version": __version__, "interval_s": 5.0,
        "sent_unix": time.time(), "api_url": None, "machine": msgspec.to_builtins(MACHINE),
        "workers": [msgspec.to_builtins(report(url=worker.url, revision=3))],
    }  # fmt: skip
    path = "/v2/hives/bee/heartbeat"
    assert (await post(queen, path, picture))[1]["message"] == "stored"
    hive = queen.core.registry.hive("bee")
    assert hive is not None
    heard = hive.heard
    picture["machine"] |= {"ram_available_bytes": 7}
    assert (await post(queen, path, picture | {"sent_unix": time.time()}))[1]["message"] == "known already"
    assert hive.heard > heard
    assert hive.machine is not None
    assert hive.machine.ram_available_bytes == 7
    # what the hive has is back with its next picture, after a removal and after a doubt
    async with queen.client.delete(f"{queen.url}/v2/workers/bee/w") as response:
        assert response.status == 204
    await post(queen, path, picture)
    assert queen.state() is WorkerState.IDLE
    queen.core.admission.doubt(queen.core.registry.find("w", None), "does not answer")
    await post(queen, path, picture)
    assert queen.state() is WorkerState.IDLE
    # a word of another life in between, and the old picture is late mail
    await post(queen, "/v2/workers/state", report(WorkerState.LOADING, boot="boot-2", revision=1, url=None))
    assert "superseded" in (await post(queen, path, picture))[1]["message"]
    assert queen.state() is WorkerState.LOADING


async def test_machines_are_shown_as_their_hives_last_said(queen: RunningQueen) -> None:
    assert await queen.get("/v2/hives") == (200, {"hives": []})
    await queen.beat(report(WorkerState.IDLE), hive="bee")
    await queen.beat(hive="ant")
    status, listing = await queen.get("/v2/hives")
    assert status == 200
    assert [hive["hive_id"] for hive in listing["hives"]] == ["ant", "bee"]
    bee = listing["hives"][1]
    assert (bee["workers"], bee["stale"], bee["session"]) == (1, False, False)
    assert 0 <= bee["silent_s"] < 60
    assert msgspec.convert(bee["machine"], MachineFacts) == MACHINE
