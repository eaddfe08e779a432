"""Mutual TLS between machines: who gets in, who does not, and certificates that are renewed under running daemons."""

import asyncio
import contextlib
import datetime
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from aiohttp import web
from tests.unit.queen.conftest import RunningQueen, configuration, running
from tests.unit.queen.partners import report, until
from tests.unit.queen.test_nodes import ELSEWHERE, PREFIX, PUBLIC, details, post

from rbee.hive import renewal
from rbee.host.identity import key_pem, new_key, request_for
from rbee.host.sockets import bind_tcp, encrypted_for_others
from rbee.queen.nodes.authority import QUEEN, Authority
from rbee.wire.auth import Secret
from rbee.wire.errors import ConfigError, InvalidRequest
from rbee.wire.http.client import client_session
from rbee.wire.http.server import Server, json_response
from rbee.wire.log import fields_of
from rbee.wire.messages import WorkerState
from rbee.wire.tls import client_context, load_identity, peer_name, server_context
from rbee.wire.tls_files import Identity

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)
HERE = "127.0.0.1"


def authority(folder: Path) -> Authority:
    made = Authority(folder)
    made.open(NOW)
    return made


def node(
    signer: Authority, folder: Path, name: str = "far", *, life: datetime.timedelta = DAY, now: datetime.datetime = NOW
) -> Identity:
    """The files of a node that shows itself at 127.0.0.1."""
    folder.mkdir(exist_ok=True)
    key = new_key()
    identity = Identity(folder / "authority.pem", folder / "node.pem", folder / "node.key")
    identity.authority.write_text(signer.certificate)
    identity.key.write_text(key_pem(key))
    identity.certificate.write_text(signer.certify(request_for(key, name), name, [HERE], life, now).pem)
    return identity


def client(identity: Identity) -> aiohttp.ClientSession:
    context = client_context()
    load_identity(context, identity)
    return client_session(tls=context)


@contextlib.asynccontextmanager
async def serving(identity: Identity) -> AsyncIterator[str]:
    """A server by mutual TLS that answers the name of whoever asks."""

    async def who(request: web.Request) -> web.StreamResponse:
        return json_response({"name": peer_name(request)})

    app = web.Application()
    app.router.add_get("/", who)
    bound = bind_tcp(HERE, 0)
    context = server_context(identity)
    server = Server(app, [bound], 1.0, tls=lambda _: context)
    await server.start()
    try:
        yield f"https://{HERE}:{bound.getsockname()[1]}"
    finally:
        await server.close()


async def ask(identity: Identity, url: str) -> str:
    async with client(identity) as session, session.get(url) as response:
        return str((await response.json())["name"])


async def test_both_sides_know_one_another_by_the_authority(tmp_path: Path) -> None:
    signer = authority(tmp_path / "ca")
    async with serving(node(signer, tmp_path / "a")) as url:
        assert await ask(node(signer, tmp_path / "b", "other"), url) == "other"
    assert (tmp_path / "ca/authority.key").stat().st_mode & 0o777 == 0o600
    assert authority(tmp_path / "ca").certificate == signer.certificate


async def test_a_certificate_that_does_not_count_is_refused_and_a_person_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    signer = authority(tmp_path / "ca")
    expired = node(signer, tmp_path / "expired", now=NOW - 2 * DAY)
    future = node(signer, tmp_path / "future", now=NOW + 2 * DAY)
    strange = node(authority(tmp_path / "other"), tmp_path / "strange")
    strange.authority.write_text(signer.certificate)  # it trusts us; we do not trust it
    async with serving(node(signer, tmp_path / "a")) as url:
        for identity in (expired, future, strange):
            with pytest.raises(aiohttp.ClientError):
                await ask(identity, url)
        nameless = client_context()
        nameless.load_verify_locations(strange.authority)
        async with client_session(tls=nameless) as session:
            with pytest.raises(aiohttp.ClientError):
                async with session.get(url):
                    pass
        assert await ask(node(signer, tmp_path / "b"), url) == "far"
    alerts = [fields_of(record)["why"] for record in caplog.records if record.levelname == "ALERT"]
    reasons = list(dict.fromkeys(alerts))  # the client tries a connection that broke once more
    assert reasons[:2] == ["certificate has expired", "certificate is not yet valid"]
    assert len(reasons) == 3


async def test_a_server_at_another_address_than_its_certificates_is_refused(tmp_path: Path) -> None:
    signer = authority(tmp_path / "ca")
    lost = node(signer, tmp_path / "a")
    request = request_for(new_key(), "far")
    with pytest.raises(ConfigError, match="cannot be used"):
        lost.certificate.write_text(signer.certify(request, "far", [HERE], DAY, NOW).pem)  # of another key
        server_context(lost)
    key = new_key()
    lost.key.write_text(key_pem(key))
    lost.certificate.write_text(signer.certify(request_for(key, "far"), "far", [ELSEWHERE], DAY, NOW).pem)
    async with serving(lost) as url:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await ask(node(signer, tmp_path / "b"), url)


async def test_a_renewed_certificate_is_shown_from_the_next_connection_on(tmp_path: Path) -> None:
    signer = authority(tmp_path / "ca")
    identity = node(signer, tmp_path / "a", "before")
    asking = node(signer, tmp_path / "b")

    async def shown() -> str:
        context = client_context()
        load_identity(context, asking)
        _, writer = await asyncio.open_connection(HERE, int(url.rpartition(":")[2]), ssl=context)
        subject = writer.get_extra_info("peercert")["subject"]
        writer.transport.abort()
        return str(subject[0][0][1])

    async with serving(identity) as url:
        assert await shown() == "before"
        fresh = node(signer, tmp_path / "c", "after")
        fresh.key.replace(identity.key)
        assert await shown() == "before"  # key and certificate do not fit one another: the old ones go on
        fresh.certificate.replace(identity.certificate)
        assert await shown() == "after"


