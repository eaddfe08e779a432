"""The registry of nodes: who is in it, which token speaks for whom, where a node's workers may be."""

import stat
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from tests.unit.queen.conftest import CALLBACK_TOKEN, Configured, RunningQueen, configuration, running
from tests.unit.queen.partners import HivePartner, report, until

from rbee.queen.nodes.preflight import new_enough
from rbee.queen.nodes.tokens import HIVE_API, WORKER_API, PresentedTokens
from rbee.wire.auth import Secret, digest_of
from rbee.wire.errors import ConfigError, InvalidRequest
from rbee.wire.http.client import client_session
from rbee.wire.messages import WorkerState
from rbee.wire.nodes import checked_addresses

PREFIX = "/v2/registry/beehives"
ELSEWHERE = "198.51.100.7"
PUBLIC = "http://203.0.113.5:8080"
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHzs1hTJ1Lq8iE8tZkq0o6l8l0TqmyvO3pHqz6Zk0mQd"
Answer = tuple[int, dict[str, Any]]


def details(name: str = "far", **more: object) -> dict[str, object]:
    return {"name": name, "host": ELSEWHERE, "host_key": HOST_KEY, "addresses": [ELSEWHERE], "tls": "off", **more}


async def post(queen: RunningQueen, path: str, body: object, client: aiohttp.ClientSession | None = None) -> Answer:
    async with (client or queen.client).post(queen.url + path, data=msgspec.json.encode(body)) as response:
        return response.status, await response.json()


async def enrolled(queen: RunningQueen, name: str = "far") -> dict[str, str]:
    """Add a node and return its tokens."""
    assert (await post(queen, f"{PREFIX}/add", details(name)))[0] == 201
    status, answer = await post(queen, f"{PREFIX}/enrol", {"name": name})
    assert (status, answer["callback_url"]) == (200, PUBLIC), answer
    tokens: dict[str, str] = answer["tokens"]
    return tokens


def digests(tokens: dict[str, str]) -> dict[str, str]:
    return {name: digest_of(value) for name, value in tokens.items()}


async def test_nodes_outlive_the_queen(tmp_path: Path) -> None:
    async with running(configuration(tmp_path, public_url=PUBLIC)) as queen:
        tokens = await enrolled(queen)
        assert (await post(queen, f"{PREFIX}/update", {"name": "far", "port": 2222, "version": "0.1.0"}))[0] == 200
    async with running(configuration(tmp_path, public_url=PUBLIC)) as queen:
        _, listing = await queen.get(f"{PREFIX}/list")
        (node,) = listing["nodes"]
        assert (node["details"]["port"], node["details"]["version"]) == (2222, "0.1.0")
        assert (node["status"], node["enrolled"]) == ("reachable", True)
        have = {"name": "far", "have": digests(tokens)}
        assert (await post(queen, f"{PREFIX}/enrol", have))[1].get("tokens") is None
        assert (await post(queen, f"{PREFIX}/remove", {"name": "far"}))[0] == 200
        assert (await queen.get(f"{PREFIX}/list"))[1] == {"nodes": []}
        assert not (tmp_path / "state/queen/nodes/far").exists()


async def test_a_token_is_kept_as_a_hash_where_it_is_only_verified(configured: Configured, tmp_path: Path) -> None:
    async with configured(public_url=PUBLIC) as queen:
        tokens = await enrolled(queen)
    files = {path: path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()}
    assert not any(tokens["hive_callback_token"].encode() in content for content in files.values())
    for name in (HIVE_API, WORKER_API):
        path = tmp_path / "state/queen/nodes/far" / name
        assert path.read_text() == tokens[name] + "\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "-x"),
        ("host", "a b"),
        ("host", "a;reboot"),
        ("host_key", "ssh-ed25519 $(id)"),
        ("user", "Root!"),
        ("port", 0),
        ("key_file", "relative"),
        ("addresses", []),
        ("addresses", ["far.example"]),
        ("addresses", ["0.0.0.0"]),
        ("password", "x"),
    ],
)
async def test_what_is_no_node_is_refused_by_name(queen: RunningQueen, field: str, value: object) -> None:
    status, answer = await post(queen, f"{PREFIX}/add", details() | {field: value})
    assert (status, answer["error"]["code"]) == (400, "INVALID_REQUEST")
    assert field in answer["error"]["message"]


