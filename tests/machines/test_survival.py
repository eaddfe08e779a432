"""What nobody notices: daemons killed, bus and systemd restarted, a crowd of workers, and a worker's silence."""

import contextlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from rbee.keeper.demo.corpus import TOPICS
from tests.behaviour.support.hazards import LONG_NAME, held_request, long_request
from tests.behaviour.support.house import MODELS, House
from tests.behaviour.support.http import until
from tests.behaviour.support.watch import Watch
from tests.machines.testbed import Machine

TALK, TINY = "bee-talk", "tiny-tensor"
SERVING = {"talk1": TALK, "talk2": TALK, "tiny1": TINY, "tiny2": TINY, "tiny3": TINY}
WHOLE_AGAIN_S = 5.0  # 2 s on a machine that does nothing else
CROWD = 50
FALSE_STATES = {"failed", "stopped", "stale", "unhealthy", "draining", "removed", "loading"}
TENSOR = {
    "inputs": [
        {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]},
        {"name": "shift", "shape": [1, 1], "datatype": "INT64", "data": [0]},
    ]
}


@pytest.fixture(scope="module")
def house(shared_machine: Machine) -> House:
    """Queen and hive with the units' own sandbox."""
    made = House(shared_machine)
    made.configure("hive", {"queen": {"callback_url": "http://127.0.0.1:8080"}, "idle_limit_s": 0})
    made.start()
    return made


@pytest.fixture(autouse=True)
def left_as_found(house: House) -> Iterator[None]:
    """Queen and hive run before each test, no worker does after it."""
    house.machine.systemctl("reset-failed", check=False)
    house.start()
    yield
    house.machine.systemctl("stop", "rbee-worker@*", check=False)
    house.machine.systemctl("reset-failed", check=False)
    house.machine.run(["sh", "-c", "rm -f /etc/rbee/workers/*.yaml"])
    # a hive that starts reads the definitions at once
    house.machine.systemctl("restart", "rbee-hive.service")
    until(lambda: not house.hive_rows() and not house.rows(), 30)


