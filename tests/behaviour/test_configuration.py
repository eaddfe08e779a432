"""Steps of features/configuration.feature."""

import importlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from pytest_bdd import given, parsers, scenarios, then, when

from tests.behaviour.support import daemons
from tests.behaviour.support.daemons import ACCEPTED, WORKER, caller
from tests.behaviour.support.http import until
from tests.behaviour.support.processes import DaemonProcess
from tests.behaviour.support.stack import Stack, merged

scenarios("features/configuration.feature")

CHECKOUT = Path(__file__).resolve().parents[2]
FILES = {"queen": "queen.yaml", "hive": "hive.yaml", "worker": "worker.yaml"}
ROUTES = {"queen": "/v2/workers/list", "hive": "/v1/workers/list", "worker": "/v1/ready"}
CORRELATION = re.compile(r"correlation_id=([0-9a-f-]{36})$")


@pytest.fixture
def seen() -> dict[str, Any]:
    """What a scenario's steps hand on."""
    return {}


@pytest.fixture
def own(stack: Stack) -> Iterator[list[DaemonProcess]]:
    """Daemons that a scenario starts by itself; ended with it."""
    started: list[DaemonProcess] = []
    yield started
    for process in started:
        process.stop()


# starting


def _start(stack: Stack, own: list[DaemonProcess], daemon: str, **how: Any) -> DaemonProcess:  # noqa: ANN401
    definition = stack.config_dir / "workers" / f"{WORKER}.yaml"
    if not definition.exists():
        stack.define_worker(WORKER, "tiny-tensor")
    if daemon == "hive" and "queen" not in stack.hive_config:
        stack.hive_config["queen"] = {"callback_url": None}
    process = daemons.start_alone(stack, daemon, **how)
    own.append(process)
    return process


@when(parsers.parse("the {daemon} is started"))
def start(stack: Stack, own: list[DaemonProcess], seen: dict[str, Any], daemon: str) -> None:
    seen["process"] = _start(stack, own, daemon)


@when(
    parsers.re(
        r"the (?P<daemon>\w+) is started with (?P<variable>[A-Z_]+)=(?P<value>\S+)( and the flags \"(?P<flags>.*)\")?"
    )
)
def start_with(
    stack: Stack,
    own: list[DaemonProcess],
    seen: dict[str, Any],
    daemon: str,
    variable: str,
    value: str,
    flags: str | None,
) -> None:
    seen["process"] = _start(stack, own, daemon, env={variable: value}, flags=(flags or "").split())


@when('the hive is started without a file but with --callback-url "" and --log-level debug')
def start_without_file(own: list[DaemonProcess], seen: dict[str, Any]) -> None:
    # the address is one that cannot be had: the record is written before
    flags = ["--callback-url", "", "--log-level", "debug", "--listen", "192.0.2.1:9200"]
    seen["process"] = process = DaemonProcess([sys.executable, "-m", "rbee.hive.main", *flags])
    own.append(process)


@when(parsers.parse("the {daemon} is started with a file that is not there"))
def start_with_missing_file(stack: Stack, own: list[DaemonProcess], seen: dict[str, Any], daemon: str) -> None:
    missing = str(stack.config_dir / "missing.yaml")
    seen["process"] = process = DaemonProcess([sys.executable, "-m", f"rbee.{daemon}.main", "--config", missing])
    own.append(process)


@then("it is ready")
def ready(seen: dict[str, Any]) -> None:
    seen["process"].wait_ready()


@then("it ends with exit code 78 and the event startup_failed")
def fails(seen: dict[str, Any]) -> None:
    assert seen["process"].wait_end() == 78
    seen["record"] = seen["process"].wait_log("event=startup_failed")
    assert " ERROR " in seen["record"]
    assert "code=CONFIG_VALIDATION_FAILED" in seen["record"]


# what is recorded


def _read_record(process: DaemonProcess) -> str:
    return process.wait_log("configuration read ")


@then(parsers.parse('exactly one record "configuration read" names the file {file}, overrides=none and a duration'))
def one_record(stack: Stack, seen: dict[str, Any], file: str) -> None:
    record = _read_record(seen["process"])
    assert f"file={stack.config_dir / file}" in record
    assert "overrides=none" in record
    assert re.search(r"duration_ms=\d+\.\d", record)
    assert seen["process"].text.count("configuration read ") == 1