async def test_a_name_is_one_node(queen: RunningQueen) -> None:
    assert (await post(queen, f"{PREFIX}/add", details()))[0] == 201
    status, answer = await post(queen, f"{PREFIX}/add", details())
    assert (status, answer["error"]["code"]) == (409, "NODE_EXISTS")
    assert "rbee node update far" in answer["error"]["message"]
    for path, body in (("update", {"name": "no"}), ("remove", {"name": "no"}), ("enrol", {"name": "no"})):
        status, answer = await post(queen, f"{PREFIX}/{path}", body)
        assert (status, answer["error"]["code"]) == (404, "NODE_NOT_FOUND"), path


async def test_a_hive_id_that_is_alive_elsewhere_is_not_enrolled(configured: Configured) -> None:
    async with configured(public_url=PUBLIC) as queen:
        await queen.beat(hive="far")  # from 127.0.0.1, which is not the node's
        status, answer = await post(queen, f"{PREFIX}/add", details())
        assert (status, answer["error"]["code"]) == (409, "NODE_EXISTS")
        assert "alive at another address" in answer["error"]["message"]
        assert (await post(queen, f"{PREFIX}/add", details("new")))[0] == 201
        await queen.beat(hive="new")
        assert (await post(queen, f"{PREFIX}/enrol", {"name": "new"}))[0] == 409


async def test_a_loopback_public_url_and_the_queens_own_machine_are_not_enrolled(queen: RunningQueen) -> None:
    await post(queen, f"{PREFIX}/add", details())
    status, answer = await post(queen, f"{PREFIX}/enrol", {"name": "far"})
    assert (status, answer["error"]["details"]["field"]) == (409, "public_url")
    await post(queen, f"{PREFIX}/add", details("here", addresses=["127.0.0.1"]))
    status, answer = await post(queen, f"{PREFIX}/enrol", {"name": "here"})
    assert (status, "own machine" in answer["error"]["message"]) == (409, True)


async def test_a_nodes_token_speaks_for_its_own_hive_only(
    configured: Configured, caplog: pytest.LogCaptureFixture
) -> None:
    async with configured(public_url=PUBLIC) as queen:
        token = (await enrolled(queen))["hive_callback_token"]
        async with client_session(token=Secret(token)) as far:
            own = report(WorkerState.LOADING, hive="far", url=None)
            assert (await post(queen, "/v2/workers/state", own, far))[0] == 200
            status, answer = await post(queen, "/v2/workers/state", report(WorkerState.LOADING, hive="bee"), far)
            assert (status, answer["error"]["details"]["reason"]) == (403, "other_hive")
            async with far.get(f"{queen.url}/v2/hives/bee/session") as response:
                assert response.status == 403
            assert (await post(queen, f"{PREFIX}/remove", {"name": "far"}, far))[0] == 403
        # and once it is enrolled no other token speaks for it
        assert (await post(queen, "/v2/workers/state", own, queen.hive))[0] == 403
        assert (await post(queen, "/v2/workers/state", report(hive="bee"), queen.hive))[0] == 200
        assert await queen.metric('queen_rbee_fleet_refusals_total{reason="speaker"}') == 3
    alerts = [record for record in caplog.records if record.levelname == "ALERT"]
    assert len(alerts) == 3
    assert token not in caplog.text


async def test_a_nodes_workers_are_at_its_enrolled_addresses(
    configured: Configured, caplog: pytest.LogCaptureFixture
) -> None:
    async with configured(public_url=PUBLIC) as queen:
        token = (await enrolled(queen))["hive_callback_token"]
        async with client_session(token=Secret(token)) as far:
            status, _ = await post(queen, "/v2/workers/ready", report(hive="far", url=f"http://{ELSEWHERE}:8081"), far)
            assert status == 200
            for url in ("http://127.0.0.1:8081", "http://203.0.113.9:8081", "http://far.example:8081"):
                status, answer = await post(queen, "/v2/workers/ready", report(hive="far", url=url, worker="x"), far)
                assert (status, answer["error"]["details"]["field"]) == (400, "url")
            told = report(hive="far", worker="x", url="http://127.0.0.1:1", revision=9)
            assert (await post(queen, "/v2/workers/state", told, far))[0] == 200
        assert await queen.metric('queen_rbee_fleet_refusals_total{reason="address"}') == 4
        rows = await queen.rows()
        assert (rows["far/x"]["state"], rows["far/x"].get("url")) == ("unhealthy", None)
        assert rows["far/w"]["url"] == f"http://{ELSEWHERE}:8081"
    assert len([record for record in caplog.records if record.levelname == "ALERT"]) == 4


