"""Steps of features/secrets.feature."""

import copy
import pickle
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee.host.credentials import load_secret
from rbee.wire.auth import fingerprint
from tests.behaviour.support import daemons
from tests.behaviour.support.daemons import ACCEPTED, DAEMONS, WORKER, Clock
from tests.behaviour.support.http import Http, until
from tests.behaviour.support.processes import DaemonProcess
from tests.behaviour.support.stack import Stack

scenarios("features/secrets.feature")

CHECKOUT = Path(__file__).resolve().parents[2]
# what takes from root the right to read what modes forbid
NO_OVERRIDE = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
SIGNS = {"LF": "\n", "CR": "\r", "TAB": "\t", "SPACE": " ", "NOTHING": ""}


@pytest.fixture
def seen() -> dict[str, object]:
    """What a scenario's steps hand on."""
    return {}


@pytest.fixture
def own(stack: Stack) -> Iterator[list[DaemonProcess]]:
    """Daemons that a scenario starts by itself; ended with it."""
    started: list[DaemonProcess] = []
    yield started
    for process in started:
        process.stop()


@pytest.fixture(scope="module")
def debug_stack(models: Path) -> Iterator[Stack]:
    """Queen, hive and a worker at log level debug, for the scenarios of this module."""
    made = Stack(models)
    for config in (made.queen_config, made.hive_config, made.worker_config):
        config["log_level"] = "debug"
    try:
        made.start()
        made.run_worker(WORKER, "tiny-tensor", slots=8)
        yield made
    finally:
        made.close()


@given("queen, hive and a worker run at log level debug", target_fixture="running")
def running(debug_stack: Stack) -> Stack:
    return debug_stack


# files


@given(parsers.parse("the token file of the {daemon} has mode {mode}"))
def file_has_mode(stack: Stack, seen: dict[str, object], daemon: str, mode: str) -> None:
    name = ACCEPTED[daemon]
    stack.write_token(name, stack.tokens[name], int(mode, 8))
    seen.update(daemon=daemon, file=stack.token_file(name), values=[stack.tokens[name]], token=stack.tokens[name])


@given(parsers.parse("the token file of the {daemon} is missing"))
def file_is_missing(stack: Stack, seen: dict[str, object], daemon: str) -> None:
    stack.token_file(ACCEPTED[daemon]).unlink()
    seen.update(daemon=daemon, file=stack.token_file(ACCEPTED[daemon]))


@given(parsers.parse("the token file of the {daemon} holds {content}"))
def file_holds(stack: Stack, seen: dict[str, object], daemon: str, content: str) -> None:
    text = content.format(**SIGNS)
    path = stack.token_file(ACCEPTED[daemon])
    path.write_bytes(text.encode())
    seen.update(daemon=daemon, file=path, values=[line for line in text.splitlines() if line.strip()])


@when(parsers.parse("the {daemon} is started"))
def start(stack: Stack, seen: dict[str, object], own: list[DaemonProcess], daemon: str) -> None:
    _start(stack, seen, own, daemon, ())


@when(parsers.parse("the {daemon} is started by a user who may not override modes"))
def start_without_override(stack: Stack, seen: dict[str, object], own: list[DaemonProcess], daemon: str) -> None:
    _start(stack, seen, own, daemon, NO_OVERRIDE)


def _start(
    stack: Stack, seen: dict[str, object], own: list[DaemonProcess], daemon: str, through: tuple[str, ...]
) -> None:
    stack.hive_config["queen"] = {"callback_url": None}
    stack.define_worker(WORKER, "tiny-tensor")
    seen["process"] = process = daemons.start_alone(stack, daemon, through=through)
    own.append(process)


def process_of(seen: dict[str, object]) -> DaemonProcess:
    process = seen["process"]
    assert isinstance(process, DaemonProcess)
    return process


@then("it is ready")
def is_ready(seen: dict[str, object]) -> None:
    process_of(seen).wait_ready()


@then(parsers.parse("it ends with exit code {code:d}"))
def ends_with(seen: dict[str, object], code: int) -> None:
    assert process_of(seen).wait_end() == code
    process_of(seen).wait_log("event=startup_failed")


@then(parsers.parse("the log names the file, {found} as found and {expected} as expected"))
def names_modes(seen: dict[str, object], found: str, expected: str) -> None:
    line = process_of(seen).wait_log("event=startup_failed")
    assert str(seen["file"]) in line
    assert f"mode {found} found" in line
    assert f"{expected} or 0400 expected" in line


@then(parsers.parse('the log names the file and says "{words}"'))
def names_file(seen: dict[str, object], words: str) -> None:
    line = process_of(seen).wait_log("event=startup_failed")
    assert str(seen["file"]) in line
    assert words in line


