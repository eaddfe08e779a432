"""Steps of features/three_nodes.feature; the scenarios share one fleet and run in the feature's order."""

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import pytest
from pytest_bdd import given, parsers, scenarios, then, when

from rbee.keeper.demo.corpus import LONG_QUESTION
from tests.behaviour.support.fleet import MODEL, SHARED, Json, Outcomes, declare
from tests.behaviour.support.http import Http
from tests.behaviour.support.model_source import Fault
from tests.behaviour.support.three_nodes import CROWD, NAMES, ThreeNodes, three_nodes
from tests.behaviour.support.watch import Watch
from tests.machines.testbed import Release, debs, wait_until

scenarios("features/three_nodes.feature")
pytestmark = pytest.mark.timeout(500)

CLIENTS = 4
LATE = "late"
"""A declared model that no node has."""
BACK_S = 90.0
"""A node's start on a busy machine, its hive's report, and the worker's start after that."""
SETTLED_S = 150.0
"""That, and the minute after which a worker ends of which there is one too many."""


@pytest.fixture(scope="module")
def shared_fleet(repositories: dict[Release, debs.Repositories]) -> Iterator[ThreeNodes]:
    release = debs.RELEASES[-1]
    with three_nodes(release, repositories[release]) as fleet:
        yield fleet


@pytest.fixture
def things() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


@given(
    "a queen's machine that declares models of a source on the network, and three bare machines that became nodes",
    target_fixture="fleet",
)
def a_fleet(shared_fleet: ThreeNodes) -> ThreeNodes:
    return shared_fleet


# -- three commands --------------------------------------------------------------------------------------------------


@then("rbee node add, rbee node install and rbee infer told the time of each step")
def steps_are_timed(fleet: ThreeNodes) -> None:
    for step in ("ssh", "packages", "credentials", "configuration", "start", "first report"):
        assert re.search(rf"^  {step}: changed, [\d.]+ (s|min)|^  {step}: as it was", fleet.said["node install"], re.M)
    print({command: f"{took:.1f} s" for command, took in fleet.took.items()}, *fleet.said.values(), sep="\n")


@then("the answer came from a node whose worker is at an https address of that node")
def answer_came(fleet: ThreeNodes) -> None:
    (node,) = fleet.serving(MODEL)
    row = fleet.serving(MODEL)[node]
    assert "4 tokens" in fleet.said["infer"]
    assert f"worker {node}/{row['worker_id']}" in fleet.said["infer"]
    assert row["url"].startswith(f"https://{fleet.nodes[node].address}:")


def lives(fleet: ThreeNodes) -> dict[str, str]:
    """The life of each node's hive."""
    return {name: node.unit("rbee-hive.service")["InvocationID"] for name, node in fleet.nodes.items()}


@when("every node is installed again")
def installed_again(fleet: ThreeNodes) -> None:
    fleet.seen["lives"], fleet.seen["asked"] = lives(fleet), len(fleet.source.seen)
    with ThreadPoolExecutor(len(NAMES)) as pool:
        fleet.seen["again"] = list(
            pool.map(lambda name: fleet.json("node", "install", name, "--packages", SHARED), NAMES)
        )


@then("it says of each that nothing was to change")
def nothing_to_change(fleet: ThreeNodes) -> None:
    assert [result["changed"] for result in fleet.seen["again"]] == [False] * len(NAMES), fleet.seen["again"]


@then("no hive was restarted, and the source was not asked")
def nobody_restarted(fleet: ThreeNodes) -> None:
    assert (lives(fleet), len(fleet.source.seen)) == (fleet.seen["lives"], fleet.seen["asked"])


# -- a crowd ---------------------------------------------------------------------------------------------------------


@when(parsers.parse("{count:d} clients ask for the crowd's model at once"))
def crowd_asks(fleet: ThreeNodes, count: int) -> None:
    fleet.seen["starts"] = len(fleet.starts())
    with ThreadPoolExecutor(count) as pool:
        fleet.seen["answers"] = list(pool.map(lambda _: fleet.ask(CROWD, timeout=120), range(count)))


