"""Fetching and looking after models by the command: what is shown, what is sent, and each way that it can end."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.keeper.command import Person
from tests.unit.keeper.peer import STREAM_END, STREAM_HEAD, Asked, Peer, Send, answer, error, event

REFERENCE = "hf:org/tiny"
ROW = {
    "id": "org--tiny-74c07321", "provider": "hf", "reference": REFERENCE, "local_path": "/m/t", "size_bytes": 2048,
    "digest": "", "downloaded_at_unix": 1.0, "last_used_unix": 1.0, "pinned": True, "owned": True, "in_use": True,
}  # fmt: skip


def step(stage: str, done: int = 0, total: int = 0, **more: object) -> dict[str, object]:
    return {
        "model": ROW["id"], "reference": REFERENCE, "stage": stage, "bytes_downloaded": done, "bytes_total": total,
        "speed_mbps": 80.0, "limit_mbps": 100.0, **more,
    }  # fmt: skip


def streaming(*events: bytes) -> Callable[[Asked, Send], None]:
    def script(asked: Asked, send: Send) -> None:
        send(STREAM_HEAD + b"".join(events))

    return script


END = event(None, "[DONE]") + STREAM_END


def pull(person: Person, peer: Peer, *more: str) -> Any:  # noqa: ANN401
    return person.rbee("--hive-url", peer.url, "--queen-url", peer.url, "model", "pull", REFERENCE, *more)


def test_a_pull_shows_its_way_and_prints_where_the_model_is(person: Person) -> None:
    note = "the connection broke; try 2 of 6 in 0.1 s"
    events = [
        event("progress", step("queued")),
        event("progress", step("downloading", 1 << 20, 4 << 20)),
        event("progress", step("downloading", 1 << 20, 4 << 20, note=note)),
        event("complete", step("complete", 4 << 20, 4 << 20, note=note, local_path="/m/tiny", duration_s=12.0)),
    ]
    with Peer(streaming(*events, END)) as hive:
        done = pull(person, hive)
    assert (done.returncode, done.stdout) == (0, "/m/tiny\n")
    assert "downloading 1.0 MiB of 4.0 MiB, 80.0 Mbit/s (limit 100)" in done.stderr
    assert done.stderr.count(f"interrupted: {note}") == 1
    assert "4.0 MiB, verified, 12 s" in done.stderr
    (asked,) = hive.asked
    assert (asked.method, asked.path, asked.json["reference"]) == ("POST", "/v1/models/download", REFERENCE)
    assert asked.headers["accept"] == "text/event-stream"


def test_a_pull_to_a_node_goes_through_the_queen(person: Person) -> None:
    events = event("complete", step("complete", local_path="/m/tiny", duration_s=0.0))
    with Peer(streaming(events, END)) as queen:
        done = pull(person, queen, "--node", "n1", "--from", "n2", "--json")
    assert json.loads(done.stdout)["local_path"] == "/m/tiny"
    (asked,) = queen.asked
    assert (asked.path, asked.json) == (
        "/v2/hives/n1/models/download", {"reference": REFERENCE, "from_hive": "n2", "copy": False},
    )  # fmt: skip


def test_a_copy_without_a_node_that_gets_it_is_a_wrong_usage(person: Person) -> None:
    with Peer(streaming(END)) as hive:
        assert pull(person, hive, "--from", "n2").returncode == 2
        assert pull(person, hive, "--copy").returncode == 2
    assert hive.asked == []


@pytest.mark.parametrize("code", ["DOWNLOAD_FAILED", "DOWNLOAD_TIMEOUT", "INSUFFICIENT_DISK", "MODEL_ACCESS_DENIED"])
def test_an_error_of_the_download_ends_it_with_1(person: Person, code: str) -> None:
    failed = event("error", {"error": {"code": code, "message": "it did not come", "details": {"tries": 6}}})
    with Peer(streaming(failed, END)) as hive:
        done = pull(person, hive, "--json")
    assert (done.returncode, done.stdout) == (1, "")
    said = json.loads(done.stderr[done.stderr.index("{") :])["error"]
    assert (said["code"], said["message"], said["details"]["tries"]) == (code, "it did not come", 6)


@pytest.mark.parametrize("events", [b"", event("progress", step("downloading", 1, 2))])
def test_a_stream_that_ends_early_says_that_it_can_be_gone_on_with(person: Person, events: bytes) -> None:
    with Peer(streaming(events, STREAM_END)) as hive:
        done = pull(person, hive)
    assert done.returncode == 1
    assert "goes on from what came" in done.stderr


def test_ctrl_c_leaves_the_download_going_on_and_says_so(person: Person) -> None:
    def script(asked: Asked, send: Send) -> None:
        send(STREAM_HEAD + event("progress", step("downloading", 1, 100)))
        hive.closing.wait(30)

    with Peer(script) as hive:
        running = person.start("--hive-url", hive.url, "model", "pull", REFERENCE)
        assert running.stderr is not None
        assert "downloading" in running.stderr.readline()
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "the download goes on at the hive" in said


@pytest.mark.parametrize("reference", ["garbage", "hf:org", "file:///a/../b", "https://u:p@h/x/"])
def test_a_reference_in_no_accepted_form_is_refused_before_anything_is_sent(person: Person, reference: str) -> None:
    with Peer(streaming(END)) as hive:
        done = person.rbee("--hive-url", hive.url, "model", "pull", reference)
    assert done.returncode == 1
    assert "hf:org/repo" in done.stderr
    assert hive.asked == []


def test_the_catalogue_is_listed_with_what_is_wrong_with_it(person: Person) -> None:
    body = {"models": [ROW], "used_bytes": 2048, "available_bytes": 1 << 30, "budget_bytes": 1 << 31, "problem": "bad"}
    with Peer(lambda asked, send: send(answer(body))) as hive:
        done = person.rbee("--hive-url", hive.url, "catalog", "list", "--provider", "hf")
        as_json = person.rbee("--hive-url", hive.url, "catalog", "list", "--json")
    cells = done.stdout.splitlines()[1].split("\t")
    assert (cells[0], cells[1], cells[2], cells[4], cells[5]) == (
        ROW["id"], "hf", "2.0 KiB", "in use, pinned", REFERENCE,
    )  # fmt: skip
    assert "2.0 KiB used, 1.0 GiB available, budget 2.0 GiB" in done.stderr
    assert "attention: bad" in done.stderr
    assert json.loads(as_json.stdout)["models"][0]["id"] == ROW["id"]
    assert [asked.path for asked in hive.asked] == ["/v1/models?provider=hf", "/v1/models"]


def test_a_model_is_named_by_its_id_or_its_reference(person: Person) -> None:
    removed = {"id": ROW["id"], "deleted": True, "freed_bytes": 2048, "message": "removed"}
    with Peer(lambda asked, send: send(answer(removed))) as hive:
        for name in (str(ROW["id"]), REFERENCE):
            done = person.rbee("--hive-url", hive.url, "model", "rm", name)
            assert (done.returncode, "2.0 KiB freed" in done.stdout) == (0, True)
        assert person.rbee("--hive-url", hive.url, "model", "rm", "a/../b").returncode == 1
    assert [(asked.method, asked.path) for asked in hive.asked] == [("DELETE", f"/v1/models/{ROW['id']}")] * 2


def test_a_model_in_use_is_refused_with_its_workers(person: Person) -> None:
    refused = error("MODEL_IN_USE", "the model is in use by w1", 409, workers=["w1"])
    with Peer(lambda asked, send: send(refused)) as hive:
        done = person.rbee("--hive-url", hive.url, "model", "rm", REFERENCE)
    assert (done.returncode, "in use by w1" in done.stderr) == (1, True)


@pytest.mark.parametrize(("ok", "recorded", "said"), [(True, False, "as fetched"), (True, True, "recorded")])
def test_a_verification_says_what_it_found(person: Person, ok: bool, recorded: bool, said: str) -> None:
    body = {"id": ROW["id"], "ok": ok, "files": 3, "problems": [], "recorded": recorded}
    with Peer(lambda asked, send: send(answer(body))) as hive:
        done = person.rbee("--hive-url", hive.url, "model", "verify", REFERENCE)
    assert (done.returncode, said in done.stdout) == (0, True)


def test_a_file_that_changed_ends_a_verification_with_1_and_what_to_do(person: Person) -> None:
    body = {"id": ROW["id"], "ok": False, "files": 3, "problems": ["a has another SHA-256"], "recorded": False}
    with Peer(lambda asked, send: send(answer(body))) as hive:
        done = person.rbee("--hive-url", hive.url, "model", "verify", REFERENCE)
    assert done.returncode == 1
    assert "another SHA-256" in done.stderr and f"rbee model rm {ROW['id']}" in done.stderr


@pytest.mark.parametrize(("word", "pinned"), [("pin", True), ("unpin", False)])
def test_pin_and_unpin(person: Person, word: str, pinned: bool) -> None:
    with Peer(lambda asked, send: send(answer({**ROW, "pinned": pinned}))) as hive:
        done = person.rbee("--hive-url", hive.url, "model", word, REFERENCE)
    assert done.returncode == 0
    assert [(asked.method, asked.json) for asked in hive.asked] == [("PUT", {"pinned": pinned})]


def test_a_backup_prints_the_command_that_puts_it_back(person: Person, tmp_path: Path) -> None:
    body = {"path": "/b/models.db", "models": 2, "restore": "install /b/models.db /l/models.db"}
    with Peer(lambda asked, send: send(answer(body))) as queen:
        done = person.rbee("--queen-url", queen.url, "catalog", "backup", "--node", "n1")
    assert done.stdout == "/b/models.db\n"
    assert "install /b/models.db /l/models.db" in done.stderr
    assert [asked.path for asked in queen.asked] == ["/v2/hives/n1/catalog/backup"]
