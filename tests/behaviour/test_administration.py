"""Steps of features/administration.feature."""

import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee.wire.auth import fingerprint
from tests.behaviour.support import fake_gpu
from tests.behaviour.support.house import TOKEN_FILES, House
from tests.behaviour.support.http import Http, until

scenarios("features/administration.feature")

EXAMPLES = Path(__file__).resolve().parents[2] / "docs/examples"
STRANGE = "a-token-that-nobody-knows"
HIVE = {"queen": {"callback_url": "http://127.0.0.1:8080"}}
GIB = 1 << 30
PORTS = {"rbee-queen": 8080, "rbee-hive": 9200}


@pytest.fixture
def seen() -> dict[str, Any]:
    """What a scenario's steps hand on."""
    return {}


@given("queen and hive run as units of a real systemd", target_fixture="house")
def running(shared_house: House, seen: dict[str, Any]) -> House:
    seen["lives"] = {unit: _life(shared_house, unit) for unit in PORTS}
    return shared_house


@pytest.fixture
def mended(shared_house: House) -> Iterator[None]:
    """The configuration as it was, in force again after the scenario."""
    yield
    shared_house.machine.path("/etc/rbee/queen.yaml").unlink(missing_ok=True)
    shared_house.machine.path("/etc/rbee/worker.yaml").unlink(missing_ok=True)
    shared_house.configure("hive", HIVE)
    shared_house.machine.systemctl("restart", *PORTS)


def _life(house: House, unit: str) -> tuple[str, str]:
    properties = house.machine.unit(f"{unit}.service")
    return properties["InvocationID"], properties["MainPID"]


def _tcp(house: House, port: int, token: str | None) -> Http:
    return Http(lambda timeout_s: house.machine.connect(port, timeout_s), token)


def _record(house: House, unit: str, message: str, **fields: str) -> dict[str, Any]:
    """Wait for a record of the unit whose message begins like this and that has these fields."""

    def there() -> dict[str, Any] | None:
        for record in house.machine.journal(unit, *(f"{name}={value}" for name, value in fields.items())):
            if str(record["MESSAGE"]).startswith(message):
                return record
        return None

    found = until(there, 20, 0.2)
    assert isinstance(found, dict)
    return found


# credentials


@then(parsers.parse("the credential {name} of {unit} has mode 0400 or the 0440 by which systemd's access list shows"))
def credential_mode(house: House, seen: dict[str, Any], name: str, unit: str) -> None:
    seen["credential"] = path = f"/run/credentials/{unit}.service/{name}"
    seen["unit"] = unit
    mode = house.machine.run(["stat", "--format=%a", path]).stdout.strip()
    assert mode in ("400", "440")


@then("nobody but root and the unit's own user can read it")
def credential_readers(house: House, seen: dict[str, Any]) -> None:
    users = ("rbee-queen", "rbee-hive", "rbee-worker", "nobody")
    readers = {
        user for user in users if not house.machine.run(["cat", seen["credential"]], user=user, check=False).returncode
    }
    assert readers == {seen["unit"]}


@then(parsers.parse("the unit accepts it: GET {path} on port {port:d} is answered 200 with it and 401 without"))
def credential_accepted(house: House, seen: dict[str, Any], path: str, port: int) -> None:
    token = house.machine.read(seen["credential"]).strip()
    assert _tcp(house, port, token).get(path).status == 200
    assert _tcp(house, port, None).get(path).status == 401


@then("the credentials of the units are exactly these:")
def credentials_listed(house: House, datatable: list[list[str]]) -> None:
    for unit, names in datatable[1:]:
        folder = house.machine.path(f"/run/credentials/{unit}.service")
        assert sorted(path.name for path in folder.iterdir()) == names.split()


@then("the four files in /etc/credstore are root's, of mode 0600, and differ")
def files_differ(house: House) -> None:
    paths = [house.machine.path(path) for path in TOKEN_FILES.values()]
    assert {(path.stat().st_uid, path.stat().st_mode & 0o777) for path in paths} == {(0, 0o600)}
    assert len({path.read_text() for path in paths}) == 4


# records


@when("the queen is asked with a token that nobody knows")
def ask_strange(house: House, seen: dict[str, Any]) -> None:
    seen.update(token=STRANGE, answer=_tcp(house, 8080, STRANGE).get("/v2/workers/list"))


@when("the queen is asked with her token")
def ask_right(house: House, seen: dict[str, Any]) -> None:
    seen.update(token=house.token("api_token"), answer=house.client.get("/v2/workers/list"))