@then("the value of the token is not in its log")
@then("no line of the file is in its log")
def value_not_logged(seen: dict[str, object]) -> None:
    values = seen["values"]
    assert isinstance(values, list)
    for value in values:
        assert value not in process_of(seen).text


def _asks(stack: Stack, daemon: str, token: str) -> int:
    """The status that a daemon started alone gives to a caller with ``token``."""
    route = {"queen": "/v2/workers/list", "hive": "/v1/workers/list", "worker": "/v1/ready"}[daemon]
    url = {"queen": stack.queen_url, "hive": stack.hive_url}.get(daemon)
    if url is None:
        facts = (stack.run_dir / "workers" / WORKER / "worker.json").read_text()
        url = facts.partition('"url":"')[2].partition('"')[0]
    return Http(url, token).get(route).status


@then("a caller with that token is answered 200")
def that_token_works(stack: Stack, seen: dict[str, object]) -> None:
    assert _asks(stack, str(seen["daemon"]), str(seen["token"])) == 200


@then(parsers.parse('a caller with the token "{token}" is answered 200'))
def token_works(stack: Stack, seen: dict[str, object], token: str) -> None:
    assert _asks(stack, str(seen["daemon"]), token) == 200


# in memory


@given("a secret read from a file as the daemons read it")
def read_a_secret(stack: Stack, seen: dict[str, object]) -> None:
    seen["secret"] = load_secret(stack.token_file("api_token"))


@when("an exception passes a frame that holds it, and its traceback is written with every local variable")
def trace_with_locals(seen: dict[str, object]) -> None:
    def frame(secret: object) -> None:
        held = {"token": secret, "more": [secret]}
        raise RuntimeError(f"failed with {held}")

    with pytest.raises(RuntimeError) as caught:
        frame(seen["secret"])
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    seen["traceback"] = "".join(shown.format())


@then("the traceback has its fingerprint and not its value")
def traceback_is_clean(stack: Stack, seen: dict[str, object]) -> None:
    value = stack.tokens["api_token"]
    assert f"secret = <{fingerprint(value)}>" in str(seen["traceback"])
    assert value not in str(seen["traceback"])


@then("neither its repr, its str nor a format of it has the value, and it cannot be pickled")
def never_shown(stack: Stack, seen: dict[str, object]) -> None:
    secret, value = seen["secret"], stack.tokens["api_token"]
    for text in (repr(secret), str(secret), f"{secret}", f"{[secret]!r}", "%s" % (secret,)):  # noqa: UP031
        assert value not in text
    for spread in (pickle.dumps, copy.deepcopy):
        with pytest.raises(TypeError, match="a secret is not pickled"):
            spread(secret)


@then("docs/security.md says that Python cannot wipe a token from memory")
def documented() -> None:
    assert "Python cannot wipe a string from memory" in (CHECKOUT / "docs/security.md").read_text()


@then("no text of the project claims that a secret is zeroized")
def not_claimed() -> None:
    texts = [
        path for folder in ("daemons", "docs", "units") for path in (CHECKOUT / folder).rglob("*") if path.is_file()
    ]
    texts += list(CHECKOUT.glob("*.md"))
    claiming = [path for path in texts if path.suffix != ".pyc" and b"zeroi" in path.read_bytes().lower()]
    assert claiming == []


# what is written


@when("100 requests come, half of them with a wrong token, and one of them fails inside a worker")
def hundred_requests(running: Stack, seen: dict[str, object]) -> None:
    right = running.tokens["api_token"]
    seen["wrong"] = wrong = right[::-1]
    statuses = [Http(running.queen_url, token).get("/v2/workers/list").status for token in (right, wrong) * 49]
    broken = {"inputs": [{"name": "x", "shape": [1, 9], "datatype": "FP32", "data": [0] * 9}]}
    statuses.append(running.client.post("/v2/models/tiny-tensor/infer", broken).status)
    statuses.append(running.client.post("/v2/models/tiny-tensor/infer", daemons.TENSOR).status)
    assert statuses == [200, 401] * 49 + [400, 200]


@then("no token is in the log of queen, hive or worker")
def no_token_in_logs(running: Stack, seen: dict[str, object]) -> None:
    text = daemons.whole_log(running)
    assert all(f" {daemon}: " in text for daemon in DAEMONS)
    for token in (*running.tokens.values(), str(seen["wrong"])):
        assert token not in text


