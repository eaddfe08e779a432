"""What `rbee` does when the daemon that it asks is silent, confused, of another version, or refuses."""

import json
import time
from pathlib import Path

import pytest
from tests.unit.keeper.command import Person
from tests.unit.keeper.peer import Asked, Peer, Send, answer, error, raw_answer


def hanging(asked: Asked, send: Send) -> None:
    time.sleep(1.2)


def test_a_silent_hive_is_asked_three_times_within_the_limit(person: Person, folder: Path) -> None:
    with Peer(hanging, folder / "hive.sock") as peer:
        began = time.monotonic()
        done = person.rbee("--timeout", 0.3, "--hive-socket", folder / "hive.sock", "hive", "health")
        took = time.monotonic() - began
    assert done.returncode == 1
    assert peer.connections == 3
    assert 3 * 0.3 + 0.6 <= took < 10
    assert [f"try {n} of 3" in done.stderr for n in (1, 2, 3)] == [True] * 3
    assert "CONNECTION_TIMEOUT" in done.stderr
    assert "systemctl status rbee-hive" in done.stderr


def test_a_hive_that_is_not_there_is_tried_three_times(person: Person, folder: Path) -> None:
    done = person.rbee("--hive-socket", folder / "none.sock", "hive", "health")
    assert done.returncode == 1
    assert "try 3 of 3: no such file or directory" in done.stderr
    assert "systemctl status rbee-hive" in done.stderr


def test_a_request_that_changes_something_is_not_sent_twice(person: Person, folder: Path) -> None:
    with Peer(hanging, folder / "q.sock") as peer:
        done = person.rbee(
            "--timeout", 0.3, "--socket", folder / "q.sock", "embed", "--model", "m", "--time-limit", 0.3, "text"
        )
    assert done.returncode == 1
    assert peer.connections == 1


def test_invalid_json_is_told_with_its_position_and_a_restart_hint(person: Person, folder: Path) -> None:
    with Peer(lambda _, send: send(raw_answer(b'{"status": ok}')), folder / "hive.sock"):
        done = person.rbee("--hive-socket", folder / "hive.sock", "hive", "health")
    assert done.returncode == 1
    assert "line 1 column 12" in done.stderr
    assert "systemctl restart rbee-hive" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("version", "api"), [("0.9.3", "v1"), ("0.1.0", "v2")])
def test_another_version_is_named_with_the_upgrade_command(
    person: Person, folder: Path, version: str, api: str
) -> None:
    health = {"status": "healthy", "version": version, "api_version": api}
    with Peer(lambda _, send: send(answer(health)), folder / "hive.sock"):
        done = person.rbee("--hive-socket", folder / "hive.sock", "hive", "health")
    assert done.returncode == 1
    assert "VERSION_MISMATCH" in done.stderr
    assert "0.1.0 (API v1)" in done.stderr
    assert f"{version} (API {api})" in done.stderr
    assert "apt install --only-upgrade rbee rbee-hive" in done.stderr