@then(parsers.parse("the answer is {status:d}"))
def status_is(seen: dict[str, Any], status: int) -> None:
    assert seen["answer"].status == status


@then(parsers.parse('the journal of {unit} has a record of priority {priority} "{message}" with these fields:'))
def journal_has(
    house: House, seen: dict[str, Any], unit: str, priority: str, message: str, datatable: list[list[str]]
) -> None:
    answer = seen["answer"]
    record = _record(house, unit, message, RBEE_CORRELATION_ID=answer.headers["X-Correlation-Id"])
    assert record["PRIORITY"] == priority
    for field, wanted in datatable:
        if wanted == "some time":
            assert int(record[field]) > 1_700_000_000_000_000
        else:
            known = {
                "the token's fingerprint": lambda: fingerprint(seen["token"]),
                "the answer's code": lambda: answer.error["code"],
            }
            assert record[field] == (known[wanted]() if wanted in known else wanted)


@then("neither token is anywhere in the journal")
def journal_is_clean(house: House, seen: dict[str, Any]) -> None:
    text = str(house.machine.journal())
    for token in (seen["token"], *map(house.token, TOKEN_FILES)):
        assert token not in text


@when("a worker that is defined with a model that cannot be loaded is asked for through the queen")
def ask_for_broken(house: House, seen: dict[str, Any]) -> None:
    house.machine.write("/var/lib/rbee/models/broken/model.onnx", b"\x08\x08 this is no model")
    house.define_worker("broken", "broken")
    until(lambda: "broken" in house.rows(), 20)
    seen["answer"] = house.client.post("/v2/models/broken/infer", {"inputs": []})


@then("the answer is of class 5xx")
def server_error(seen: dict[str, Any]) -> None:
    assert 500 <= seen["answer"].status < 600, seen["answer"].body


# reload


def _put_token(house: House, seen: dict[str, Any], name: str) -> None:
    seen.update(old=house.token(name), new=f"rotated-{uuid.uuid4()}")
    house.machine.write(TOKEN_FILES[name], f"{seen['new']}\n", 0o600)


@when("/etc/credstore/rbee-queen.api_token is replaced and rbee-queen is reloaded by systemctl")
def replace_token(house: House, seen: dict[str, Any]) -> None:
    _put_token(house, seen, "api_token")
    house.machine.systemctl("reload", "rbee-queen")


@then("the queen answers the old token with 401 and the new one with 200")
def token_in_force(house: House, seen: dict[str, Any]) -> None:
    # ExecReload sends a signal: the daemon takes it in after systemctl has returned
    until(lambda: _tcp(house, 8080, seen["new"]).get("/v2/workers/list").status == 200)
    assert _tcp(house, 8080, seen["old"]).get("/v2/workers/list").status == 401


@then(parsers.parse("{unit} is still in the same life"))
def same_life(house: House, seen: dict[str, Any], unit: str) -> None:
    assert _life(house, unit) == seen["lives"][unit]


@then("the journal says that it reloaded and has neither value")
def reload_recorded(house: House, seen: dict[str, Any]) -> None:
    _record(house, "rbee-queen", "configuration reloaded")
    _record(house, "rbee-queen", "reloaded")
    text = str(house.machine.journal())
    assert seen["old"] not in text
    assert seen["new"] not in text


@when(
    'hive.yaml gets "limits: {log_lines: 5}" and "log_level: warning", a new hive_api_token is put down, '
    "and rbee-hive is reloaded by systemctl"
)
def reload_hive(house: House, seen: dict[str, Any], mended: None) -> None:
    _put_token(house, seen, "hive_api_token")
    house.configure("hive", {**HIVE, "limits": {"log_lines": 5}, "log_level": "warning"})
    house.machine.systemctl("reload", "rbee-hive")


@then("the hive refuses to read 6 lines of a log and knows the new token")
def hive_limits(house: House, seen: dict[str, Any]) -> None:
    hive = _tcp(house, 9200, seen["new"])
    until(lambda: hive.get("/v1/workers/list").status == 200)
    worker = next(iter(house.hive_rows()), None) or _some_worker(house)
    assert [hive.get(f"/v1/workers/{worker}/logs?lines={lines}").status for lines in (6, 5)] == [400, 200]


def _some_worker(house: House) -> str:
    house.define_worker("some", "tiny-tensor")
    until(lambda: "some" in house.hive_rows(), 20)
    return "some"


