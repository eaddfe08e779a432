"""Models that are copied between nodes of a fleet, where each side shows a certificate of the queen's authority."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestServer
from prometheus_client import CollectorRegistry
from tests.behaviour.support.model_source import ModelSource
from tests.unit.hive.models.conftest import Bench
from tests.unit.hive.models.test_store import FILES, orders_of
from tests.unit.queen.test_fleet import authority, client, node

from rbee.hive.models.download import Download
from rbee.hive.models.routes import ModelRoutes
from rbee.wire.auth import TokenVerifier
from rbee.wire.errors import DownloadFailed
from rbee.wire.http.metrics import HttpMetrics
from rbee.wire.http.server import build_app
from rbee.wire.model_messages import CopySource, ModelRow
from rbee.wire.model_reference import parse
from rbee.wire.peer import PeerAdmins
from rbee.wire.tls import client_context, load_identity, server_context
from rbee.wire.tls_files import Identity

Maker = Callable[..., Any]


async def copied(bench_of: Maker, source: ModelSource, folder: Path, there: Identity, here: Identity) -> ModelRow:
    """Fetch a model to one node from the source, and from there to another one."""
    other: Bench = await bench_of(folder / "other")
    row = await other.pull(source.folder("tiny", FILES))
    app = build_app(
        verifier=TokenVerifier({}),
        admins=PeerAdmins(frozenset()),
        metrics=HttpMetrics(CollectorRegistry(), "other"),
    )
    ModelRoutes(other.store, orders_of(other)).add_to(app)
    tls = client_context()
    load_identity(tls, here)
    bench: Bench = await bench_of(folder / "one", tls)
    server = TestServer(app, scheme="https")
    await server.start_server(ssl=server_context(there))
    async with server:
        url = f"https://127.0.0.1:{server.port}"
        async with client(there) as asking, asking.post(f"{url}/v1/models/{row.id}/ticket") as response:
            ticket = str((await response.json())["ticket"])
        found = await bench.store.obtain(parse(row.reference), CopySource(url, row.id, ticket))
        assert isinstance(found, Download)
        return await found.result()


async def test_a_node_copies_a_model_from_another_one_by_mutual_tls(
    bench_of: Maker, source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nodes speak to one another without the proxy
    signer = authority(tmp_path / "ca")
    there, here = (node(signer, tmp_path / name, name) for name in ("there", "here"))
    row = await copied(bench_of, source, tmp_path, there, here)
    assert (row.reference, row.size_bytes) == (f"{source.url}/tiny/", 3000)
    assert [len(source.requests(name)) for name in FILES] == [1, 1]


async def test_a_node_of_another_authority_is_no_source(bench_of: Maker, source: ModelSource, tmp_path: Path) -> None:
    there = node(authority(tmp_path / "ca"), tmp_path / "there", "there")
    here = node(authority(tmp_path / "strange"), tmp_path / "here", "here")
    with pytest.raises(DownloadFailed, match="Certificate"):
        await copied(bench_of, source, tmp_path, there, here)
