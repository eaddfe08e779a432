"""Certificates that count no longer: at servers and clients, after a removal and a rotation, and on other nodes."""

import ssl
import time
from pathlib import Path

import aiohttp
import msgspec
import pytest
from tests.unit.queen.conftest import RunningQueen
from tests.unit.queen.partners import MACHINE
from tests.unit.queen.test_fleet import NOW, ask, authority, client, enrol, fleet_queen, node, serving
from tests.unit.queen.test_nodes import PREFIX, post

from rbee import __version__
from rbee.hive.revoked import RevokedList
from rbee.host.identity import key_pem, new_key, request_for
from rbee.queen.nodes.authority import Authority
from rbee.wire.auth import Secret
from rbee.wire.errors import ConfigError
from rbee.wire.http.client import client_session
from rbee.wire.log import fields_of
from rbee.wire.messages import Heartbeat
from rbee.wire.tls import client_context, load_identity, server_context
from rbee.wire.tls_files import Identity


def serial_of(identity: Identity) -> int:
    decoded = ssl._ssl._test_decode_cert(str(identity.certificate))  # type: ignore[attr-defined]
    return int(decoded["serialNumber"], 16)


def revoke(signer: Authority, *revoked: Identity, told: Identity) -> None:
    signer.revoke([serial_of(one) for one in revoked], NOW)
    told.revoked.write_text(signer.revocations.pem)


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [str(fields_of(record).get("why")) for record in caplog.records if record.levelname == "ALERT"]


async def test_a_running_server_refuses_what_was_revoked_and_a_person_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signer = authority(tmp_path / "ca")
    server, gone, here = (node(signer, tmp_path / name, name) for name in ("server", "gone", "here"))
    async with serving(server) as url:
        assert await ask(gone, url) == "gone"
        revoke(signer, told=server)  # an empty list: everybody counts
        assert await ask(gone, url) == "gone"
        revoke(signer, gone, told=server)
        with pytest.raises(aiohttp.ClientError):
            await ask(gone, url)
        assert await ask(here, url) == "here"
        revoke(signer, here, told=server)
        with pytest.raises(aiohttp.ClientError):
            await ask(here, url)
    assert set(refusals(caplog)) == {"certificate revoked"}


async def test_a_client_refuses_a_server_that_was_revoked(tmp_path: Path) -> None:
    signer = authority(tmp_path / "ca")
    server, asking = node(signer, tmp_path / "server"), node(signer, tmp_path / "asking")
    context = client_context()
    load_identity(context, asking)
    async with serving(server) as url:
        for told in ([], [server]):
            # a list after the other in one context, as the queen's own connections have it
            revoke(signer, *told, told=asking)
            load_identity(context, asking)
            async with client_session(tls=context) as session:
                if told:
                    with pytest.raises(aiohttp.ClientConnectorCertificateError, match="revoked"):
                        async with session.get(url):
                            pass
                else:
                    async with session.get(url) as response:
                        assert response.status == 200


def test_the_list_outlives_the_queen_and_is_told_from_a_strange_one(tmp_path: Path) -> None:
    signer = authority(tmp_path / "ca")
    assert 7 not in signer.revocations
    signer.revoke([7], NOW)
    signer.revoke([8], NOW)
    again = authority(tmp_path / "ca")
    assert 7 in again.revocations and 8 in again.revocations
    assert again.revocations.digest == signer.revocations.digest
    (tmp_path / "ca/revoked.pem").write_text(authority(tmp_path / "other").revocations.pem)
    with pytest.raises(ConfigError, match="list of revoked certificates"):
        authority(tmp_path / "ca")


def test_a_damaged_list_is_refused_by_servers(tmp_path: Path) -> None:
    identity = node(authority(tmp_path / "ca"), tmp_path / "a")
    identity.revoked.write_text("nonsense")
    with pytest.raises(ConfigError, match="cannot be used"):
        server_context(identity)


async def beat(queen: RunningQueen, url: str, identity: Identity, token: str, revoked: str | None) -> str | None:
    """A heartbeat of far by its certificate; the list that comes back."""
    body = Heartbeat(
        hive_id="far", boot_id="boot", revision=time.monotonic_ns(), version=__version__, interval_s=5.0,
        sent_unix=time.time(), api_url=None, machine=MACHINE, workers=[], revoked=revoked,
    )  # fmt: skip
    context = client_context()
    load_identity(context, identity)
    async with (
        client_session(token=Secret(token), tls=context) as far,
        far.post(f"{url}/v2/hives/far/heartbeat", data=msgspec.json.encode(body)) as response,
    ):
        assert response.status == 200, await response.text()
        found: str | None = (await response.json())["revoked"]
        return found