@then("an authenticated request leaves no INFO record while a refused one leaves a WARNING")
def quieter(house: House, seen: dict[str, Any]) -> None:
    accepted, refused = (_tcp(house, 9200, token).get("/v1/workers/list") for token in (seen["new"], STRANGE))
    assert (accepted.status, refused.status) == (200, 401)
    correlation = refused.headers["X-Correlation-Id"]
    _record(house, "rbee-hive", "authentication failed", RBEE_CORRELATION_ID=correlation)
    match = f"RBEE_CORRELATION_ID={accepted.headers['X-Correlation-Id']}"
    assert house.machine.journal("rbee-hive", match) == []


@when('queen.yaml gets the line "log_level: louder" and rbee-queen is reloaded by systemctl')
def spoil_queen(house: House, mended: None) -> None:
    house.machine.write("/etc/rbee/queen.yaml", "log_level: louder\n")
    house.machine.systemctl("reload", "rbee-queen")


@when("queen.yaml is mended and rbee-queen is reloaded by systemctl")
def mend_queen(house: House) -> None:
    house.machine.write("/etc/rbee/queen.yaml", "log_level: info\n")
    house.machine.systemctl("reload", "rbee-queen")


@then(parsers.parse('the status of rbee-queen says "{words}" and names {field}'))
@then(parsers.parse('the status of rbee-queen says "{words}"'))
def status_says(house: House, words: str, field: str = "") -> None:
    def said() -> bool:
        status = house.machine.unit("rbee-queen.service")["StatusText"]
        return words in status and field in status

    until(said)


@then("the journal says that the old configuration stays in force")
def refusal_recorded(house: House) -> None:
    record = _record(house, "rbee-queen", "reload refused, the old configuration stays in force")
    assert record["PRIORITY"] == "3"
    assert "log_level" in record["RBEE_WHY"]


# examples


@when("the shipped examples lie in /etc/rbee")
def lay_examples(house: House, mended: None) -> None:
    house.machine.put(EXAMPLES, "/etc/rbee")


@then("rbee-queen, rbee-hive and rbee-worker check them and say good")
def examples_are_good(house: House) -> None:
    for command in (["rbee-queen"], ["rbee-hive"], ["rbee-worker", "--id", "minilm"]):
        assert ": good" in house.machine.run([*command, "--check-config"]).stdout


@then("queen and hive run with them, and the worker that they define gets ready")
def examples_run(house: House) -> None:
    house.machine.systemctl("restart", *PORTS)
    house.start_worker("minilm")
    assert house.machine.unit("rbee-worker@minilm.service")["StatusText"].startswith("ready: all-minilm-l6-v2 (embed)")
    for unit in PORTS:
        record = _record(house, unit, "configuration read", _SYSTEMD_INVOCATION_ID=_life(house, unit)[0])
        assert record["RBEE_FILE"] == f"/etc/rbee/{unit.removeprefix('rbee-')}.yaml"
    house.machine.systemctl("stop", "rbee-worker@minilm")


# a fake GPU


