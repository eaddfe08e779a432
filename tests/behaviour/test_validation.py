"""What queen and hive refuse at their edge, and how they say it."""

import re
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee.wire.errors import RbeeError
from tests.behaviour.support.daemons import ACCEPTED, start_alone
from tests.behaviour.support.http import Answer, Http
from tests.behaviour.support.person import Person
from tests.behaviour.support.processes import DaemonProcess
from tests.behaviour.support.stack import Stack

scenarios("features/validation.feature")

NUMBERS = {"device"}


@dataclass
class Tried:
    """What was sent, and what came back."""

    value: str = ""
    mark: Path = Path()
    token: str | None = None
    answers: list[Answer] = field(default_factory=list)
    heads: list[tuple[int, bytes]] = field(default_factory=list)


@pytest.fixture
def tried(tmp_path: Path) -> Tried:
    return Tried(mark=tmp_path / "ran")


@given("queen and hive are running")
def running(shared_stack: Stack) -> None:
    assert shared_stack.client.get("/health").status == 200


def _value(name: str, text: str, mark: Path) -> object:
    if text == "65 letters":
        return "w" * 65
    if text == "nothing":
        return ""
    return int(text) if name in NUMBERS else text.replace("${MARK}", str(mark)).replace("\\|", "|")


@when(parsers.re(r"queen and hive are asked to spawn a worker with (?P<name>\w+) (?P<text>.+)"))
def spawn(shared_stack: Stack, tried: Tried, name: str, text: str) -> None:
    value = _value(name, text, tried.mark)
    tried.value = str(value)
    model = f"file://{shared_stack.models}/tiny-tensor"
    body = {"worker_id": "w", "model_ref": model, "backend": "cpu"} | {name: value}
    tried.answers = [
        shared_stack.client.post("/v2/workers/spawn", body),
        shared_stack.hive_admin.post("/v1/workers/spawn", body),
    ]


@then(parsers.parse("each answers 400 with the code {code} and names {named}, and repeats nothing that was sent"))
def refused(tried: Tried, code: str, named: str) -> None:
    for answer in tried.answers:
        assert (answer.status, answer.error["code"]) == (400, code), answer.body
        assert named in f"{answer.error['message']} {answer.error['details']}"
        if len(tried.value) > 4:
            assert tried.value.encode() not in answer.body


@then("no worker is known and no command has run")
def nothing_ran(shared_stack: Stack, tried: Tried) -> None:
    assert not tried.mark.exists()
    assert "w" not in shared_stack.rows()


@when(parsers.parse("a person asks the queen by TCP with {token}"))
def ask_with(shared_stack: Stack, tried: Tried, token: str) -> None:
    tried.token = None if token == "no token" else "not-the-token-of-this-queen"
    tried.answers = [Http(shared_stack.queen_url, tried.token).get("/v1/models")]


@then(parsers.parse("the answer is 401 with the code {code} and its challenge"))
def challenged(tried: Tried, code: str) -> None:
    (answer,) = tried.answers
    assert (answer.status, answer.error["code"]) == (401, code)
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@then(parsers.parse("rbee exits with 1, names {code}, and says where the token is configured"))
def rbee_says(shared_stack: Stack, tried: Tried, tmp_path: Path, code: str) -> None:
    flags: list[object] = ["--queen-url", shared_stack.queen_url]
    if tried.token is not None:
        path = tmp_path / "token"
        path.touch(mode=0o600)
        path.write_text(tried.token)
        flags += ["--token-file", path]
    done = Person(tmp_path, *flags).rbee("model", "list")
    assert done.code == 1
    assert code in done.err
    assert "token" in done.err.lower() and ("token_file" in done.err or "--token-file" in done.err), done.err


def _codes(kind: type[RbeeError]) -> Iterator[str]:
    yield kind.code
    for below in kind.__subclasses__():
        yield from _codes(below)


