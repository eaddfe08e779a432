"""Steps of features/memory.feature: a real systemd and a real kernel that runs out of memory in one machine."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from tests.behaviour.support.hazards import reset_units, set_unit
from tests.behaviour.support.house import MODELS, House
from tests.behaviour.support.http import Answer, until
from tests.behaviour.support.memory_models import as_asked, expanding, weighing
from tests.machines.testbed import Machine

scenarios("features/memory.feature")
pytestmark = pytest.mark.timeout(240)

WORKER, MODEL = "hungry", "hungry-model"
MIB = 1 << 20
BEYOND = (1 << 23, 1 << 22)
"""Floats of this shape take as many bytes as an address space has: 128 TiB."""
BEYOND_MB = (1 << 47) // MIB
GO = "/run/rbee/go"
HELD = (
    "ExecStart=",
    f"ExecStart=/bin/sh -c 'until test -e {GO}; do sleep 0.05; done; exec /usr/bin/rbee-worker --id %i'",
    "Restart=no",
)
"""Lines of a unit whose worker begins once the file GO is there: until then the test changes the machine."""
COUNTED_KILLS = """
import os, sys
group = "/sys/fs/cgroup" + sys.argv[1]
if "memory" not in open("/sys/fs/cgroup/cgroup.controllers").read().split():
    os.setxattr(group, "user.oomd_ooms", b"1")
"""
"""Where a host's kernel limits memory by a hierarchy of its own, systemd inside does not see its count of kills: the
kill is the kernel's, and what systemd-oomd would note of one at the unit's group is noted beforehand."""


@dataclass
class Want:
    """What a scenario's steps hand on."""

    house: House
    daemons: dict[str, str] = field(default_factory=dict)
    kills: int = 0
    life: str = ""
    pid: int = 0
    used: int = 0
    body: dict[str, Any] = field(default_factory=dict)
    answers: list[Answer] = field(default_factory=list)
    asking: threading.Thread | None = None

    @property
    def machine(self) -> Machine:
        return self.house.machine

    def ask(self, shape: tuple[int, ...]) -> None:
        """Ask for the model in the background, as a client of the queen."""
        tensor = {"name": "shape", "shape": [len(shape)], "datatype": "INT64", "data": list(shape)}
        self._ask({"inputs": [tensor]})

    def ask_fixed(self) -> None:
        """The same of a model whose input is one float, or a row of them."""
        self._ask({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}]})

    def _ask(self, body: dict[str, Any]) -> None:
        client = self.house.client

        def work() -> None:
            self.answers.append(client.post(f"/v2/models/{MODEL}/infer", body))

        self.asking = threading.Thread(target=work, daemon=True)
        self.asking.start()

    def answer(self) -> Answer:
        """The answer to what was asked last."""
        assert self.asking is not None
        self.asking.join(60)
        assert not self.asking.is_alive(), "no answer within 60 s"
        return self.answers[-1]

    def failed(self, reason: str) -> dict[str, Any]:
        """The hive's row of the worker once it has failed and the last line of its log was read."""

        def there() -> dict[str, Any] | None:
            row = self.house.hive_rows().get(WORKER)
            return row if row is not None and row["state"] == "failed" and row["last_log"] else None

        row: dict[str, Any] = until(there, 30)
        assert row["reason"] == reason, row
        return row


@pytest.fixture(scope="module")
def kitchen(shared_machine: Machine) -> House:
    made = House(shared_machine)
    made.configure("hive", {"heartbeat_interval_s": 0.5, "queen": {"callback_url": "http://127.0.0.1:8080"}})
    made.start()
    return made


@pytest.fixture
def want(kitchen: House) -> Iterator[Want]:
    made = Want(kitchen)
    machine = kitchen.machine
    made.daemons = {name: machine.unit(name)["InvocationID"] for name in ("rbee-queen", "rbee-hive")}
    made.kills = machine.kills_for_memory
    yield made
    machine.limit_memory(None)
    machine.run(["rm", "-rf", GO, f"{MODELS}/{MODEL}"])
    machine.systemctl("stop", f"rbee-worker@{WORKER}", check=False)
    machine.systemctl("reset-failed", check=False)
    machine.run(["rm", "-f", f"/etc/rbee/workers/{WORKER}.yaml"])
    reset_units(kitchen)
    until(lambda: not kitchen.hive_rows(), 20)