def test_a_certificate_says_what_the_registry_says(tmp_path: Path) -> None:
    signer = authority(tmp_path / "ca")
    request = request_for(new_key(), QUEEN)  # what the request asks for is not what it gets
    made = signer.certify(request, "far", [ELSEWHERE], DAY, NOW).pem
    assert signer.is_good(made, "far", [ELSEWHERE], NOW)
    assert not signer.is_good(made, QUEEN, [ELSEWHERE], NOW)
    assert not signer.is_good(made, "far", [HERE], NOW)
    assert not signer.is_good(made, "far", [ELSEWHERE], NOW + DAY * 0.7)  # due for renewal
    assert not authority(tmp_path / "other").is_good(made, "far", [ELSEWHERE], NOW)
    assert not signer.is_good("nonsense", "far", [ELSEWHERE], NOW)
    for bad in ("", "nonsense", request[:200], request * 30):
        with pytest.raises(InvalidRequest, match="signing request"):
            signer.certify(bad, "far", [ELSEWHERE], DAY, NOW)


def test_loopback_stays_plain_and_needs_no_files() -> None:
    def never() -> ssl.SSLContext:
        raise AssertionError("no certificate is read for loopback")

    with bind_tcp(HERE, 0) as bound:
        assert encrypted_for_others([bound], never)(bound) is None


@contextlib.asynccontextmanager
async def fleet_queen(folder: Path, **fleet: object) -> AsyncIterator[tuple[RunningQueen, str]]:
    """A queen with a listener for nodes at 127.0.0.1, which her public_url does not name."""
    config = configuration(folder, public_url=PUBLIC, fleet={"host": HERE, "port": 0} | fleet)
    async with running(config) as queen:
        url = queen.core.fleet.url
        assert url is not None
        assert url.startswith("https://203.0.113.5:")
        yield queen, url.replace("203.0.113.5", HERE)


async def enrol(queen: RunningQueen, folder: Path) -> tuple[Identity, str]:
    """A node enrolled as `rbee node install` does it; its files and its token."""
    await post(queen, f"{PREFIX}/add", details(tls="mutual"))
    _, answer = await post(queen, f"{PREFIX}/enrol", {"name": "far"})
    assert answer["certify"] is True
    key = new_key()
    _, certified = await post(queen, f"{PREFIX}/certify", {"name": "far", "request": request_for(key, "far")})
    folder.mkdir()  # noqa: ASYNC240 - the queen beside it can wait
    identity = Identity(folder / "authority.pem", folder / "node.pem", folder / "node.key")
    identity.authority.write_text(answer["authority"])
    identity.certificate.write_text(certified["certificate"])
    identity.key.write_text(key_pem(key))
    return identity, answer["tokens"]["hive_callback_token"]


async def test_a_node_reports_by_its_certificate_and_by_nothing_less(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with fleet_queen(tmp_path) as (queen, url):
        identity, token = await enrol(queen, tmp_path / "node")
        context = client_context()
        load_identity(context, identity)
        body = msgspec.json.encode(report(WorkerState.LOADING, hive="far", url=f"https://{ELSEWHERE}:8081"))
        async with client_session(token=Secret(token), tls=context) as far:
            async with far.post(f"{url}/v2/workers/state", data=body) as response:
                assert response.status == 200, await response.text()
            # the same token in clear, and the same certificate for another hive
            async with far.post(f"{queen.url}/v2/workers/state", data=body) as response:
                assert response.status == 403
            async with far.get(f"{url}/v2/hives/bee/session") as response:
                assert response.status == 403
            plain = msgspec.json.encode(report(hive="far", worker="x", url=f"http://{ELSEWHERE}:8081"))
            async with far.post(f"{url}/v2/workers/ready", data=plain) as response:
                assert response.status == 400  # the queen's token for it would go there in clear
        queen.core.nodes.forget_heard("far")  # it reported from 127.0.0.1, which is not the node's
        again = {"name": "far", "certificate": identity.certificate.read_text()}
        assert (await post(queen, f"{PREFIX}/enrol", again))[1]["certify"] is False
    assert len([record for record in caplog.records if record.levelname == "ALERT"]) == 3


async def test_certificates_are_renewed_before_they_end(tmp_path: Path) -> None:
    async with fleet_queen(tmp_path, certificate_days=4 / 86_400) as (queen, url):
        identity, token = await enrol(queen, tmp_path / "node")
        before = identity.certificate.read_text()
        own = queen.core.fleet._authority.identity.certificate
        hers = own.read_text()
        context = client_context()
        load_identity(context, identity)
        async with client_session(token=Secret(token), tls=context) as session:
            ends: list[float] = []
            work = renewal.keep_certificate(identity, "far", url, session, context, ends.append)
            renewing = asyncio.create_task(work)
            await until(lambda: identity.certificate.read_text() != before and own.read_text() != hers, 15.0)
            await until(lambda: len(set(ends)) >= 2, 15.0)
            assert ends == sorted(ends)
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        async with client(identity) as fresh, fresh.get(f"{url}/health") as response:
            assert response.status == 200