@given("the hive's machine has a fake driver library with two fake GPUs")
def install_fake_gpu(house: House, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    machine = house.machine
    machine.put(fake_gpu.build(tmp_path), f"/opt/fake-gpu/{fake_gpu.LIBRARY}")
    machine.write("/opt/fake-gpu/used", f"{GIB} {3 * GIB}")
    machine.write("/dev/nvidiactl", "a fake: the hive looks for a driver here\n")
    drop_in = "/etc/systemd/system/rbee-hive.service.d/fake-gpu.conf"
    environment = "LD_LIBRARY_PATH=/opt/fake-gpu FAKE_GPU_USED=/opt/fake-gpu/used"
    machine.write(drop_in, f"[Service]\nEnvironment={environment}\n")
    house.configure("hive", {**HIVE, "heartbeat_interval_s": 0.3})

    def restart() -> None:
        machine.systemctl("daemon-reload")
        machine.systemctl("restart", "rbee-hive")

    def remove() -> None:
        machine.path(drop_in).unlink()
        machine.path("/dev/nvidiactl").unlink()
        house.configure("hive", HIVE)
        restart()

    request.addfinalizer(remove)
    restart()


def _gauge(house: House, name: str, gpu: str) -> float:
    return house.hive_admin.metric(f"rbee_hive_gpu_memory_{name}_bytes", gpu=gpu)


@then("rbee_hive_gpu_memory_total_bytes is 8 GiB of GPU 0 and 16 GiB of GPU 1")
def totals(house: House) -> None:
    until(lambda: [_gauge(house, "total", gpu) for gpu in "01"] == [8 * GIB, 16 * GIB])


@then("rbee_hive_gpu_memory_used_bytes follows what the fake GPUs have in use")
def used(house: House) -> None:
    for amounts in ((GIB, 3 * GIB), (2 * GIB, 0), (0, 16 * GIB)):
        house.machine.write("/opt/fake-gpu/used", " ".join(map(str, amounts)))
        until(lambda wanted=amounts: tuple(_gauge(house, "used", gpu) for gpu in "01") == wanted)


# what its engine is


@when("the hive is asked for its capabilities")
def ask_capabilities(house: House, seen: dict[str, Any]) -> None:
    seen["asked"] = time.time()
    answer = house.hive_admin.get("/v1/capabilities")
    assert answer.status == 200, answer.body
    seen["engine"] = answer.json


@then("the row has its version, what became of each provider, the driver and the time of the probe")
def engine_row(seen: dict[str, Any]) -> None:
    engine = seen["engine"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", engine["onnxruntime_version"])
    assert engine["providers"]["CPUExecutionProvider"]["ok"] is True
    # the fake driver library has no GPU behind it
    assert engine["providers"]["CUDAExecutionProvider"]["ok"] is False
    assert engine["providers"]["CUDAExecutionProvider"]["reason"]
    assert engine["backends"] == ["cpu"]
    assert engine["driver"] == "0.0-fake"
    assert seen["asked"] - 1 <= engine["probed_at_unix"] <= time.time() + 1


@then("it lists both GPUs with name, memory and compute capability")
def engine_devices(seen: dict[str, Any]) -> None:
    first, second = seen["engine"]["devices"]
    assert [gpu["index"] for gpu in (first, second)] == [0, 1]
    assert [gpu["memory_total_bytes"] for gpu in (first, second)] == [8 * GIB, 16 * GIB]
    for gpu in (first, second):
        assert "fake" in gpu["name"].lower()
        assert re.fullmatch(r"\d+\.\d+", gpu["compute_capability"])


@when("it is asked again, and then told to look anew")
def ask_again(house: House, seen: dict[str, Any]) -> None:
    again, anew = (house.hive_admin.get(f"/v1/capabilities{query}").json for query in ("", "?refresh=1"))
    seen["times"] = [engine["probed_at_unix"] for engine in (seen["engine"], again, anew)]


@then("the time of the probe stays, and then moves on")
def probe_times(seen: dict[str, Any]) -> None:
    first, again, anew = seen["times"]
    assert first == again
    assert anew > first


# crashes


@given("a worker runs with a watchdog of 2 seconds")
def watched_worker(house: House, seen: dict[str, Any], request: pytest.FixtureRequest) -> None:
    drop_in = "/etc/systemd/system/rbee-worker@crashing.service.d/quick.conf"
    # a stopped process does not take the watchdog's SIGABRT: SIGKILL follows soon
    house.machine.write(drop_in, "[Service]\nWatchdogSec=2\nTimeoutAbortSec=1\nTimeoutStopSec=1\n")
    house.machine.systemctl("daemon-reload")
    house.run_worker("crashing", "tiny-tensor")
    seen["before"] = _crashes(house)

    def stop() -> None:
        house.machine.systemctl("stop", "rbee-worker@crashing")
        house.machine.systemctl("reset-failed", "rbee-worker@crashing", check=False)

    request.addfinalizer(stop)


def _crashes(house: House) -> float:
    return house.hive_admin.metric("rbee_hive_worker_crashes_total", model="tiny-tensor")


@when(parsers.parse("its process gets {signal}"))
def send(house: House, seen: dict[str, Any], signal: str) -> None:
    unit = house.unit("crashing")
    seen["life"] = unit["InvocationID"]
    house.machine.run(["kill", f"-{signal}", unit["MainPID"]])


@then("the hive's crash counter for its model grows")
def crash_counted(house: House, seen: dict[str, Any]) -> None:
    until(lambda: _crashes(house) > seen["before"], 30)


@then(parsers.parse("the journal of rbee-hive has a record of it with RBEE_RESULT={result}"))
def crash_recorded(house: House, seen: dict[str, Any], result: str) -> None:
    fields = {"RBEE_WORKER": "crashing", "RBEE_INVOCATION_ID": seen["life"], "RBEE_RESULT": result}
    record = _record(house, "rbee-hive", "worker failed", **fields)
    assert record["PRIORITY"] == "4"