@then("no token is in any file but the token files")
def no_token_in_files(running: Stack, seen: dict[str, object]) -> None:
    files = [path for path in running.folder.rglob("*") if path.is_file() and path.parent.name != "tokens"]
    assert len(files) > 4
    for path in files:
        content = path.read_bytes()
        for token in (*running.tokens.values(), str(seen["wrong"])):
            assert token.encode() not in content, path


@then("no token is in the arguments or the environment of a process")
def no_token_in_processes(running: Stack) -> None:
    assert running.queen is not None
    assert running.hive is not None
    for pid in (running.queen.pid, running.hive.pid, running.row(WORKER)["pid"]):
        for part in ("cmdline", "environ"):
            content = Path(f"/proc/{pid}/{part}").read_bytes()
            assert content
            for token in running.tokens.values():
                assert token.encode() not in content


@when("wrong tokens that differ in the first character, in the last one, and in length are tried in turn")
def time_wrong_tokens(running: Stack, seen: dict[str, object]) -> None:
    right = running.tokens["api_token"]
    other = {"a": "b"}
    wrong = (
        other.get(right[0], "a") + right[1:],
        right[:-1] + other.get(right[-1], "a"),
        right[: len(right) // 2],
        right * 2,
    )
    clocks = [Clock(running.queen_url, "/v2/workers/list", f"Bearer {token}") for token in wrong]
    seen["times"] = daemons.interleaved([(clock, 401) for clock in clocks], 5, 60)
    for clock in clocks:
        clock.close()


@then("the typical times of any two are less than 10 % apart")
def times_tell_nothing(seen: dict[str, object]) -> None:
    times = seen["times"]
    assert isinstance(times, list)
    for one, other in combinations(times, 2):
        assert daemons.typical_difference(one, other) < 0.10


# reload


def _pid(running: Stack, daemon: str) -> int:
    if daemon == "worker":
        return int(running.row(WORKER)["pid"])
    return daemons.process_of(running, daemon).pid


def _hang_up(running: Stack, daemon: str) -> None:
    """Send SIGHUP and wait for the record of what came of it."""
    process = daemons.process_of(running, daemon)
    before = len(process.log)
    subprocess.run(["kill", "-HUP", str(_pid(running, daemon))], check=True)
    ends = (f" {daemon}: reloaded", f" {daemon}: reload refused")
    process.wait_log(lambda line: any(end in line for end in ends), start=before)


def _replace(running: Stack, name: str, value: str) -> None:
    running.tokens[name] = value
    running.write_token(name, value)


@when(parsers.parse("the token of the {daemon} is replaced and SIGHUP is sent to it"))
def replace_token(running: Stack, seen: dict[str, object], daemon: str) -> None:
    name = ACCEPTED[daemon]
    old, new = running.tokens[name], f"new-{running.tokens[name]}"
    seen.update(daemon=daemon, pid=_pid(running, daemon), old=old, new=new)
    _replace(running, name, new)
    _hang_up(running, daemon)


@then(parsers.parse("callers of the {daemon} with the old token are answered 401 and with the new one 200"))
def new_token_in_force(running: Stack, seen: dict[str, object], daemon: str) -> None:
    route = {"queen": "/v2/workers/list", "hive": "/v1/workers/list", "worker": "/v1/ready"}[daemon]
    url = daemons.url_of(running, daemon)
    assert Http(url, str(seen["old"])).get(route).status == 401
    assert Http(url, str(seen["new"])).get(route).status == 200


@then(parsers.parse("the {daemon} is the same process as before"))
def same_process(running: Stack, seen: dict[str, object], daemon: str) -> None:
    assert _pid(running, daemon) == seen["pid"]


@then("its log says that it reloaded and has neither value")
def reload_logged(running: Stack, seen: dict[str, object]) -> None:
    daemons.wait_record(running, str(seen["daemon"]), " INFO ", "reloaded")
    text = daemons.whole_log(running)
    assert str(seen["old"]) not in text
    assert str(seen["new"]) not in text


@when("worker_api_token is replaced and queen, hive and worker are told to reload")
def replace_everywhere(running: Stack) -> None:
    _replace(running, "worker_api_token", f"again-{running.tokens['worker_api_token']}")
    for daemon in DAEMONS:
        _hang_up(running, daemon)


@then("inference through the queen works")
def inference_works(running: Stack) -> None:
    answer = running.client.post("/v2/models/tiny-tensor/infer", daemons.TENSOR)
    assert answer.status == 200, answer.body


@when("hive_callback_token is replaced and the queen is told to reload")
def replace_for_the_queen(running: Stack, seen: dict[str, object]) -> None:
    seen["alerts"] = len(daemons.records(running, "hive", " ALERT "))
    _replace(running, "hive_callback_token", f"next-{running.tokens['hive_callback_token']}")
    _hang_up(running, "queen")


@then(parsers.parse("the hive writes one ALERT that says: {advice}"))
def alert_says(running: Stack, seen: dict[str, object], advice: str) -> None:
    until(lambda: len(daemons.records(running, "hive", " ALERT ")) > int(str(seen["alerts"])), 30)
    assert advice in daemons.records(running, "hive", " ALERT ")[-1]


@then(parsers.parse("in the next {seconds:d} s the queen refuses at most {most:d} requests of the hive"))
def calm(running: Stack, seconds: int, most: int) -> None:
    def refused() -> int:
        return len(daemons.records(running, "queen", "authentication failed"))

    before = refused()
    time.sleep(seconds)  # a span in which nothing may happen cannot be waited for otherwise
    assert refused() - before <= most


@when("the hive is told to reload")
def reload_the_hive(running: Stack) -> None:
    _hang_up(running, "hive")


@then("the hive is healthy again, with its worker known to the queen")
def healthy_again(running: Stack) -> None:
    caller = daemons.caller(running, "hive", running.tokens["hive_api_token"])
    until(lambda: caller.get("/v1/health").json["callback"]["status"] == "ok", 30)
    assert running.row(WORKER)["state"] == "idle"


@then("the hive has written no second ALERT")
def no_second_alert(running: Stack, seen: dict[str, object]) -> None:
    assert len(daemons.records(running, "hive", " ALERT ")) == int(str(seen["alerts"])) + 1


@when("the token file of the queen is made readable to all and SIGHUP is sent to it")
def spoil_token(running: Stack, seen: dict[str, object]) -> None:
    seen["old"] = running.tokens["api_token"]
    running.write_token("api_token", "a-token-that-came-to-light", 0o644)
    _hang_up(running, "queen")
    running.write_token("api_token", running.tokens["api_token"])


@then("the log says that the reload is refused and names the file")
def refused_reload(running: Stack) -> None:
    daemons.wait_record(running, "queen", " ERROR ", "reload refused", str(running.token_file("api_token")), "0644")
    assert "a-token-that-came-to-light" not in daemons.whole_log(running)


@then("callers of the queen with the old token are still answered 200")
def old_token_in_force(running: Stack, seen: dict[str, object]) -> None:
    assert Http(running.queen_url, str(seen["old"])).get("/v2/workers/list").status == 200


# one token a hop


@when('"rbee credentials init" is run twice on an empty folder')
def init_twice(tmp_path: Path, seen: dict[str, object]) -> None:
    folder = tmp_path / "credstore"
    command = [sys.executable, "-m", "rbee.keeper.main", "credentials", "init", "--dir", str(folder)]
    runs, contents = [], []
    for _ in range(2):
        runs.append(subprocess.run(command, capture_output=True, text=True, timeout=60, check=False))
        contents.append({path.name: path.read_text() for path in folder.iterdir()})
    seen.update(folder=folder, runs=runs, contents=contents)


@then("it exits 0 both times")
def exited_well(seen: dict[str, object]) -> None:
    runs = seen["runs"]
    assert isinstance(runs, list)
    assert [run.returncode for run in runs] == [0, 0], runs


@then("there are four files of mode 0600, each with a token of its own")
def four_files(seen: dict[str, object]) -> None:
    folder = seen["folder"]
    assert isinstance(folder, Path)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    tokens = {load_secret(path).reveal() for path in folder.iterdir()}
    assert len(tokens) == len(list(folder.iterdir())) == 4
    assert min(map(len, tokens)) >= 32


@then("none of the tokens was printed, and the second run changed nothing")
def nothing_printed(seen: dict[str, object]) -> None:
    runs, contents = seen["runs"], seen["contents"]
    assert isinstance(runs, list)
    assert isinstance(contents, list)
    assert contents[0] == contents[1]
    for run in runs:
        assert not any(content.strip() in run.stdout + run.stderr for content in contents[0].values())


@then("each token opens only the door that it is for:")
def one_door_each(running: Stack, datatable: list[list[str]]) -> None:
    doors = [(cell.split(" ")[1], cell.rpartition(" ")[2]) for cell in datatable[0][1:]]
    found, wanted = {}, {}
    for token, *statuses in datatable[1:]:
        for (path, daemon), status in zip(doors, statuses, strict=True):
            wanted[token, path] = int(status)
            with Http(daemons.url_of(running, daemon), running.tokens[token]).stream("GET", path) as answer:
                found[token, path] = answer.status
    assert found == wanted
    # the session that was opened here is closed again
    until(lambda: any("session closed hive=x" in line for line in daemons.process_of(running, "queen").log))