@then("no token is in its log")
def no_token(stack: Stack, seen: dict[str, Any]) -> None:
    assert not any(token in seen["process"].text for token in stack.tokens.values())


@then('the record "configuration read" names "built-in defaults" and what overrode them')
def defaults_named(seen: dict[str, Any]) -> None:
    record = _read_record(seen["process"])
    if Path("/etc/rbee/hive.yaml").exists():
        pytest.skip("this machine has a hive.yaml of its own")
    assert 'file="built-in defaults"' in record
    for override in (
        "queen.callback_url from --callback-url",
        "log_level from --log-level",
        "listen.host from --listen",
    ):
        assert override in record


@then(parsers.parse('the record "configuration read" names the file {file} and as overrides "{overrides}"'))
def overrides_named(stack: Stack, seen: dict[str, Any], file: str, overrides: str) -> None:
    record = _read_record(seen["process"])
    assert f"file={stack.config_dir / file}" in record
    assert f'overrides="{overrides}"' in record


@then(parsers.parse("the value in force is {value}"))
def value_in_force(seen: dict[str, Any], value: str) -> None:
    line = seen["process"].wait_log(lambda line: "queen is ready" in line or "hive ready" in line)
    assert f"public_url={value}" in line or f"queen={value}" in line


# reload


@given("queen, hive and a worker are running", target_fixture="running")
def running(shared_stack: Stack, seen: dict[str, Any]) -> Iterator[Stack]:
    stack = shared_stack
    if WORKER not in stack.rows():
        stack.run_worker(WORKER, "tiny-tensor", slots=8)
    seen["pids"] = {daemon: _pid(stack, daemon) for daemon in daemons.DAEMONS}
    yield stack
    _configure(stack, "queen", {})
    _configure(stack, "hive", {})
    _configure(stack, "worker", {})
    for daemon in daemons.DAEMONS:
        _reload(stack, daemon)
    stack.admin.call("PATCH", f"/v2/workers/bee/{WORKER}", {"state": "idle"})


def _pid(stack: Stack, daemon: str) -> int:
    return int(stack.row(WORKER)["pid"]) if daemon == "worker" else daemons.process_of(stack, daemon).pid


def _configure(stack: Stack, daemon: str, over: dict[str, Any]) -> Path:
    write = {"queen": stack.write_queen_config, "hive": stack.write_hive_config, "worker": stack.write_worker_defaults}
    return write[daemon](over)


def _reload(stack: Stack, daemon: str) -> str:
    """Send SIGHUP and return the record of what came of it, read from the daemon's log at whatever level it has."""
    process = daemons.process_of(stack, daemon)
    before = len(process.log)
    subprocess.run(["kill", "-HUP", str(_pid(stack, daemon))], check=True)
    ends = (": reloaded", "reload refused")
    return process.wait_log(lambda line: f" {daemon}: " in line and any(end in line for end in ends), start=before)


@when(parsers.parse("{key} of the {daemon} becomes {value} and it is told to reload"))
@when(parsers.parse("{key} of the {daemon} becomes {value} and she is told to reload"))
def change(running: Stack, key: str, daemon: str, value: str) -> None:
    over: Any = yaml.safe_load(value)
    for part in reversed(key.split(".")):
        over = {part: over}
    _configure(running, daemon, over)
    _reload(running, daemon)


@given("the worker is held back from new work")
def hold(running: Stack) -> None:
    answer = running.admin.call("PATCH", f"/v2/workers/bee/{WORKER}", {"state": "busy"})
    assert answer.status == 200, answer.body


@then("a request for its model is refused within a few seconds")
def refused_soon(running: Stack) -> None:
    began = time.monotonic()
    answer = running.client.post("/v2/models/tiny-tensor/infer", daemons.TENSOR)
    assert answer.status == 503, answer.body
    assert time.monotonic() - began < 10  # the default is 30 s