def test_a_healthy_hive_of_our_version(person: Person, folder: Path) -> None:
    health = {"status": "healthy", "version": "0.1.7", "api_version": "v1", "more": 1}
    with Peer(lambda _, send: send(answer(health)), folder / "hive.sock"):
        done = person.rbee("--hive-socket", folder / "hive.sock", "hive", "health", "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, health)


def test_the_token_of_the_file_is_presented_and_never_shown(person: Person) -> None:
    token = person.home / "token"
    token.write_text("s3cret-value\n")
    token.chmod(0o600)
    with Peer(lambda _, send: send(error("INVALID_API_KEY", "the token is not known here", 401))) as peer:
        done = person.rbee("--queen-url", peer.url, "--token-file", token, "model", "list")
    assert peer.asked[0].headers["authorization"] == "Bearer s3cret-value"
    assert done.returncode == 1
    assert "INVALID_API_KEY" in done.stderr
    assert "token_file" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


@pytest.mark.parametrize("command", [("chat", "--model", "m", "-m", "hi"), ("infer", "--model", "m", "--prompt", "hi")])
def test_a_redirect_is_not_followed_with_a_persons_words(person: Person, command: tuple[str, ...]) -> None:
    with Peer(lambda _, send: send(answer({}))) as other:

        def redirect(asked: Asked, send: Send) -> None:
            send(f"HTTP/1.1 307 Elsewhere\r\nLocation: {other.url}/\r\nContent-Length: 0\r\n\r\n".encode())

        with Peer(redirect) as peer:
            done = person.rbee("--queen-url", peer.url, *command)
    assert done.returncode == 1
    assert other.connections == 0
    assert "Traceback" not in done.stderr


def test_a_missing_token_is_explained(person: Person) -> None:
    with Peer(lambda _, send: send(error("MISSING_API_KEY", "the Authorization header is missing", 401))) as peer:
        done = person.rbee("--queen-url", peer.url, "model", "list")
    assert done.returncode == 1
    assert "authorization" not in peer.asked[0].headers
    assert "config.yaml" in done.stderr
    assert "--token-file" in done.stderr


def test_a_token_file_that_others_can_read_is_refused(person: Person) -> None:
    token = person.home / "token"
    token.write_text("s3cret-value\n")
    token.chmod(0o644)
    with Peer(lambda _, send: send(answer({}))) as peer:
        done = person.rbee("--queen-url", peer.url, "--token-file", token, "model", "list")
    assert done.returncode == 1
    assert peer.asked == []
    assert "0644" in done.stderr


def test_json_asks_for_the_error_in_json_too(person: Person) -> None:
    with Peer(lambda _, send: send(error("WORKER_NOT_FOUND", "gone", 404, worker_id="a"))) as peer:
        done = person.rbee("--queen-url", peer.url, "model", "list", "--json")
    body = json.loads(done.stderr)["error"]
    assert (body["code"], body["message"], body["details"]["worker_id"]) == ("WORKER_NOT_FOUND", "gone", "a")
    assert body["correlation_id"] == peer.asked[0].headers["x-correlation-id"]


def test_control_characters_of_a_daemon_do_not_reach_the_terminal(person: Person) -> None:
    with Peer(lambda _, send: send(error("NOT_FOUND", "bad \x1b[31mred\x07", 404))) as peer:
        done = person.rbee("--queen-url", peer.url, "model", "list")
    assert "\x1b" not in done.stderr
    assert "\x07" not in done.stderr


def test_the_workers_list_is_a_table_or_json(person: Person, folder: Path) -> None:
    row = {"worker_id": "w1", "hive_id": "h", "boot_id": "b", "revision": 1, "state": "idle", "model": "m"}
    with Peer(lambda _, send: send(answer({"workers": [row]})), folder / "q.sock"):
        table = person.rbee("--socket", folder / "q.sock", "workers", "list")
        listed = person.rbee("--socket", folder / "q.sock", "worker", "list", "--json")
    assert table.stdout.splitlines()[1].split("\t")[:4] == ["w1", "h", "idle", "m"]
    assert json.loads(listed.stdout)["workers"][0]["state"] == "idle"


@pytest.mark.parametrize(
    "arguments",
    [
        ("infer", "--model", "garbage reference", "--prompt", "p"),
        ("infer", "--model", "hf:nothing", "--prompt", "p"),
        ("worker", "spawn", "w", "--model", "ftp://x/y"),
        ("worker", "spawn", "w", "--model", "file:///models/../etc"),
    ],
)
def test_a_bad_model_reference_is_refused_before_anything_is_sent(person: Person, arguments: tuple[str, ...]) -> None:
    with Peer(lambda _, send: send(answer({}))) as peer:
        done = person.rbee("--queen-url", peer.url, *arguments)
    assert done.returncode == 1
    assert peer.connections == 0
    assert "hf:org/repo" in done.stderr
    assert "file:///" in done.stderr


@pytest.mark.parametrize("command", [("infer", "--prompt", "p", "--model", "m"), ("worker", "spawn", "w")])
def test_an_unknown_backend_is_refused_with_the_list(person: Person, command: tuple[str, ...]) -> None:
    with Peer(lambda _, send: send(answer({}))) as peer:
        done = person.rbee("--queen-url", peer.url, *command, "--backend", "metal")
    assert done.returncode == 1
    assert peer.connections == 0
    assert "BACKEND_UNAVAILABLE" in done.stderr
    assert "cpu, cuda" in done.stderr


@pytest.mark.parametrize("arguments", [("nonsense",), ("infer", "--model", "m"), ("worker", "spawn", "--slots", "0")])
def test_wrong_usage_exits_2(person: Person, arguments: tuple[str, ...]) -> None:
    assert person.rbee(*arguments).returncode == 2


def test_worker_health_exits_1_when_a_worker_does_not_answer(person: Person, folder: Path) -> None:
    facts = {"status": "ok", "state": "idle", "worker_id": "w1", "version": "0.1.0", "slots_total": 4, "slots_busy": 1}
    well = {"hive_id": "h", "worker_id": "w1", "state": "idle", "reachable": True}
    well["health"] = facts | {"idle_s": 75.0, "requests_total": 9}
    stopped = {"hive_id": "h", "worker_id": "w2", "state": "stopped", "reachable": False}
    silent = {"hive_id": "h", "worker_id": "w3", "state": "idle", "reachable": False}
    rows = [well, stopped]
    with Peer(lambda _, send: send(answer({"workers": rows})), folder / "q.sock"):
        fine = person.rbee("--socket", folder / "q.sock", "worker", "health")
        rows.append(silent)
        bad = person.rbee("--socket", folder / "q.sock", "worker", "health")
    assert fine.returncode == 0
    assert fine.stdout.splitlines()[1].split("\t") == ["w1", "h", "idle", "yes", "1/4", "1 min 15 s", "9"]
    assert bad.returncode == 1
    assert "not healthy: w3" in bad.stderr
