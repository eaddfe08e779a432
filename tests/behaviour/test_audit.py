"""The audit logs of real daemons, read as a person would: by the file, and by `rbee audit`."""

import hashlib
import json
import shutil
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee.host.audit.chain import files_of
from rbee.host.audit.entries import EventType
from rbee.host.audit.file import AuditFile, AuditLimits, Pending
from rbee.wire.auth import fingerprint
from tests.behaviour.support.daemons import TENSOR
from tests.behaviour.support.http import Answer, Http, until
from tests.behaviour.support.person import Done, Person
from tests.behaviour.support.stack import HIVE_ID, Stack

scenarios("features/audit.feature")

FIELDS = {"timestamp", "event_type", "actor", "details", "previous_hash", "entry_hash"}
STRANGE = "a-token-that-nobody-knows-here"
DECLARED = {"bee-far": {"reference": "hf:org/repo"}}
Entry = dict[str, Any]


@dataclass
class Seen:
    stack: Stack
    home: Path
    correlation_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    copy: Path = Path()
    done: Done | None = None
    before: list[Entry] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def folder(self, daemon: str) -> Path:
        return self.stack.state_dir / daemon

    def entries(self, daemon: str) -> list[Entry]:
        return [json.loads(line) for path in files_of(self.folder(daemon)) for line in path.read_text().splitlines()]

    def wait_entry(self, daemon: str, event: str, fits: Callable[[Entry], bool] = lambda entry: True) -> Entry:
        """Wait for an entry: nobody waits for the log, so that an answer may be there before it."""

        def found() -> Entry | None:
            return next((one for one in self.entries(daemon) if one["event_type"] == event and fits(one)), None)

        entry: Entry = until(found)
        return entry

    def rbee(self, *arguments: object) -> Done:
        return Person(self.home).rbee("audit", *arguments)

    def of_request(self, entry: Entry) -> bool:
        return bool(entry["details"].get("correlation_id") == self.correlation_id)

    def call(self, method: str, path: str, body: object) -> Answer:
        return self.stack.client.call(method, path, body, {"X-Correlation-Id": self.correlation_id})


@pytest.fixture(scope="module")
def audited(models: Path) -> Iterator[Stack]:
    stack = Stack(models)
    stack.queen_config, stack.hive_config = {"audit": "all"}, {"audit": "all"}
    try:
        stack.start()
        stack.run_worker("tiny", "tiny-tensor", idle_limit_s=0)
        yield stack
    finally:
        stack.close()


@given("queen, hive and a worker are running, and everything is audited", target_fixture="seen")
def everything_audited(audited: Stack, tmp_path: Path) -> Seen:
    return Seen(audited, tmp_path)


@given("a queen with the audit log as it comes", target_fixture="seen")
def default_audit(stack: Stack, tmp_path: Path) -> Seen:
    stack.start_queen()
    return Seen(stack, tmp_path)


@given(parsers.parse("a queen whose audit log has {kilobytes:d} kB"), target_fixture="seen")
def long_audit(stack: Stack, tmp_path: Path, kilobytes: int) -> Seen:
    # what a daemon writes by and by, written at once by the same code, which has all the room it wants here
    file = AuditFile(stack.state_dir / "queen", AuditLimits(budget_bytes=10**9))
    while file.total < kilobytes * 1000:
        filler = "x" * max(0, min(4000, kilobytes * 1000 - file.total - 400))
        file.write(Pending(time.time(), EventType.WORKER_STOP, "uid:0", {"worker_id": "w", "reason": filler}))
    file.close()
    seen = Seen(stack, tmp_path, files=files_of(stack.state_dir / "queen"))
    stack.start_queen()
    return seen


# -- what is done ------------------------------------------------------------------------------------------------------


@when("a client asks the queen to start a worker of tiny-tensor")
def start_asked(seen: Seen) -> None:
    body = {"worker_id": "second", "model_ref": f"file://{seen.stack.models}/tiny-tensor", "backend": "cpu"}
    assert seen.call("POST", "/v2/workers/spawn", body).status == 202


@when("a client asks with its token, with a strange one, and with none")
def three_callers(seen: Seen) -> None:
    assert seen.call("GET", "/v1/models", None).status == 200
    assert Http(seen.stack.queen_url, STRANGE).get("/v1/models").status == 401
    assert Http(seen.stack.queen_url).get("/v1/models").status == 401


@when("the third entry of a copy of the queen's log is edited")
def third_edited(seen: Seen) -> None:
    seen.copy = seen.home / "copy"
    shutil.copytree(seen.folder("queen"), seen.copy, ignore=shutil.ignore_patterns("*.db*"))
    path = seen.copy / "audit.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) > 5
    entry = json.loads(lines[2])
    entry["actor"] = "uid:4711"
    path.write_text("\n".join([*lines[:2], json.dumps(entry), *lines[3:]]) + "\n")
    seen.done = seen.rbee("verify", "--dir", seen.copy)