@then("all were answered by one worker")
def crowd_is_answered(fleet: ThreeNodes) -> None:
    answers = fleet.seen["answers"]
    assert {answer.status for answer in answers} == {200}, [answer.text for answer in answers]
    assert len({answer.headers["x-rbee-worker"] for answer in answers}) == 1


@then("the source sent each file of the model once, and one worker was started on all machines")
def one_of_each(fleet: ThreeNodes) -> None:
    sent = Counter(seen.path for seen in fleet.source.requests("", "GET") if seen.path.startswith(f"/{CROWD}/"))
    assert sent == dict.fromkeys((f"/{CROWD}/{path}" for path in fleet.source.folders[CROWD]), 1)
    assert len(fleet.starts()) == fleet.seen["starts"] + 1


# -- a node that goes away -------------------------------------------------------------------------------------------


@dataclass
class Absence:
    """The node that goes away, its worker and another node's as they were, and clients that ask all along."""

    node: str
    row: Json
    other: str
    asking: ExitStack
    outcomes: Outcomes


def serving(fleet: ThreeNodes) -> dict[str, Json]:
    """The model's workers that serve, by their node."""
    return {name: row for name, row in fleet.serving(MODEL).items() if row["state"] in ("idle", "busy")}


def answers_of(fleet: ThreeNodes, absence: Absence, *nodes: str) -> None:
    """Wait until the workers of these nodes have each answered anew."""
    rows = fleet.serving(MODEL)
    workers = [f"{node}/{rows[node]['worker_id']}" for node in nodes]
    before = absence.outcomes.by.copy()
    wait_until(lambda: all(absence.outcomes.by[one] > before[one] for one in workers), f"answers of {workers}", BACK_S)


@given("the model runs on two nodes, and clients ask for it all along", target_fixture="absence")
def runs_twice(fleet: ThreeNodes, things: ExitStack) -> Absence:
    fleet.declare(MODEL, replicas={"min": 2, "max": 2})
    wait_until(lambda: len(serving(fleet)) == 2, "two nodes that serve the model", SETTLED_S)
    node, other = sorted(serving(fleet))
    asking = things.enter_context(ExitStack())
    outcomes = asking.enter_context(fleet.asked_all_along(CLIENTS))
    absence = Absence(node, serving(fleet)[node], other, asking, outcomes)
    answers_of(fleet, absence, node, other)
    return absence


@when("the cable of one of them is taken out")
def cable_is_out(fleet: ThreeNodes, absence: Absence) -> None:
    fleet.network.partition(fleet.nodes[absence.node])


@then("the other one answers, and no request waits for the silent one any more")
def other_answers(fleet: ThreeNodes, absence: Absence) -> None:
    # what was under way at the silent node is asked anew within seconds: each client goes on
    before = absence.outcomes.by.total()
    wait_until(lambda: absence.outcomes.by.total() >= before + 3 * CLIENTS, "answers while a node is silent", 30)


@then("the queen says that the node is silent and its worker stale")
def node_is_silent(fleet: ThreeNodes, absence: Absence) -> None:
    wait_until(lambda: fleet.node(absence.node)["status"] == "silent", "the silence to be noticed", BACK_S)
    assert fleet.serving(MODEL)[absence.node]["state"] == "stale"


@when("the cable is put back")
def cable_is_back(fleet: ThreeNodes, absence: Absence) -> None:
    fleet.network.heal(fleet.nodes[absence.node])


@when("one of them is rebooted")
def rebooted(fleet: ThreeNodes, absence: Absence) -> None:
    fleet.nodes[absence.node].reboot()


@when("one of them loses its power and is switched on again")
def power_is_lost(fleet: ThreeNodes, absence: Absence) -> None:
    fleet.nodes[absence.node].kill_power()
    fleet.nodes[absence.node].boot()


