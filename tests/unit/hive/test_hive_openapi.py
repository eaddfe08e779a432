"""The OpenAPI document says what the hive takes and gives: each of its routes, and what its answers look like."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.unit.documents import check_answer, check_reads, check_whole, document, open_paths
from tests.unit.hive.process import Hive

URL = "http://hive"


@pytest.fixture
async def hive(tmp_path: Path) -> AsyncIterator[Hive]:
    hive = Hive(tmp_path)
    await hive.start()
    yield hive
    await hive.stop()


async def test_every_operation_is_whole_and_says_what_opens_it(hive: Hive) -> None:
    found = await document(hive.session, URL)
    check_whole(found)
    assert open_paths(found) == {"/health", "/metrics"}
    files = found["paths"]["/v1/models/{model_id}/files"]["get"]
    assert files["security"] == [{"ticket": []}]
    assert found["paths"]["/v1/models"]["get"]["security"] == [{"bearer": []}]
    assert found["components"]["securitySchemes"].keys() == {"bearer", "ticket"}
    assert found["paths"]["/v1/models/{model_id}/pin"]["put"]["parameters"][0]["schema"]["pattern"].startswith("^[A-Z")


async def test_answers_are_as_the_document_says(hive: Hive) -> None:
    found = await document(hive.session, URL)
    paths = found["paths"]
    async with hive.session.post(
        f"{URL}/v1/workers/spawn", json={"worker_id": "w", "model_ref": f"file://{hive.model}"}
    ) as response:
        assert response.status == 202
        await check_answer(response, found, paths["/v1/workers/spawn"]["post"])
    await hive.until("w", "idle")
    known = {"{worker}": "w", "{model_id}": "tiny", "{path}": "model.onnx"}
    await check_reads(hive.session, URL, found, known)
    for method, path, body in (
        ("post", "/v1/workers/spawn", {"worker_id": "under_score"}),
        ("put", "/v1/models/{model_id}/pin", {"pinned": True}),
        ("post", "/v1/models/{model_id}/verify", None),
        ("post", "/v1/models/{model_id}/ticket", None),
        ("post", "/v1/catalog/backup", None),
        ("post", "/v1/workers/{worker}/restart", None),
        ("delete", "/v1/models/{model_id}", None),
        ("delete", "/v1/workers/{worker}", None),
    ):
        url = URL + path.replace("{worker}", "w").replace("{model_id}", "tiny")
        async with hive.session.request(method, url, json=body) as response:
            await check_answer(response, found, paths[path][method])


async def test_a_ticket_opens_the_files_of_its_model(hive: Hive) -> None:
    found = await document(hive.session, URL)
    row = (await hive.call("GET", "/v1/models"))[1]["models"][0]
    _, given = await hive.call("POST", f"/v1/models/{row['id']}/ticket")
    headers = {"Authorization": f"Bearer {given['ticket']}"}
    base = f"{URL}/v1/models/{row['id']}/files"
    async with hive.session.get(base, headers=headers) as response:
        assert response.status == 200
        listing = await response.json()
        await check_answer(response, found, found["paths"]["/v1/models/{model_id}/files"]["get"])
    one = found["paths"]["/v1/models/{model_id}/files/{path}"]["get"]
    for ranged, status in (({}, 200), ({"Range": "bytes=0-9"}, 206)):
        async with hive.session.get(f"{base}/{listing['files'][0]['path']}", headers=headers | ranged) as response:
            assert response.status == status
            await check_answer(response, found, one)