@when(parsers.parse("a client asks {model} for an inference by {route}"))
def inference(seen: Seen, model: str, route: str) -> None:
    if route.startswith("/"):
        assert seen.call("POST", route, TENSOR).status == 200
        return
    # a body in chunks is never taken the straight way
    body = json.dumps(TENSOR).encode()
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: queen\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {seen.stack.tokens['api_token']}\r\nX-Correlation-Id: {seen.correlation_id}\r\n"
        "Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", seen.stack.queen_port), timeout=30) as connection:
        connection.sendall(head.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert connection.makefile("rb").readline().startswith(b"HTTP/1.1 200")


@when("her configuration is read again with another token and a declared model")
def reloaded(seen: Seen) -> None:
    queen = seen.stack.queen
    assert queen is not None
    seen.wait_entry("queen", "audit.started")
    seen.stack.write_token("api_token", "another-token-of-clients")
    seen.stack.queen_config = {"models": DECLARED}
    seen.stack.write_queen_config()
    queen.signal(signal.SIGHUP)
    queen.wait_log("reloaded")


@when("callers are refused until the log is rotated")
def refused_until_rotated(seen: Seen) -> None:
    def rotated() -> bool:
        Http(seen.stack.queen_url, STRANGE).get("/v1/models")
        return len(files_of(seen.folder("queen"))) > len(seen.files)

    until(rotated)


@when("she is stopped and started, and killed in the middle of an entry and started")
def restarted(seen: Seen) -> None:
    stack, path = seen.stack, seen.folder("queen") / "audit.jsonl"
    seen.wait_entry("queen", "audit.started")
    assert stack.queen is not None
    stack.queen.stop()
    assert seen.entries("queen")[-1]["event_type"] == "audit.stopped"
    stack.start_queen()
    until(lambda: len(seen.entries("queen")) == 3)
    stack.queen.kill()
    seen.before = seen.entries("queen")
    with path.open("ab") as file:
        file.write(path.read_bytes().splitlines()[0][:100])
    (stack.run_dir / "queen.sock").unlink(missing_ok=True)
    stack.start_queen()
    until(lambda: seen.entries("queen")[-1]["event_type"] == "audit.started")


# -- what came of it ---------------------------------------------------------------------------------------------------


@then("the queen's log has worker.spawn of the client's fingerprint, with the worker, its model and its node")
def queen_spawned(seen: Seen) -> None:
    entry = seen.wait_entry("queen", "worker.spawn", seen.of_request)
    assert entry["actor"] == fingerprint(seen.stack.tokens["api_token"])
    details = entry["details"]
    assert (details["worker_id"], details["node"], details["outcome"]) == ("second", HIVE_ID, "ok")
    assert details["model_ref"].endswith("/tiny-tensor")


@then("the hive's log has worker.spawn of the same correlation id, by the token that the queen presented")
def hive_spawned(seen: Seen) -> None:
    entry = seen.wait_entry("hive", "worker.spawn", seen.of_request)
    assert entry["actor"] == fingerprint(seen.stack.tokens["hive_api_token"])
    details = entry["details"]
    assert (details["worker_id"], details["node"]) == ("second", HIVE_ID)
    assert details["model_ref"].endswith("/tiny-tensor")
    shown = seen.rbee("show", "--dir", seen.folder("queen"), "--dir", seen.folder("hive"), "--event", "worker",
                      "--about", seen.correlation_id)  # fmt: skip
    assert shown.out.count("worker.spawn") == 2, shown


@then("the queen's log has auth.success and auth.failure with fingerprints and reasons")
def callers_named(seen: Seen) -> None:
    client = fingerprint(seen.stack.tokens["api_token"])
    success = seen.wait_entry("queen", "auth.success", seen.of_request)
    assert (success["actor"], success["details"]["fingerprint"]) == (client, client)
    _failures(seen)


@then("the queen's log has auth.failure and no auth.success")
def only_failures(seen: Seen) -> None:
    _failures(seen)
    assert "auth.success" not in {entry["event_type"] for entry in seen.entries("queen")}


def _failures(seen: Seen) -> None:
    strange = seen.wait_entry("queen", "auth.failure", lambda one: one["details"]["reason"] == "unknown_token")
    assert (strange["actor"], strange["details"]["fingerprint"]) == (fingerprint(STRANGE), fingerprint(STRANGE))
    nobody = seen.wait_entry("queen", "auth.failure", lambda one: one["details"]["reason"] == "missing_header")
    assert (nobody["actor"], nobody["details"]["peer"]) == ("anonymous", "127.0.0.1")
    assert strange["details"]["route"] == "/v1/models"


@then("no token of this rbee, and not the strange one, is in any audit log")
def no_token(seen: Seen) -> None:
    texts = [path.read_text() for daemon in ("queen", "hive") for path in files_of(seen.folder(daemon))]
    for token in (*seen.stack.tokens.values(), STRANGE):
        assert not any(token in text for text in texts)


@then("every entry of both logs has timestamp, event_type, actor, details, previous_hash and entry_hash")
def fields_there(seen: Seen) -> None:
    for entry in seen.entries("queen") + seen.entries("hive"):
        assert set(entry) == FIELDS
        assert entry["timestamp"].endswith("Z") and entry["timestamp"][10] == "T"


@then("each log begins after 64 zeros and every hash follows from what the entry says and the hash before")
def hashes_follow(seen: Seen) -> None:
    for daemon in ("queen", "hive"):
        before = "0" * 64
        for entry in seen.entries(daemon):
            assert entry["previous_hash"] == before
            before = entry.pop("entry_hash")
            canonical = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            assert hashlib.sha256(canonical.encode()).hexdigest() == before


@then("rbee audit verify finds both logs whole")
def both_whole(seen: Seen) -> None:
    done = seen.rbee("verify", "--dir", seen.folder("queen"), "--dir", seen.folder("hive"))
    assert (done.code, done.out.count("ok ")) == (0, 2), done


@then("rbee audit verify ends with 1, names entry 3 as changed, and flags every later one")
def third_named(seen: Seen) -> None:
    assert seen.done is not None and seen.done.code == 1
    assert "line 3: entry 3 is broken: its content does not give its hash" in seen.done.out
    told = json.loads(seen.rbee("verify", "--json", "--dir", seen.copy).out)
    entries = len((seen.copy / "audit.jsonl").read_text().splitlines())
    assert not told["whole"]
    assert [broken["number"] for broken in told["logs"][0]["broken"]] == list(range(3, entries + 1))


@then("the queen's log has inference.start, worker.assigned and inference.complete of its correlation id")
def three_entries(seen: Seen) -> None:
    complete = seen.wait_entry("queen", "inference.complete", seen.of_request)
    mine = [entry for entry in seen.entries("queen") if seen.of_request(entry) and entry["event_type"][:4] != "auth"]
    assert [entry["event_type"] for entry in mine] == ["inference.start", "worker.assigned", "inference.complete"]
    assert {entry["actor"] for entry in mine} == {fingerprint(seen.stack.tokens["api_token"])}
    assert mine[1]["details"]["node"] == HIVE_ID
    assert mine[1]["details"]["worker_id"] in seen.stack.rows()
    assert complete["details"]["outcome"] == "ok"


@then("the queen's log has config.reload, credential.change with both fingerprints, and model.declare")
def reload_told(seen: Seen) -> None:
    reload = seen.wait_entry("queen", "config.reload")
    assert (reload["actor"], reload["details"]["outcome"], reload["details"]["fields"]) == ("system", "ok", ["models"])
    change = seen.wait_entry("queen", "credential.change")["details"]
    assert change["added"] == [fingerprint("another-token-of-clients")]
    assert change["removed"] == [fingerprint(seen.stack.tokens["api_token"])]
    declared = seen.wait_entry("queen", "model.declare")["details"]
    assert (declared["model"], declared["model_ref"], declared["change"]) == ("bee-far", "hf:org/repo", "added")


@then("the old file has the time behind its name and the new one goes on with its chain")
def went_on(seen: Seen) -> None:
    old, new = files_of(seen.folder("queen"))
    assert old.name.startswith("audit.jsonl.20") and 9_900_000 < old.stat().st_size <= 10_000_000
    last = json.loads(old.read_text().splitlines()[-1])
    assert json.loads(new.read_text().splitlines()[0])["previous_hash"] == last["entry_hash"]
    assert seen.rbee("verify", "--dir", seen.folder("queen")).code == 0


@then("she warns that the log has used 95 % of its room")
def warned(seen: Seen) -> None:
    assert seen.stack.queen is not None
    assert " WARNING " in seen.stack.queen.wait_log("audit log has used 95 %")


@then("she serves, and nothing was removed")
def serves(seen: Seen) -> None:
    assert seen.stack.client.get("/v1/models").status == 200
    assert [path.name for path in files_of(seen.folder("queen"))] == [path.name for path in seen.files]


@then("she tells of an error and removes the oldest file")
def oldest_removed(seen: Seen) -> None:
    assert seen.stack.queen is not None
    assert " ERROR " in seen.stack.queen.wait_log("audit log has used 99 %")
    until(lambda: not seen.files[0].exists())
    assert [path.name for path in files_of(seen.folder("queen"))] == [path.name for path in seen.files[1:]]


@then("she serves, and rbee audit verify finds the log whole")
def serves_whole(seen: Seen) -> None:
    assert seen.stack.client.get("/v1/models").status == 200
    done = seen.rbee("verify", "--dir", seen.folder("queen"))
    assert (done.code, done.out[:3]) == (0, "ok "), done


@then("the log has all earlier entries, says that the end was torn, and is whole")
def goes_on(seen: Seen) -> None:
    entries = seen.entries("queen")
    assert entries[:3] == seen.before
    assert [entry["event_type"] for entry in entries[3:]] == ["audit.recovered", "audit.started"]
    assert entries[3]["details"]["dropped_bytes"] == 100
    assert seen.rbee("verify", "--dir", seen.folder("queen")).code == 0
    head = entries[-1]["entry_hash"]
    assert seen.rbee("verify", "--dir", seen.folder("queen"), "--contains", head).code == 0
    assert seen.rbee("verify", "--dir", seen.folder("queen"), "--contains", "f" * 64).code == 1