def put_model(want: Want, model: bytes) -> None:
    folder = want.machine.path(f"{MODELS}/{MODEL}")
    folder.mkdir()
    (folder / "model.onnx").write_bytes(model)
    want.house.define_worker(WORKER, MODEL, idle_limit_s=0)


def note_kills(want: Want) -> None:
    """Have systemd know a kill of the worker's present life for what it is."""
    group = want.house.unit(WORKER)["ControlGroup"]
    want.machine.run(["python3", "-c", COUNTED_KILLS, group])


def begin_held(want: Want) -> None:
    """Start the worker, which waits before it does anything."""
    set_unit(want.house, WORKER, *HELD)
    want.house.start_worker(WORKER, wait=False)
    until(lambda: int(want.house.unit(WORKER)["MainPID"]) > 1, 20)
    until(lambda: want.house.wait_state(WORKER, "loading")["model"] == MODEL, 20)


@given("a machine with queen and hive, whose memory will be short")
def a_machine(want: Want) -> None:
    assert set(want.house.rows()) == set()


@given(parsers.parse("a worker whose model weighs {weight:d} MiB, where {free:d} MiB are free"))
def heavy(want: Want, weight: int, free: int) -> None:
    put_model(want, weighing(weight))
    begin_held(want)
    note_kills(want)
    want.machine.limit_memory(free * MIB)


@given("a worker whose model asks for more than an address space has as it is warmed up")
def beyond(want: Want) -> None:
    put_model(want, expanding(BEYOND))
    begin_held(want)


@given("a request waits for its model")
def waits(want: Want) -> None:
    want.ask_fixed()
    until(lambda: want.house.admin.metric("queen_rbee_waiting_requests", model=MODEL, priority="interactive") == 1, 20)


@when("it loads")
def loads(want: Want) -> None:
    want.machine.write(GO, "")


@given(
    parsers.re(
        r"a ready worker whose requests take as much memory as they ask for(, where (?P<free>\d+) MiB are free)?"
    )
)
def as_they_ask(want: Want, free: str | None) -> None:
    put_model(want, as_asked())
    want.house.start_worker(WORKER)
    row = want.house.wait_state(WORKER, "idle")
    want.life, want.pid = row["invocation_id"], row["pid"]
    if free is not None:
        note_kills(want)
        want.machine.limit_memory(int(free) * MIB)