async def test_a_rotated_token_counts_from_its_first_use(configured: Configured) -> None:
    async with configured(public_url=PUBLIC) as queen:
        old = await enrolled(queen)
        status, answer = await post(queen, f"{PREFIX}/rotate", {"name": "far"})
        new = answer["tokens"]
        assert status == 200
        assert not set(new.values()) & set(old.values())
        enrolments = queen.core.enrolments
        held = enrolments.presented("far", HIVE_API, None)
        assert held is not None
        assert held.reveal() == old[HIVE_API]  # until the node has the new one
        async with client_session(token=Secret(old["hive_callback_token"])) as far:
            assert (await post(queen, "/v2/workers/state", report(hive="far", url=None), far))[0] == 200
        async with client_session(token=Secret(new["hive_callback_token"])) as far:
            queen.hive = far
            assert (await queen.beat(hive="far"))["status"] == 200
        async with client_session(token=Secret(old["hive_callback_token"])) as far:
            assert (await post(queen, "/v2/workers/state", report(hive="far", url=None), far))[0] == 401
        # a worker refuses the former token before the command is done: the new one is tried
        assert enrolments.refused("far", WORKER_API)
        assert not enrolments.refused("far", WORKER_API)
        # the command says that the node has them: from now on the queen presents the new ones, and makes no others
        have = {"name": "far", "have": digests(new)}
        queen.core.nodes.forget_heard("far")
        assert (await post(queen, f"{PREFIX}/enrol", have))[1].get("tokens") is None
        held = enrolments.presented("far", HIVE_API, Secret("shared"))
        assert held is not None
        assert held.reveal() == new[HIVE_API]
        assert enrolments.presented("bee", HIVE_API, None) is None


async def test_the_queen_presents_a_nodes_own_token_and_never_the_shared_one(
    configured: Configured, hive: HivePartner
) -> None:
    async with configured(public_url=PUBLIC) as queen:
        tokens = await enrolled(queen)
        async with client_session(token=Secret(tokens["hive_callback_token"])) as far:
            shared, queen.hive = queen.hive, far
            await queen.beat(hive="far", api_url="http://127.0.0.1:9")
        known = queen.core.registry.hive("far")
        assert known is not None
        assert known.api_url is None  # not one of the node's addresses
        known.api_url = hive.url
        queen.hive = shared
        await queen.beat(hive="bee", api_url=hive.url)
        for name in ("far", "bee"):
            async with queen.client.post(
                f"{queen.url}/v2/workers/spawn", json={"worker_id": "w", "hive_id": name}
            ) as response:
                await response.read()
        await until(lambda: len(hive.tokens) == 2)
        assert hive.tokens[0] == f"Bearer {tokens['hive_api_token']}"
        assert hive.tokens[1] != hive.tokens[0]
        assert CALLBACK_TOKEN not in str(hive.tokens)


def test_presented_tokens_are_refused_where_others_could_read_them(tmp_path: Path) -> None:
    kept = PresentedTokens(tmp_path)
    kept.put("far", HIVE_API, Secret("one"), later=False)
    kept.put("far", HIVE_API, Secret("two"), later=True)
    again = PresentedTokens(tmp_path)
    again.load()
    held, waiting = again.get("far", HIVE_API), again.waiting("far", HIVE_API)
    assert held is not None
    assert waiting is not None
    assert (held.reveal(), waiting.reveal()) == ("one", "two")
    assert again.promote("far", HIVE_API, WORKER_API)
    assert not again.promote("far", HIVE_API)
    (tmp_path / "far" / HIVE_API).chmod(0o644)
    with pytest.raises(ConfigError, match="0600"):
        PresentedTokens(tmp_path).load()


def test_addresses_are_those_of_one_machine() -> None:
    assert checked_addresses(["10.0.0.1", "2001:DB8::1"]) == ["10.0.0.1", "2001:db8::1"]
    for bad in ("10.0.0", "224.0.0.1", "::", "host"):
        with pytest.raises(InvalidRequest):
            checked_addresses([bad])


@pytest.mark.parametrize(
    ("version", "enough"), [("0.1.0", True), ("0.10", True), ("1", True), ("0.0.9", False), ("", False)]
)
def test_versions_are_compared_by_their_numbers(version: str, enough: bool) -> None:
    assert new_enough(version, "0.1.0") is enough
