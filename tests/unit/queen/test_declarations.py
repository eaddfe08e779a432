"""Declarations by the API: stored for good, below those of the configuration, and in force at once."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.unit.queen.conftest import Configured, RunningQueen
from tests.unit.queen.partners import until
from tests.unit.queen.test_placement import REFERENCE, hive_with

from rbee.queen.placement import declarations
from rbee.queen.placement.declared import worker_id_of
from rbee.queen.store import Store
from rbee.wire.declarations import DeclaredModel

NAME = "org/cold:7b"
BODY = {"reference": REFERENCE, "slots": 2}


async def put(queen: RunningQueen, name: str = NAME, **body: Any) -> tuple[int, Any]:  # noqa: ANN401
    async with queen.client.put(f"{queen.url}/v2/declarations/{name}", json=body) as response:
        return response.status, await response.json()


async def delete(queen: RunningQueen, name: str = NAME) -> tuple[int, str]:
    async with queen.client.delete(f"{queen.url}/v2/declarations/{name}") as response:
        return response.status, await response.text()


async def listed(queen: RunningQueen) -> list[tuple[str, str]]:
    _, listing = await queen.get("/v2/declarations")
    return [(one["model"], one["declared_by"]) for one in listing["declarations"]]


async def known(queen: RunningQueen) -> set[str]:
    return {row["id"] for row in (await queen.get("/v1/models"))[1]["data"]}


async def test_a_stored_declaration_is_in_force_at_once_and_is_forgotten(queen: RunningQueen) -> None:
    status, stored = await put(queen, **BODY)
    assert (status, stored) == (200, {"model": NAME, "declaration": BODY, "declared_by": "api"})
    assert await listed(queen) == [(NAME, "api")]
    assert await known(queen) == {NAME}
    assert await queen.metric('queen_rbee_declared_models{declared_by="api"}') == 1
    assert await delete(queen) == (204, "")
    assert await delete(queen) == (204, "")
    assert (await listed(queen), await known(queen)) == ([], set())


async def test_who_declared_what_is_in_the_audit_log(configured: Configured, tmp_path: Path) -> None:
    async with configured() as queen:
        await put(queen, **BODY)
        await put(queen, **BODY)  # as it was: nothing changed
        await put(queen, **BODY | {"slots": 3})
        await delete(queen)
        await delete(queen)
    written = map(json.loads, (tmp_path / "state/queen/audit.jsonl").read_text().splitlines())
    declared = [entry for entry in written if entry.get("event_type") == "model.declare"]
    assert [entry["details"]["change"] for entry in declared] == ["added", "changed", "removed"]
    assert {(entry["details"]["model"], entry["details"]["model_ref"]) for entry in declared} == {(NAME, REFERENCE)}
    assert not {entry["actor"] for entry in declared} & {"", "system"}


async def test_workers_that_are_to_be_kept_start_without_a_request(queen: RunningQueen) -> None:
    async with hive_with(100) as hive:
        await queen.beat(api_url=hive.url)
        queen.core._settles_at = 0.0
        await put(queen, **BODY, replicas={"min": 1})
        await until(lambda: hive.spawned)
        declared = msgspec.convert(BODY, DeclaredModel)
        assert hive.spawned[0]["worker_id"] == worker_id_of(NAME, declared)


async def test_a_declaration_outlives_the_queen(configured: Configured) -> None:
    async with configured() as queen:
        await put(queen, **BODY)
    async with configured() as queen:
        assert await listed(queen) == [(NAME, "api")]
        assert await known(queen) == {NAME}


async def test_the_configuration_wins_and_is_not_changed(configured: Configured) -> None:
    async with configured() as queen:
        await put(queen, **BODY)
    async with configured(models={NAME: {"reference": "file:///other"}}) as queen:
        assert await listed(queen) == [(NAME, "queen.yaml")]
        (shown,) = queen.core.declarations.all()
        assert shown.declaration.reference == "file:///other"
        status, body = await put(queen, **BODY)
        assert (status, body["error"]["code"]) == (409, "CONFLICT")
        assert "queen.yaml" in body["error"]["message"]
        assert (await delete(queen))[0] == 204  # the stored one below it
        assert (await delete(queen))[0] == 409
        queen.core.reconfigure(msgspec.structs.replace(queen.core.config, models={}))
        assert await listed(queen) == []


@pytest.mark.parametrize(
    ("name", "body", "told"),
    [
        ("a b", BODY, "model"),
        (NAME, {"reference": "ftp://x/y"}, "model_ref"),
        (NAME, BODY | {"colour": "red"}, "colour"),
        (NAME, BODY | {"replicas": {"min": 3, "max": 2}}, "max"),
        (NAME, {}, "reference"),
    ],
)
async def test_what_is_not_acceptable_is_refused_by_name(
    queen: RunningQueen, name: str, body: dict[str, Any], told: str
) -> None:
    status, answer = await put(queen, name, **body)
    assert status == 400
    assert told in answer["error"]["message"] + str(answer["error"]["details"])
    assert await listed(queen) == []


async def test_declarations_are_bounded(queen: RunningQueen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(declarations, "MOST", 2)
    assert [(await put(queen, name, **BODY))[0] for name in ("a", "b", "c", "a")] == [200, 200, 429, 200]


async def test_one_that_does_not_decode_is_left_out(configured: Configured, tmp_path: Path) -> None:
    async with configured() as queen:
        await put(queen, **BODY)
        await queen.core.store.put_declaration("broken", b"{")
    async with configured() as queen:
        assert await listed(queen) == [(NAME, "api")]


async def test_without_her_disk_the_queen_refuses_and_takes_up_what_was_stored_once_it_is_back(
    configured: Configured, tmp_path: Path
) -> None:
    async with configured() as queen:
        await put(queen, **BODY)
    folder = tmp_path / "state"
    folder.rename(tmp_path / "away")
    folder.write_text("in the way")
    async with configured() as queen:
        status, body = await put(queen, "another", **BODY)
        assert (status, body["error"]["code"]) == (503, "STORAGE_UNAVAILABLE")
        assert await listed(queen) == []
        folder.unlink()
        (tmp_path / "away").rename(folder)
        await until(lambda: queen.core.declarations.loaded, limit_s=30)
        assert await listed(queen) == [(NAME, "api")]


async def test_the_store_keeps_documents(tmp_path: Path) -> None:
    store = Store(tmp_path / "queen.db")
    await store.open()
    await store.put_declaration("a", b"1")
    await store.put_declaration("a", b"2")
    await store.put_declaration("b", b"3")
    await store.remove_declaration("b")
    assert await store.declarations() == {"a": b"2"}
    await store.close()