@then(parsers.parse("the {daemon} is the same process as before"))
def same_process(running: Stack, seen: dict[str, Any], daemon: str) -> None:
    assert _pid(running, daemon) == seen["pids"][daemon]


@then("reading 6 lines of the worker's log is answered 400 and reading 5 is answered 200")
def log_lines_bound(running: Stack) -> None:
    statuses = [running.hive_admin.get(f"/v1/workers/{WORKER}/logs?lines={lines}").status for lines in (6, 5)]
    assert statuses == [400, 200]


@when(parsers.parse("log_level of the {daemon} becomes warning and SIGHUP is sent to it"))
def silence(running: Stack, daemon: str) -> None:
    _configure(running, daemon, {"log_level": "warning"})
    subprocess.run(["kill", "-HUP", str(_pid(running, daemon))], check=True)


@then(parsers.parse("authenticated requests to the {daemon} soon leave no INFO record"))
def no_info_records(running: Stack, daemon: str) -> None:
    # a reload at this level leaves no record to wait for: its effect is awaited
    until(lambda: not _leaves_info(running, daemon), 10, 0.1)


@then(parsers.parse("an authenticated request to the {daemon} leaves an INFO record"))
def info_record(running: Stack, daemon: str) -> None:
    assert _leaves_info(running, daemon)


def _leaves_info(stack: Stack, daemon: str) -> bool:
    process = daemons.process_of(stack, daemon)
    before = len(process.log)
    asks, refused = (caller(stack, daemon, token) for token in (stack.tokens[ACCEPTED[daemon]], "wrong"))
    answer = asks.get(ROUTES[daemon])
    assert answer.status == 200
    # the WARNING of a second request comes after whatever the first one left
    second = refused.get(ROUTES[daemon]).headers["X-Correlation-Id"]
    process.wait_log(lambda line: " WARNING " in line and second in line, start=before)
    first = answer.headers["X-Correlation-Id"]
    return any(" INFO " in line and first in line for line in process.log[before:])


@when(parsers.parse('the file of the {daemon} gets the line "{line}" and it is told to reload'))
def spoil(running: Stack, seen: dict[str, Any], daemon: str, line: str) -> None:
    try:
        path = _configure(running, daemon, yaml.safe_load(line))
    except yaml.YAMLError:
        path = _configure(running, daemon, {})
        path.write_text(path.read_text() + line + "\n")
    seen.update(record=_reload(running, daemon), file=path)


@then(parsers.parse('the log of the {daemon} says that the reload is refused, names the file, its line and "{field}"'))
def refusal_named(seen: dict[str, Any], field: str) -> None:
    assert " ERROR " in seen["record"]
    assert "reload refused, the old configuration stays in force" in seen["record"]
    assert re.search(re.escape(str(seen["file"])) + r":\d+: ", seen["record"])
    assert field in seen["record"]


@then(parsers.parse("the {daemon} still answers with the tokens that it had"))
def still_serves(running: Stack, daemon: str) -> None:
    assert caller(running, daemon, running.tokens[ACCEPTED[daemon]]).get(ROUTES[daemon]).status == 200
    assert caller(running, daemon, "wrong").get(ROUTES[daemon]).status == 401


# what is wrong


@given(parsers.parse('the file {file} says "{line}"'))
def file_says(stack: Stack, seen: dict[str, Any], file: str, line: str) -> None:
    over = yaml.safe_load(line)
    if file.startswith("workers/"):
        stack.define_worker(WORKER, "tiny-tensor", **over)
    else:
        config = {"queen.yaml": stack.queen_config, "hive.yaml": stack.hive_config, "worker.yaml": stack.worker_config}
        config[file].update(merged(config[file], over))
    seen["file"] = stack.config_dir / file


@given("the definition of the worker names no model")
def no_model(stack: Stack) -> None:
    (stack.config_dir / "workers" / f"{WORKER}.yaml").write_text("slots: 2\n")


@then(parsers.parse('the record names the line in the file {file}, the field {field} and "{words}"'))
def fault_named(stack: Stack, seen: dict[str, Any], file: str, field: str, words: str) -> None:
    line = re.search(re.escape(str(stack.config_dir / file)) + r":(\d+): ", seen["record"])
    assert line, seen["record"]
    assert 1 <= int(line[1]) <= len((stack.config_dir / file).read_text().splitlines())
    assert f" {field}: " in seen["record"]
    assert f"field={field}" in seen["record"]
    assert words in seen["record"]