def start_all(house: House, models: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Start workers at once; their lives (MainPID, InvocationID) once the queen has all of them ready."""
    for worker, model in models.items():
        house.define_worker(worker, model)
    house.machine.systemctl("start", *(f"rbee-worker@{worker}" for worker in models), timeout=180)
    until(lambda: ready(house.rows()) == set(models), 60)
    return {worker: life(house, worker) for worker in models}


def life(house: House, worker: str) -> tuple[str, str]:
    unit = house.unit(worker)
    return unit["MainPID"], unit["InvocationID"]


def ready(rows: dict[str, dict[str, Any]]) -> set[str]:
    return {worker for worker, row in rows.items() if row["state"] in ("idle", "busy")}


def whole(rows: dict[str, dict[str, Any]], lives: dict[str, tuple[str, str]]) -> bool:
    """Whether a list has exactly these lives, all of them ready."""
    shown = {worker: (str(row["pid"]), row["invocation_id"]) for worker, row in rows.items()}
    return shown == lives and ready(rows) == set(lives)


def kill_daemon(house: House, daemon: str) -> None:
    """kill -9, and wait until systemd's next one has said READY=1."""
    unit = f"rbee-{daemon}.service"
    before = house.machine.unit(unit)["MainPID"]
    house.machine.run(["kill", "-KILL", before])
    until(lambda: house.machine.unit(unit)["MainPID"] not in ("0", before), 20, every_s=0.02)
    house.machine.wait_for_unit(unit, limit=20)


def seconds_until(condition: Callable[[], bool]) -> float:
    began = time.monotonic()
    until(condition, WHOLE_AGAIN_S, every_s=0.02)
    return time.monotonic() - began


@dataclass
class Load:
    """Requests through the queen, one after the other in each of a few threads, until the block ends."""

    house: House
    outcomes: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        for number in range(3):
            thread = threading.Thread(target=self._ask_on, args=(self._talk if number == 2 else self._tensor,))
            thread.start()
            self._threads.append(thread)
        until(lambda: self.outcomes["ok"] >= 10, 20)
        return self

    def _ask_on(self, ask: Callable[[], str]) -> None:
        while not self._stop.wait(0.03):
            try:
                outcome = ask()
            except (OSError, ValueError) as error:
                outcome = f"{type(error).__name__}: {error}"
            self.outcomes[outcome] += 1

    def _tensor(self) -> str:
        answer = self.house.client.post(f"/v2/models/{TINY}/infer", TENSOR)
        good = answer.status == 200 and answer.json["outputs"]
        return "ok" if good else f"{answer.status} {answer.body!r}"

    def _talk(self) -> str:
        topic = TOPICS[0]
        body = {"model": TALK, "prompt": topic.questions[0], "max_tokens": 64, "temperature": 0}
        with self.house.client.stream("POST", "/v1/inference", body) as stream:
            names = [event.name for event in stream if event.data != b"[DONE]"]
        return "ok" if stream.status == 200 and names[-1:] == ["end"] else f"{stream.status} {names[-3:]}"

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def test_a_killed_hive_costs_no_request_and_finds_everything_again(house: House) -> None:
    lives = start_all(house, SERVING)
    with Load(house) as load:
        before = load.outcomes["ok"]
        kill_daemon(house, "hive")
        took = seconds_until(lambda: whole(house.hive_rows(), lives))
        boot = house.hive_admin.get("/v1/health").json["boot_id"]

        def told() -> bool:
            rows = house.rows()
            return whole(rows, lives) and {row["boot_id"] for row in rows.values()} == {boot}

        took_queen = seconds_until(told)
        until(lambda: load.outcomes["ok"] >= before + 30, 20)
    print(f"hive killed: its list is whole {took:.3f} s after its READY=1, the queen has it {took_queen:.3f} s later;")
    print(f"requests: {dict(load.outcomes)}")
    assert set(load.outcomes) == {"ok"}
    assert {worker: life(house, worker) for worker in SERVING} == lives


def test_a_killed_queen_is_told_everything_again_with_what_became_ready_meanwhile(house: House) -> None:
    lives = start_all(house, SERVING)
    house.define_worker("late", TINY)
    set_queen_restart(house, "RestartSec=3")
    try:
        instance = house.admin.get("/health").json["instance_id"]
        house.machine.run(["kill", "-KILL", house.machine.unit("rbee-queen.service")["MainPID"]])
        house.machine.systemctl("start", "rbee-worker@late")
        lives["late"] = life(house, "late")
        assert house.machine.unit("rbee-queen.service")["ActiveState"] == "activating", "the queen is still down"
        house.machine.wait_for_unit("rbee-queen.service", limit=20)
        took = seconds_until(lambda: whole(house.rows(), lives))
    finally:
        set_queen_restart(house)
    print(f"queen killed: her list is whole again {took:.3f} s after her READY=1")
    assert house.admin.get("/health").json["instance_id"] != instance
    answer = house.client.post(f"/v2/models/{TINY}/infer", TENSOR)
    assert answer.status == 200, answer.body
    assert {worker: life(house, worker) for worker in lives} == lives


def set_queen_restart(house: House, *lines: str) -> None:
    """Keep the queen down for a while; without lines as her unit has it."""
    folder = "/etc/systemd/system/rbee-queen.service.d"
    if lines:
        # the socket would start her at the first call: a hive's call is one
        house.machine.write(f"{folder}/test.conf", "\n".join(["[Service]", *lines, ""]))
    else:
        house.machine.run(["rm", "-rf", folder])
    house.machine.systemctl("daemon-reload")


DISTURBANCES = {
    "systemctl restart dbus": ["systemctl", "restart", "dbus.service"],
    "kill -9 of the bus": ["sh", "-c", "kill -KILL $(systemctl show --value -p MainPID dbus.service)"],
    "daemon-reexec": ["systemctl", "daemon-reexec"],
    "daemon-reload": ["systemctl", "daemon-reload"],
}


@pytest.mark.parametrize("disturbance", DISTURBANCES)
def test_nothing_is_missed_while_bus_or_systemd_go_and_come(house: House, disturbance: str) -> None:
    workers = ("stopped", "killed", "untouched")
    lives = start_all(house, dict.fromkeys(workers, TINY))
    house.define_worker("started", TINY)
    pids = {worker: lives[worker][0] for worker in workers}
    with Watch(house.admin) as watch:
        # in one breath: signals in the moment of the disturbance, a start right after it
        during = f"kill -TERM {pids['stopped']}; kill -KILL {pids['killed']}"
        disturb = house.machine.popen(DISTURBANCES[disturbance])
        house.machine.run(["sh", "-c", during])
        disturb.communicate(timeout=30)
        until(lambda: not house.machine.run(["systemctl", "start", "rbee-worker@started"], check=False).returncode, 20)
        for where in (house.hive_rows, house.rows):
            until(lambda where=where: state_of(where(), "stopped") == "stopped", 10)
            until(lambda where=where: state_of(where(), "started") == "idle", 10)
            until(lambda where=where: new_life(where(), "killed", lives["killed"][1]), 10)
        seen = [one for one in watch.seen if one.worker == "untouched"]
    assert not {one.state for one in seen} & FALSE_STATES, [(one.worker, one.state) for one in seen]
    assert life(house, "untouched") == lives["untouched"]
    after = {worker: life(house, worker) for worker in ("killed", "untouched", "started")}
    shown = {worker: row for worker, row in house.rows().items() if worker != "stopped"}
    assert whole(shown, after)


def state_of(rows: dict[str, dict[str, Any]], worker: str) -> str:
    return str(rows.get(worker, {}).get("state"))


def new_life(rows: dict[str, dict[str, Any]], worker: str, old: str) -> bool:
    return state_of(rows, worker) == "idle" and rows[worker]["invocation_id"] != old


def test_reloads_of_systemd_are_no_news_of_any_worker(house: House) -> None:
    lives = start_all(house, dict.fromkeys(("one", "two"), TINY))
    house.define_worker("three", TINY)
    with Watch(house.admin) as watch:
        for _ in range(5):
            house.machine.systemctl("daemon-reload")
        # a change that is told after all of that closes the window without a wait
        house.start_worker("three")
        watch.wait_state("three", "idle")
        false = [(one.worker, one.state) for one in watch.seen if one.worker in lives and one.state in FALSE_STATES]
        assert false == []
        assert "failed" not in watch.states("three")
    assert {worker: life(house, worker) for worker in lives} == lives


def test_fifty_workers_at_once_are_told_once_each_and_never_polled(house: House) -> None:
    told = house.hive_admin.metric("rbee_hive_worker_ready_callbacks_total", status="success")
    failed = house.hive_admin.metric("rbee_hive_worker_ready_callbacks_total", status="failure")
    heard = house.admin.metric("queen_rbee_worker_ready_notifications_received_total")
    crowd = {f"c{number}": TINY for number in range(CROWD)}
    began = time.monotonic()
    lives = start_all(house, crowd)
    took = time.monotonic() - began
    assert len({invocation for _, invocation in lives.values()}) == CROWD
    assert len({row["url"] for row in house.rows().values()}) == CROWD
    beats = house.admin.metric("queen_rbee_heartbeats_total")
    until(lambda: house.admin.metric("queen_rbee_heartbeats_total") >= beats + 1, 15)
    print(f"{CROWD} workers started at once were all ready after {took:.1f} s")
    assert house.hive_admin.metric("rbee_hive_worker_ready_callbacks_total", status="success") - told == CROWD
    assert house.hive_admin.metric("rbee_hive_worker_ready_callbacks_total", status="failure") == failed
    assert house.admin.metric("queen_rbee_worker_ready_notifications_received_total") - heard == CROWD
    assert house.admin.metric("queen_rbee_readiness_fallback_polls_total") == 0


def test_what_an_operator_does_with_systemctl_is_known_at_once(house: House) -> None:
    house.define_worker("x", TALK, name=LONG_NAME)
    house.start_worker("x")
    first = life(house, "x")
    body = long_request(house.worker("x"))
    with Watch(house.admin) as watch:
        with held_request(house.worker("x"), body) as stream:
            house.machine.systemctl("stop", "--no-block", "rbee-worker@x")
            watch.wait_state("x", "draining", 5)
            assert [event.data for event in stream][-1] == b"[DONE]"
        watch.wait_state("x", "stopped", 5)
        assert watch.states("x")[-2:] == ["draining", "stopped"]
        assert house.rows()["x"]["url"] is None
        house.machine.systemctl("start", "rbee-worker@x")
        watch.wait(lambda one: one.state == "idle" and one.row["invocation_id"] != first[1], "the second life", 5)
        question = {"model": LONG_NAME, "prompt": TOPICS[0].questions[0], "max_tokens": 64, "temperature": 0}
        answer = house.client.post("/v1/inference", question | {"stream": False})
        assert (answer.status, answer.json["text"]) == (200, TOPICS[0].answer)
        second = life(house, "x")
        house.machine.systemctl("restart", "rbee-worker@x")
        third = life(house, "x")
        watch.wait(lambda one: one.state == "idle" and one.row["invocation_id"] == third[1], "the third life", 5)
    assert len({first, second, third}) == 3


def test_a_worker_asked_for_cuda_on_a_machine_without_a_gpu_says_what_is_missing(house: House) -> None:
    house.define_worker("gpu", TINY, backend="cuda")
    house.machine.systemctl("start", "rbee-worker@gpu", check=False)
    unit = house.unit("gpu")
    assert (unit["ActiveState"], unit["ExecMainStatus"], unit["NRestarts"]) == ("failed", "69", "0")
    shown = house.machine.systemctl("status", "--full", "rbee-worker@gpu", check=False)
    (status,) = re.findall(r"^ +Status: (.+)$", shown, re.M)
    assert re.search(r"lib\w+\.so|no CUDA driver", status), status
    assert re.search(r"install \S*(nvidia|cuda|cudnn|cublas)", status), status
    row = house.wait_state("gpu", "failed")
    assert row["exit_status"] == 69
    assert row["url"] is None
    assert "69" in row["reason"]


@pytest.mark.parametrize(
    ("text", "line", "told"),
    [
        (f"model: {MODELS}/{TINY}\nslots: many\n", 2, "slots"),
        (f"model: {MODELS}/{TINY}\n\nslotz: 2\n", 3, "slotz"),
        ("model: /nowhere\n", 1, "model"),
    ],
)
def test_a_wrong_definition_is_told_in_systemctl_status(house: House, text: str, line: int, told: str) -> None:
    house.machine.write("/etc/rbee/workers/wrong.yaml", text)
    house.machine.systemctl("start", "rbee-worker@wrong", check=False)
    shown = house.machine.systemctl("status", "--full", "rbee-worker@wrong", check=False)
    assert re.search(rf"Status: .*/etc/rbee/workers/wrong\.yaml:{line}: {told}\b", shown), shown
    assert house.unit("wrong")["ExecMainStatus"] == "78"
    assert house.unit("wrong")["NRestarts"] == "0"


LOCAL_LINES = (
    ("queen", "GET", "http://queen/v2/workers/list"),
    ("queen", "GET", "http://queen/v2/workers/health"),
    ("queen", "GET", "http://queen/v1/models"),
    ("hive", "GET", "http://hive/v1/workers/list"),
    ("hive", "GET", "http://hive/v1/resources"),
    ("hive", "GET", "http://hive/v1/workers/talk/logs?lines=5"),
    ("workers/talk/worker", "GET", "http://worker/v1/ready"),
)


@pytest.fixture(scope="module")
def people(house: House) -> dict[str, str]:
    """Who asks, and what each gets."""
    house.machine.run(["useradd", "--no-create-home", "stranger"])
    house.machine.run(["useradd", "--no-create-home", "--groups", "rbee", "member"])
    return {"stranger": "403", "member": "200", "root": "200"}


def test_curl_at_the_unix_sockets_is_for_administrators(house: House, people: dict[str, str]) -> None:
    start_all(house, {"talk": TALK})
    for name, wanted in people.items():
        user = None if name == "root" else name
        for daemon, method, url in LOCAL_LINES:
            done = house.machine.run(curl(daemon, method, url), user=user)
            body, _, status = done.stdout.rpartition("\n")
            assert status == wanted, (name, url, done.stdout)
            if wanted == "403":
                assert json.loads(body)["error"]["code"] == "FORBIDDEN"
        opened = house.machine.run(curl("queen", "GET", "http://queen/health"), user=user).stdout
        assert opened.endswith("\n200"), "anybody may ask whether the queen is well"


def curl(daemon: str, method: str, url: str, *more: str) -> list[str]:
    socket = f"/run/rbee/{daemon}.sock"
    return ["curl", "-s", "-w", "\n%{http_code}", "-X", method, "--unix-socket", socket, *more, url]


def test_a_member_of_the_group_asks_a_question_and_stops_a_worker_by_curl(house: House, people: dict[str, str]) -> None:
    start_all(house, {"talk": TALK})
    topic = TOPICS[0]
    body = json.dumps({"model": TALK, "prompt": topic.questions[0], "max_tokens": 64, "temperature": 0})
    as_json = ("-H", "Content-Type: application/json", "-d")
    said = house.machine.run(curl("queen", "POST", "http://queen/v1/inference", *as_json, body), user="member").stdout
    tokens = [json.loads(data)["text"] for data in re.findall(r"event: token\ndata: (.+)", said)]
    assert "".join(tokens) == topic.answer
    stop = curl("queen", "POST", "http://queen/v2/workers/shutdown", *as_json, '{"worker_id": "talk"}')
    assert house.machine.run(stop, user="stranger").stdout.endswith("\n403")
    assert house.machine.run(stop, user="member").stdout.endswith("\n202")
    house.wait_state("talk", "stopped")


# A worker's silence: each system call of the real unit that concerns sockets, as strace saw it from PID 1 on, so that
# the unit is started as it is shipped, sandbox included.

TRACE = "/run/worker.trace"
PEERS = ("/run/systemd/notify", "/run/systemd/journal/socket", "/run/systemd/journal/stdout", "/dev/log")
CALLER = """[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -c "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(('%s', 53))"
"""
PYTHON = "/usr/lib/rbee/venv/bin/python"
BARE = f"""import onnxruntime, time
onnxruntime.InferenceSession("{MODELS}/{TINY}/model.onnx", providers=["CPUExecutionProvider"])
time.sleep(120)
"""
_CALL = re.compile(r"(?P<call>\w+)\((?P<rest>.*)")


@contextlib.contextmanager
def traced(machine: Machine) -> Iterator[None]:
    """Record the socket calls of all that systemd starts within the block."""
    calls = "trace=%network,clone,clone3,fork,vfork,execve"
    command = f"strace -f -yy -e {calls} -e signal=none -s 64 -o {TRACE} -p 1"
    tracer = machine.popen(["sh", "-c", f"echo $$; exec {command}"])
    assert tracer.stdout is not None
    pid = tracer.stdout.readline().strip()
    assert "attached" in tracer.stdout.readline()
    try:
        yield
    finally:
        machine.run(["kill", "-INT", pid])
        tracer.communicate(timeout=20)


def calls_of(machine: Machine, program: str) -> list[str]:
    """The calls of the process that executed the program, and of its threads and children, from that moment on."""
    family: set[str] = set()
    found = []
    for line in machine.read(TRACE).splitlines():
        pid, _, call = line.partition(" ")
        call = call.strip()
        if call.startswith(f'execve("{program}"'):
            family.add(pid)
        elif pid in family:
            found.append(call)
            born = re.match(r"(?:clone3?|v?fork|<\.\.\. (?:clone3?|v?fork) resumed).*= (\d+)(?:<.*>)?$", call)
            if born:
                family.add(born[1])
    return found


def outgoing(calls: list[str]) -> list[str]:
    """Calls that open a connection, or send to anything but systemd, the journal, or a connection that came in."""
    accepted: set[str] = set()
    found = []
    for line in calls:
        match = _CALL.match(line)
        if match is None:
            continue
        call, rest = match["call"], match["rest"]
        if call in ("accept", "accept4"):
            accepted.update(re.findall(r"= \d+<(TCP(?:v6)?:\[.+?\])>", rest))
        elif (call == "connect" and not any(f'sun_path="{peer}"' in rest for peer in PEERS)) or (
            call == "socket" and re.match(r"AF_INET6?, SOCK_(DGRAM|RAW)|AF_(NETLINK|PACKET|VSOCK)", rest)
        ):
            found.append(line)
        elif call in ("sendto", "sendmsg", "sendmmsg"):
            peer = re.match(r"\d+<((?:TCP|UDP)[^<]*)>", rest)
            if (peer and peer[1] not in accepted) or "sa_family=AF_INET" in rest:
                found.append(line)
    return found


@pytest.fixture
def lone(house: House) -> Iterator[House]:
    """The machine after the trace that a test makes is gone."""
    yield house
    house.machine.run(["rm", "-f", TRACE])


def test_a_worker_opens_no_connection_of_its_own_while_its_runtime_left_alone_calls_home(lone: House) -> None:
    lone.define_worker("quiet", TALK)
    lone.machine.write("/srv/bare.py", BARE)
    lone.machine.add_unit("bare.service", f"[Service]\nExecStart={PYTHON} /srv/bare.py\n")
    with traced(lone.machine):
        lone.start_worker("quiet")
        lone.machine.systemctl("start", "bare.service")
        lone.wait_state("quiet", "idle")
        environment = lone.machine.read(f"/proc/{life(lone, 'quiet')[0]}/environ").split("\0")
        body = {"model": TALK, "prompt": TOPICS[0].questions[0], "stream": False, "max_tokens": 64, "temperature": 0}
        answer = lone.client.post("/v1/inference", body)
        assert answer.json["text"] == TOPICS[0].answer
        # the runtime begins some 10 s after its start; the worker was started before it
        until(lambda: to_network(calls_of(lone.machine, PYTHON)), 40, every_s=0.5)
        lone.machine.systemctl("stop", "rbee-worker@quiet", "bare.service")
    calls = calls_of(lone.machine, "/usr/bin/rbee-worker")
    assert "ORT_DISABLE_TELEMETRY=1" in environment
    assert any(call.startswith("accept4") and "TCP:" in call for call in calls), "the request is in the record"
    assert any("READY=1" in call for call in calls)
    assert any("clone" in call for call in calls), "threads are followed"
    assert outgoing(calls) == []


def to_network(calls: list[str]) -> list[str]:
    """Those outgoing calls that concern the internet's addresses."""
    return [call for call in outgoing(calls) if "AF_INET" in call or "UDP" in call or "TCP" in call]


def test_the_trace_would_have_seen_a_call(lone: House) -> None:
    lone.machine.add_unit("caller.service", CALLER % "127.0.0.1")
    with traced(lone.machine):
        lone.machine.systemctl("start", "caller.service")
    seen = outgoing(calls_of(lone.machine, "/usr/bin/python3"))
    assert any(call.startswith("socket(AF_INET, SOCK_DGRAM") for call in seen), seen
    assert any(call.startswith("connect(") and "htons(53)" in call for call in seen), seen