async def test_the_certificate_of_a_removed_node_is_refused_with_an_alert(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet_queen(tmp_path) as (queen, url):
        identity, token = await enrol(queen, tmp_path / "node")
        before = await beat(queen, url, identity, token, "")
        assert before is not None
        await post(queen, f"{PREFIX}/remove", {"name": "far"})
        with pytest.raises(aiohttp.ClientError):
            async with client(identity) as session, session.get(f"{url}/health"):
                pass
        assert "certificate revoked" in refusals(caplog)
        queen.core.nodes.forget_heard("far")
        # the same machine once more: its certificate is not taken for good
        again, token = await enrol(queen, tmp_path / "again")
        shown = {"name": "far", "certificate": identity.certificate.read_text()}
        queen.core.nodes.forget_heard("far")
        assert (await post(queen, f"{PREFIX}/enrol", shown))[1]["certify"] is True
        after = await beat(queen, url, again, token, "of an earlier list")
        assert after not in (None, before)


async def test_a_node_that_has_the_list_is_not_sent_it_again(tmp_path: Path) -> None:
    async with fleet_queen(tmp_path) as (queen, url):
        identity, token = await enrol(queen, tmp_path / "node")
        assert await beat(queen, url, identity, token, None) is None
        pem = await beat(queen, url, identity, token, "")
        assert pem is not None
        context = client_context()
        load_identity(context, identity)
        held = RevokedList(identity, context)
        held.read()
        assert held.digest == ""
        await held.put(pem)
        assert await beat(queen, url, identity, token, held.digest) is None
        again = RevokedList(identity, context)
        again.read()
        assert again.digest == held.digest
        assert identity.revoked.stat().st_mode & 0o777 == 0o644


async def test_a_list_that_cannot_be_kept_is_alerted_and_asked_for_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signer = authority(tmp_path / "ca")
    identity = node(signer, tmp_path / "a")
    held = RevokedList(identity, client_context())
    identity.revoked.mkdir()
    await held.put(signer.revocations.pem)
    assert held.digest == ""
    assert any("revoked ones still count" in record.message for record in caplog.records)


async def test_a_rotation_revokes_once_the_node_uses_what_it_was_given(tmp_path: Path) -> None:
    async with fleet_queen(tmp_path) as (queen, url):
        former, token = await enrol(queen, tmp_path / "node")
        await beat(queen, url, former, token, None)
        queen.core.nodes.forget_heard("far")
        _, answer = await post(queen, f"{PREFIX}/rotate", {"name": "far"})
        await beat(queen, url, former, token, None)  # old token and old certificate: both count still
        await beat(queen, url, former, answer["tokens"]["hive_callback_token"], None)
        await beat(queen, url, former, answer["tokens"]["hive_callback_token"], None)  # it was given no other yet
        key = new_key()
        _, made = await post(queen, f"{PREFIX}/certify", {"name": "far", "request": request_for(key, "far")})
        (tmp_path / "fresh").mkdir()
        fresh = Identity(former.authority, tmp_path / "fresh/node.pem", tmp_path / "fresh/node.key")
        fresh.certificate.write_text(made["certificate"])
        fresh.key.write_text(key_pem(key))
        await beat(queen, url, fresh, answer["tokens"]["hive_callback_token"], None)
        with pytest.raises(aiohttp.ClientError):
            async with client(former) as session, session.get(f"{url}/health"):
                pass
        await beat(queen, url, fresh, answer["tokens"]["hive_callback_token"], None)


async def test_a_certificate_that_an_earlier_version_made_is_known_once_it_was_shown(tmp_path: Path) -> None:
    async with fleet_queen(tmp_path) as (queen, url):
        identity, token = await enrol(queen, tmp_path / "node")
        record = queen.core.nodes.get("far")
        await queen.core.nodes._put(msgspec.structs.replace(record, issued=[]))
        await beat(queen, url, identity, token, None)
        assert queen.core.nodes.certificates("far") == [serial_of(identity)]