@then("it has error_kind=config_validation_failed")
def kind_named(seen: dict[str, Any]) -> None:
    assert "error_kind=config_validation_failed" in seen["record"]


@then(parsers.parse('the record says "{words}"'))
@then(parsers.parse('the record names "{words}"'))
def record_says(seen: dict[str, Any], words: str) -> None:
    assert words in seen["record"]


@then(parsers.parse('"{secret}" is nowhere in its log'))
def secret_absent(seen: dict[str, Any], secret: str) -> None:
    assert secret not in seen["process"].text


# examples


def _defaults(kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Every key of a configuration with its default; None for one that is required."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(kind):
        default = (
            field.default_factory()
            if field.default is msgspec.NODEFAULT and callable(field.default_factory)
            else field.default
        )
        if isinstance(default, msgspec.Struct):
            found[field.encode_name] = _defaults(type(default))
        else:
            found[field.encode_name] = None if default is msgspec.NODEFAULT else msgspec.to_builtins(default)
    return found


@then(parsers.parse("docs/examples/{file} has every key that {struct} knows, each with its default"))
def example_is_whole(seen: dict[str, Any], file: str, struct: str) -> None:
    module, _, name = struct.rpartition(".")
    wanted = _defaults(getattr(importlib.import_module(module), name))
    seen["text"] = (CHECKOUT / "docs/examples" / file).read_text()
    found = yaml.safe_load(seen["text"])
    if "model" in wanted:
        assert found["model"]
        wanted["model"] = found["model"]
    assert found == wanted


@then("each of its sections and keys stands under a comment")
def example_is_commented(seen: dict[str, Any]) -> None:
    lines = seen["text"].splitlines()
    assert lines[0].startswith("#")
    explained = ""  # the indentation under which the last comment stands
    for line in lines:
        if line.lstrip().startswith("#"):
            explained = line[: len(line) - len(line.lstrip())] + "#"
        elif line.strip():
            # a key may share the comment of the one above it
            assert explained, f"no comment above: {line}"
        else:
            explained = ""


@when(parsers.parse("rbee-{daemon} checks docs/examples/{file}"))
def check_example(seen: dict[str, Any], daemon: str, file: str) -> None:
    command = [sys.executable, "-m", f"rbee.{daemon}.main", "--check-config", "--config"]
    path = str(CHECKOUT / "docs/examples" / file)
    seen["done"] = subprocess.run([*command, path], capture_output=True, text=True, timeout=60, check=False)


@then("it exits 0 and says good")
def is_good(seen: dict[str, Any]) -> None:
    assert seen["done"].returncode == 0, seen["done"].stderr
    assert ": good" in seen["done"].stdout


# one chain


@when("it is told to reload, once with a good file and once with a bad one")
def reload_twice(stack: Stack, seen: dict[str, Any]) -> None:
    process = seen["process"]
    daemon = next(name for name in daemons.DAEMONS if f" {name}: configuration read" in process.text)
    seen.update(daemon=daemon, chain=[_read_record(process)])
    for over, wanted in (({}, " reloaded "), ({"no_such_key": 1}, "reload refused")):
        _configure(stack, daemon, over)
        process.process.send_signal(1)
        seen["chain"].append(process.wait_log(wanted))


@then("the records of the load and of both reloads have the same correlation id")
def same_chain(seen: dict[str, Any]) -> None:
    ids = [CORRELATION.search(record) for record in seen["chain"]]
    assert all(ids), seen["chain"]
    assert len({found[1] for found in ids if found}) == 1
    seen["id"] = ids[0][1] if ids[0] else ""


@then(parsers.parse("a second life of the {daemon} has another one"))
def another_chain(stack: Stack, own: list[DaemonProcess], seen: dict[str, Any], daemon: str) -> None:
    seen["process"].stop()
    found = CORRELATION.search(_read_record(_start(stack, own, daemon)))
    assert found
    assert found[1] != seen["id"]