@then("the node is online by itself, and its worker serves in the life that it had")
def node_is_back(fleet: ThreeNodes, absence: Absence) -> None:
    wait_until(lambda: fleet.node(absence.node)["status"] == "online", "the node", BACK_S)
    wait_until(lambda: absence.node in serving(fleet), "its worker", BACK_S)
    assert serving(fleet)[absence.node]["invocation_id"] == absence.row["invocation_id"]
    answers_of(fleet, absence, absence.node, absence.other)


@then("the node is online by itself, and two nodes serve the model")
def node_is_back_and_two_serve(fleet: ThreeNodes, absence: Absence) -> None:
    # the queen may have started the lost worker on the third node meanwhile, and ends one that is too many
    wait_until(lambda: fleet.node(absence.node)["status"] == "online", "the node", BACK_S)
    wait_until(lambda: len(serving(fleet)) == 2, "two nodes that serve the model", SETTLED_S)
    answers_of(fleet, absence, *serving(fleet))


@then("every request was answered")
def all_answered(absence: Absence) -> None:
    absence.asking.close()
    assert list(absence.outcomes.ended) == ["ok"], absence.outcomes
    print(absence.outcomes)


# -- a hive that does not reach its worker ---------------------------------------------------------------------------


@when("the socket of one of them's worker is gone, and the connection that its hive had")
def socket_is_gone(fleet: ThreeNodes, absence: Absence, things: ExitStack) -> None:
    queen = Http(lambda limit_s: fleet.queen.connect("/run/rbee/queen.sock", limit_s), timeout_s=SETTLED_S)
    fleet.seen["watch"] = things.enter_context(Watch(queen))
    fleet.nodes[absence.node].path(f"/run/rbee/workers/{absence.row['worker_id']}/worker.sock").unlink()
    fleet.nodes[absence.node].systemctl("restart", "rbee-hive.service")


@then("the queen hears that the worker is unhealthy, and then that it serves in another life")
def unhealthy_and_back(fleet: ThreeNodes, absence: Absence) -> None:
    watch, worker, life = fleet.seen["watch"], absence.row["worker_id"], absence.row["invocation_id"]
    unhealthy = watch.wait_state(worker, "unhealthy", BACK_S)
    assert (unhealthy.row["hive_id"], unhealthy.row["invocation_id"]) == (absence.node, life)
    back = watch.wait(
        lambda seen: (seen.worker, seen.state) == (worker, "idle") and seen.row["invocation_id"] != life,
        "the worker in another life",
        BACK_S,
    )
    assert back.at > unhealthy.at
    answers_of(fleet, absence, absence.node, absence.other)


@then("the hive says that it restarted the worker, which was unhealthy")
def hive_restarted_it(fleet: ThreeNodes, absence: Absence) -> None:
    said = [str(record["MESSAGE"]) for record in fleet.nodes[absence.node].journal("rbee-hive.service")]
    assert any("worker.restart" in line and "unhealthy" in line for line in said), said[-20:]


# -- a call that leaves nothing behind -------------------------------------------------------------------------------

QUEEN_UNITS = ("rbee-queen.service", "rbee-queen.socket")
HIVE_UNITS = ("rbee-hive.service", "rbee-hive.socket")
STOPPED = ("one", "two")


@dataclass
class Call:
    """A hive's life before it, and how the command ended."""

    life: str
    code: int = -1
    out: str = ""
    err: str = ""


@given("the queen, the hives of one and two and every worker are stopped", target_fixture="call")
def stopped(fleet: ThreeNodes) -> Call:
    fleet.queen.systemctl("start", *QUEEN_UNITS)
    fleet.offer(LATE, MODEL)
    fleet.declare(MODEL, replicas={"min": 0, "max": 2})
    fleet.queen.systemctl("stop", *QUEEN_UNITS)
    for name, node in fleet.nodes.items():
        if name in STOPPED:
            node.systemctl("stop", *HIVE_UNITS)
        node.systemctl("stop", "rbee-worker@*")
    return Call(fleet.nodes["three"].unit(HIVE_UNITS[0])["InvocationID"])