@then("each error that is provoked has a code of the list, a sentence and details")
def codes_of_the_list(shared_stack: Stack) -> None:
    known = set(_codes(RbeeError))
    calls: list[tuple[Http, str, str, Any]] = [
        (shared_stack.client, "GET", "/nowhere", None),
        (shared_stack.client, "POST", "/v1/models", b"{}"),
        (shared_stack.client, "POST", "/v2/workers/spawn", b"{"),
        (shared_stack.client, "POST", "/v1/chat/completions", {"model": "nobody"}),
        (shared_stack.client, "GET", "/v2/workers/bee/nobody", None),
        (shared_stack.client, "GET", "/v2/explain/nobody", None),
        (shared_stack.client, "POST", "/v2/workers/ready", {}),
        (shared_stack.hive_admin, "DELETE", "/v1/workers/nobody", None),
        (shared_stack.hive_admin, "POST", "/v1/workers/spawn", {"worker_id": "w", "backend": "metal"}),
    ]
    for caller, method, path, body in calls:
        error = caller.call(method, path, body).error
        assert error["code"] in known, error
        assert error["message"] and isinstance(error["details"], dict)


@when(parsers.parse("the {daemon} is sent 2 MiB to {path}"))
def send_much(shared_stack: Stack, tried: Tried, daemon: str, path: str) -> None:
    caller = shared_stack.client if daemon == "queen" else shared_stack.hive_admin
    tried.answers = [caller.post(path, {"worker_id": "w" * (2 << 20)})]


@then("it answers 413 with the code PAYLOAD_TOO_LARGE")
def too_large(tried: Tried) -> None:
    (answer,) = tried.answers
    assert (answer.status, answer.error["code"]) == (413, "PAYLOAD_TOO_LARGE")


@when(parsers.parse("a {daemon} is started on port {port:d}"), target_fixture="started")
def start_on(models: Path, daemon: str, port: int) -> Iterator[DaemonProcess]:
    stack = Stack(models)
    try:
        stack.queen_config = stack.hive_config = {"listen": {"port": port}}
        process = start_alone(stack, daemon)
        process.wait_end()
        yield process
    finally:
        stack.close()


@then("it ends with 78 and says what ports there are")
def says_ports(started: DaemonProcess) -> None:
    assert started.process.returncode == 78
    assert "1024" in started.text or "65535" in started.text


# -- many that are not acceptable --------------------------------------------------------------------------------------

SPAWN = {"queen": "/v2/workers/spawn", "hive": "/v1/workers/spawn"}
LISTING = {"queen": "/v2/workers/list", "hive": "/v1/workers/list"}
MANY = 400
_ANSWER = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r]*\r\n(.*?)\r\n\r\n", re.S)


def _sent(method: str, path: str, token: str, body: bytes, *, last: bool) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: rbee\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + (b"Connection: close\r\n\r\n" if last else b"\r\n") + body


@when(parsers.parse("a caller sends the {daemon} bodies that are not acceptable as fast as it can"))
def many_invalid(shared_stack: Stack, tried: Tried, daemon: str) -> None:
    # one behind the other on one connection: no answer is waited for
    port = shared_stack.queen_port if daemon == "queen" else shared_stack.hive_port
    token = shared_stack.tokens[ACCEPTED[daemon]]
    invalid = _sent("POST", SPAWN[daemon], token, b'{"worker_id": 7}', last=False)
    valid = _sent("GET", LISTING[daemon], token, b"", last=True)
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        sender = threading.Thread(target=connection.sendall, args=(invalid * MANY + valid,))
        sender.start()
        while piece := connection.recv(1 << 16):
            received += piece
        sender.join()
    tried.heads = [(int(status), head.lower()) for status, head in _ANSWER.findall(received)]


@then("each is answered 400 until more than 50 a second came, and then 429 with Retry-After")
def some_refused(tried: Tried) -> None:
    statuses = [status for status, _ in tried.heads[:-1]]
    assert len(statuses) == MANY
    assert statuses[:25] == [400] * 25, "an earlier scenario may have sent some in this very second"
    assert set(statuses) == {400, 429}
    assert all(b"retry-after: 1" in head for status, head in tried.heads if status == 429)


@then("a request of that caller that is acceptable is served all the while")
def acceptable_served(tried: Tried) -> None:
    assert tried.heads[-1][0] == 200


@then("another caller is told why its own is not acceptable")
def another_caller(shared_stack: Stack, tried: Tried) -> None:
    assert shared_stack.admin.post(SPAWN["queen"], {"worker_id": 7}).status == 400
    assert shared_stack.hive_admin.post(SPAWN["hive"], {"worker_id": 7}).status == 400