@when(parsers.parse("a request asks for {asked:d} MiB"))
def asks_for(want: Want, asked: int) -> None:
    want.ask((asked, MIB // 4))


@when("a request asks for more than an address space has")
def asks_beyond(want: Want) -> None:
    want.ask(BEYOND)


@then("the kernel has killed one process, and queen and hive are the processes that they were")
def one_killed(want: Want) -> None:
    want.answer()
    assert want.machine.kills_for_memory == want.kills + 1
    assert {name: want.machine.unit(name)["InvocationID"] for name in want.daemons} == want.daemons


@then("no process was killed, and the worker ended by itself and is not tried again")
def none_killed(want: Want) -> None:
    want.answer()
    unit = want.machine.wait_for_unit(f"rbee-worker@{WORKER}.service", "failed")
    assert (unit["Result"], unit["ExecMainStatus"], unit["NRestarts"]) == ("exit-code", "71", "0")
    assert want.machine.kills_for_memory == want.kills


@then(
    parsers.parse(
        'the hive says that the worker failed with "oom-kill", how far loading was, and the last line of its log'
    )
)
def hive_says_killed(want: Want) -> None:
    row = want.failed("oom-kill")
    assert (row["result"], row["exit_signal"]) == ("oom-kill", 9)
    assert row["progress"]["stage"], row
    assert "listening" in row["last_log"], row


@then(parsers.parse('the hive says that the worker failed with "oom-kill", and the last line of its log'))
def hive_says_killed_at_work(want: Want) -> None:
    def told(message: str) -> list[dict[str, Any]]:
        records = want.machine.journal("rbee-hive.service", f"RBEE_WORKER={WORKER}")
        return [record for record in records if record["MESSAGE"].startswith(message)]

    until(lambda: told("last log line of a worker that failed"), 20)
    lives = [(record["RBEE_INVOCATION_ID"], record["RBEE_REASON"]) for record in told("worker failed")]
    assert (want.life, "oom-kill") in lives, lives
    assert told("last log line of a worker that failed")[-1]["RBEE_LINE"]


@then(
    parsers.parse(
        'the hive says that the worker failed with "OUT_OF_MEMORY", with the amount, and the last line of its log'
    )
)
def hive_says_refused(want: Want) -> None:
    row = want.failed("OUT_OF_MEMORY")
    assert f"needs {BEYOND_MB} MB at once" in row["status_text"]
    assert f"needs {BEYOND_MB} MB at once" in row["last_log"]


@then("the request is answered 503 OUT_OF_MEMORY, which names oom-kill and what to do")
def told_killed(want: Want) -> None:
    answer = want.answer()
    assert (answer.status, answer.error["code"]) == (503, "OUT_OF_MEMORY"), answer.body
    assert answer.error["details"]["cause"] == "oom-kill"
    _, found, then_what = answer.error["message"].partition("(oom-kill)")
    assert found and "memory" in then_what.lower(), answer.error["message"]


@then(
    parsers.re(r"the request is answered 503 OUT_OF_MEMORY with the amounts, which names (the runtime and )?what to do")
)
def told_amounts(want: Want) -> None:
    answer = want.answer()
    assert (answer.status, answer.error["code"]) == (503, "OUT_OF_MEMORY"), answer.body
    details = answer.error["details"]
    assert details["required_ram_mb"] == BEYOND_MB
    assert 0 < details["available_ram_mb"] < BEYOND_MB
    assert "quantised model" in answer.error["message"]


@then("nothing is left of the worker: no process, no file of its life, no place among those that are asked")
def nothing_left(want: Want) -> None:
    unit = want.machine.wait_for_unit(f"rbee-worker@{WORKER}.service", "failed")
    assert unit["MainPID"] == "0"
    found = want.machine.run(["pgrep", "--full", f"rbee-worker --id {WORKER}"], check=False)
    assert found.stdout == ""
    assert not want.machine.path(f"/run/rbee/workers/{WORKER}").exists()
    row = want.house.rows()[WORKER]
    assert (row["state"], row["url"]) == ("failed", None)
    assert want.house.admin.metric("queen_rbee_waiting_requests", model=MODEL, priority="interactive") == 0


@then("rbee worker spawn ends with 1 and says that the kernel killed it")
def command_says(want: Want) -> None:
    want.machine.run(["rm", GO])
    want.machine.systemctl("reset-failed", f"rbee-worker@{WORKER}")
    typed = want.machine.popen(["rbee", "worker", "spawn", WORKER])
    try:
        until(lambda: int(want.house.unit(WORKER)["MainPID"]) > 1, 20)
        note_kills(want)
        want.machine.write(GO, "")
        out, _ = typed.communicate(timeout=60)
    finally:
        if typed.poll() is None:
            typed.kill()
            typed.wait()
    assert typed.returncode == 1, out
    assert "the kernel killed it (oom-kill)" in out, out


@then("the machine has the memory back, and a request that asks for little is answered by the worker's next life")
def next_life(want: Want) -> None:
    row = want.house.wait_state(WORKER, "idle")
    assert row["invocation_id"] != want.life
    want.ask((2, 3))
    assert want.answer().status == 200, want.answer().body
    assert want.machine.kills_for_memory == want.kills + 1


@then("the worker is the process that it was, and a request that asks for little is answered")
def same_life(want: Want) -> None:
    want.ask((2, 3))
    assert want.answer().status == 200, want.answer().body
    row = want.house.rows()[WORKER]
    assert (row["invocation_id"], row["pid"]) == (want.life, want.pid)