def infer(fleet: ThreeNodes, call: Call, *arguments: str, before: tuple[str, ...] = ()) -> None:
    command = [*before, "rbee", "infer", "--ephemeral", *arguments]
    done = fleet.queen.run(command, check=False, timeout=240)
    call.code, call.out, call.err = done.returncode, done.stdout, done.stderr


@when("rbee infer --ephemeral asks the model")
def asks(fleet: ThreeNodes, call: Call) -> None:
    infer(fleet, call, "--model", MODEL, "--prompt", "bees", "--max-tokens", "4")


@when("rbee infer --ephemeral asks a model of which one worker is kept")
def asks_a_kept_one(fleet: ThreeNodes, call: Call) -> None:
    """The queen starts it anew on a node whose hive is still there."""
    kept = {"replicas": {"min": 1, "max": 1}, "node": STOPPED[0]}
    declare(fleet.queen, fleet.declared | {MODEL: fleet.declared[MODEL] | kept})
    infer(fleet, call, "--model", MODEL, "--prompt", "bees", "--max-tokens", "4")


@when("rbee infer --ephemeral asks a model that there is not")
def asks_in_vain(fleet: ThreeNodes, call: Call) -> None:
    infer(fleet, call, "--model", "nothing", "--prompt", "bees")


def begin_infer(fleet: ThreeNodes, arguments: str) -> subprocess.Popen[str]:
    command = f"echo $$ >/root/pid; exec rbee infer --ephemeral {arguments} 2>/root/said"
    return fleet.queen.popen(["sh", "-c", command])


def interrupt(fleet: ThreeNodes, call: Call, process: subprocess.Popen[str]) -> None:
    fleet.queen.run(["kill", "-INT", fleet.queen.read("/root/pid").strip()])
    call.out = process.communicate(timeout=120)[0]
    call.code, call.err = process.returncode, fleet.queen.read("/root/said")


@when("rbee infer --ephemeral is interrupted amid a long answer")
def is_interrupted(fleet: ThreeNodes, call: Call) -> None:
    process = begin_infer(fleet, f"--model {CROWD} --max-tokens 900 --prompt '{LONG_QUESTION}'")
    assert process.stdout is not None
    assert process.stdout.read(1), fleet.queen.read("/root/said")
    interrupt(fleet, call, process)


@when("rbee infer --ephemeral is interrupted while its model is fetched")
def is_interrupted_early(fleet: ThreeNodes, call: Call) -> None:
    """The source sends the beginning of it and no more, so that no worker can start before."""
    fleet.source.fault("model.onnx", Fault(after=1 << 20, then="stall"))
    process = begin_infer(fleet, f"--model {LATE} --prompt bees")
    wait_until(lambda: fleet.source.requests(f"/{LATE}/model.onnx"), "the download", BACK_S)
    interrupt(fleet, call, process)


@then(parsers.parse("it exits with {code:d}"))
def exits(call: Call, code: int) -> None:
    assert call.code == code, call


@then("it exits with 0 and the model's answer, and has told in this order what it stopped: worker, hives, queen")
def stopped_in_order(fleet: ThreeNodes, call: Call) -> None:
    assert call.code == 0 and call.out.strip() and "4 tokens" in call.err, call
    told = [line.removeprefix("stopped ").split(" ")[0:2] for line in call.err.splitlines() if "stopped " in line]
    assert [words[0] if words[0] == "worker" else words[1] for words in told] == ["worker", "hive", "hive", "queen"]


@then("nothing of it runs any more, and the hive of three was not touched")
def nothing_is_left(fleet: ThreeNodes, call: Call) -> None:
    states = {unit: fleet.queen.unit(unit)["ActiveState"] for unit in QUEEN_UNITS}
    for name in STOPPED:
        states |= {f"{name} {unit}": fleet.nodes[name].unit(unit)["ActiveState"] for unit in HIVE_UNITS}
    assert set(states.values()) == {"inactive"}, (states, call)
    for node in fleet.nodes.values():
        assert node.systemctl("list-units", "--no-legend", "--state=active", "rbee-worker@*").strip() == "", call
    assert fleet.nodes["three"].unit(HIVE_UNITS[0])["InvocationID"] == call.life
