"""Steps of features/apply.feature; the scenarios share one fleet and run in the feature's order."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from pytest_bdd import given, parsers, scenarios, then, when

from tests.behaviour.support.fleet import (
    HOST_KEY,
    MODEL,
    NEWER,
    SHARED,
    Fleet,
    Json,
    Outcomes,
    model_files,
    with_bare_far,
)
from tests.behaviour.support.model_source import ModelSource
from tests.machines.testbed import Machine, Network, Release, debs, wait_until
from tests.machines.testbed.debs import apt

scenarios("features/apply.feature")
pytestmark = pytest.mark.timeout(400)

FILE = "/root/fleet.yaml"
LABEL = "fast-disk"
DECLARED = "org/talk"
FETCHED = "distant"
"""The model's name at the source."""
PAIR = ("one", "two")
"""Workers of the operator's model on far."""


@dataclass
class Described:
    """The machines, a source of models, the content of the file, and what the last command said."""

    fleet: Fleet
    near: Machine
    source: ModelSource
    content: dict[str, Any]
    code: int = 0
    said: str = ""
    before: dict[str, str] = field(default_factory=dict)
    outcomes: Outcomes = field(default_factory=Outcomes)

    def remember_far(self) -> None:
        far = self.fleet.far
        self.before = {"files": listed(far), "life": far.unit("rbee-hive.service")["InvocationID"]}

    def apply(self, *arguments: str) -> None:
        self.fleet.queen.write(FILE, yaml.safe_dump(self.content, sort_keys=False))
        done = self.fleet.queen.run(["rbee", "apply", FILE, *arguments], check=False, timeout=300)
        self.code, self.said = done.returncode, done.stdout + done.stderr

    def machine(self, name: str) -> Machine:
        return {"far": self.fleet.far, "near": self.near}[name]

    def labels(self, *nodes: str, labels: list[str]) -> None:
        for name in nodes:
            self.content["nodes"][name]["hive"]["labels"] = labels

    def fetched(self, *nodes: str) -> None:
        source = f"{self.source.url}/{FETCHED}/"
        self.content["models"] = [{"source": source, "nodes": list(nodes), "pinned": True}]

    def catalogue(self, name: str) -> list[Json]:
        """What the node's hive has on its disk and fetched itself."""
        rows: list[Json] = self.fleet.json("catalog", "list", "--node", name)["models"]
        return [row for row in rows if row["owned"]]


def _node(machine: Machine, labels: list[str]) -> dict[str, Any]:
    fingerprint = machine.run(["ssh-keygen", "-lf", HOST_KEY]).stdout.split()[1]
    return {"host": machine.address, "host_key": fingerprint, "hive": {"labels": labels}}


@pytest.fixture(scope="module")
def shared(repositories: dict[Release, debs.Repositories]) -> Iterator[Described]:
    release = debs.RELEASES[0]
    with Network() as network:
        fleet = with_bare_far(network, release, repositories[release])
        near = fleet.bare("near")
        source = ModelSource(listener=network.listener()).start()
        source.folder(FETCHED, model_files(MODEL))
        content = {
            "defaults": {"key": ".ssh/id_ed25519", "packages": SHARED},
            "nodes": {"far": _node(fleet.far, [LABEL]), "near": _node(near, [])},
            "declared": {
                DECLARED: {"reference": f"file:///var/lib/rbee/models/{MODEL}", "node": "far", "labels": [LABEL]}
            },
        }
        yield Described(fleet, near, source, content)
        source.close()


@given(
    "a queen's machine, two bare machines with sshd, and a file that describes them as far and near",
    target_fixture="described",
)
def described(shared: Described) -> Described:
    return shared


def listed(machine: Machine) -> str:
    """Every file of ours and of apt's on a machine, with its time and inode; heartbeats bring revoked.pem."""
    folders = "/etc /var/lib/rbee /var/lib/apt /usr/share/keyrings"
    files = f"find {folders} -xdev -type f ! -name revoked.pem -printf '%p %T@ %i\\n' | sort"
    return machine.run(["sh", "-c", files]).stdout


# -- what is done ----------------------------------------------------------------------------------------------------


@when("the file is applied")
def applied(described: Described) -> None:
    described.apply()


@when("the file is applied again")
def applied_again(described: Described) -> None:
    described.remember_far()
    described.apply()


@when(parsers.re("the file is applied with (?P<options>--.*)"))
def applied_with(described: Described, options: str) -> None:
    described.apply(*options.split())


@when("the file gives near the label fast-disk, and it is applied with --dry-run")
def label_given(described: Described) -> None:
    described.labels("near", labels=[LABEL])
    described.apply("--dry-run")


@when("the file names a model of a source on the network for far, and it is applied with --dry-run")
def model_named(described: Described) -> None:
    described.fetched("far")
    described.apply("--dry-run")


@when("the file names it for all nodes, and it is applied")
def model_named_for_all(described: Described) -> None:
    described.fetched("all")
    described.apply()


@when("the file names no model, and it is applied with --prune")
def no_model_named(described: Described) -> None:
    described.content["models"] = []
    described.apply("--prune")


@when("the sshd of near is stopped, the file gives far and near the label spare, and it is applied")
def sshd_stopped(described: Described) -> None:
    described.near.systemctl("stop", "ssh")
    described.labels("far", "near", labels=[LABEL, "spare"])
    described.apply()


@when("the sshd of near is started, and the file is applied")
def sshd_started(described: Described) -> None:
    described.near.systemctl("start", "ssh")
    described.apply()


@given("two workers of far serve the operator's model")
def two_serve(described: Described) -> None:
    for worker in PAIR:
        described.fleet.far.write(f"/etc/rbee/workers/{worker}.yaml", f"model: /var/lib/rbee/models/{MODEL}\n")
        described.fleet.rbee("worker", "spawn", worker, "--node", "far")


@given("the queen's machine has newer packages already")
def queen_is_newer(described: Described) -> None:
    queen = described.fleet.queen
    pool = f"{NEWER}/pool/{queen.release}"
    names = ("rbee-common", "rbee-queen")
    apt(queen, "install", *(f"{pool}/{path.name}" for name in names for path in queen.path(pool).glob(f"{name}_*.deb")))
    wait_until(lambda: described.fleet.node("far")["status"] == "online", "far at the newer queen", 60)


@when("the file takes far's packages from a line of apt that has newer ones, and it is applied with --dry-run")
def newer_source(described: Described) -> None:
    release = described.fleet.far.release
    line = f"deb [signed-by=/usr/share/keyrings/rbee-archive-keyring.gpg] file:{NEWER} {release} main"
    source = {"packages": line, "keyring": f"{NEWER}/rbee-archive-keyring.gpg"}
    described.content["nodes"]["far"] |= source
    described.remember_far()
    described.apply("--dry-run")


@when("the file is applied while clients ask the model")
def applied_under_load(described: Described) -> None:
    with described.fleet.asked_all_along(2) as described.outcomes:
        described.apply()


@when("the file takes far's packages from the first folder again, and it is applied")
def older_source(described: Described) -> None:
    for key in ("packages", "keyring"):
        del described.content["nodes"]["far"][key]
    described.apply()


@when("the file names near no longer, and it is applied")
def near_is_not_named(described: Described) -> None:
    del described.content["nodes"]["near"]
    described.apply()


# -- what came of it -------------------------------------------------------------------------------------------------


@then(parsers.parse("the command ends with {code:d} and says:"))
def ended_and_said(described: Described, code: int, datatable: list[list[str]]) -> None:
    assert described.code == code, described.said
    for (words,) in datatable[1:]:
        assert words in described.said, (words, described.said)
    print(described.said)


@then("no node is in the registry, and nothing of ours is on far or near")
def nothing_happened(described: Described) -> None:
    assert described.fleet.json("node", "list")["nodes"] == []
    for name in ("far", "near"):
        asked = ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", "rbee*"]
        shown = described.machine(name).run(asked, check=False).stdout
        assert " installed" not in shown, shown


@then("far and near are online, and a request for org/talk is answered by far, which has the label")
def fleet_answers(described: Described) -> None:
    assert [described.fleet.node(name)["status"] for name in ("far", "near")] == ["online", "online"]
    said = described.fleet.rbee("infer", "--model", DECLARED, "--prompt", "bees", "--max-tokens", "4")
    assert "4 tokens" in said
    assert "worker far/" in said


@then("no file of far is another than before, and its hive was not restarted")
def far_is_as_before(described: Described) -> None:
    far = described.fleet.far
    assert listed(far) == described.before["files"]
    assert far.unit("rbee-hive.service")["InvocationID"] == described.before["life"]


@then(parsers.parse("the hive of {name} reports the label {label}"))
def label_is_reported(described: Described, name: str, label: str) -> None:
    def shown() -> bool:
        hives = described.fleet.json("status")["hives"]
        return any(hive["hive_id"] == name and label in hive["machine"]["labels"] for hive in hives)

    wait_until(shown, f"the label {label} of {name}", 30)


@then("the source has not been asked")
def not_asked(described: Described) -> None:
    assert described.source.seen == []


@then(parsers.re("the model is whole and pinned on the disks? of (?P<names>far alone|far and near)"))
def model_is_there(described: Described, names: str) -> None:
    wanted = {"far alone": ["far"], "far and near": ["far", "near"]}[names]
    files = model_files(MODEL)
    for name in ("far", "near"):
        rows = described.catalogue(name)
        assert [row["pinned"] for row in rows] == [True] * (name in wanted), (name, rows)
        for row in rows:
            folder = described.machine(name).path(row["local_path"])
            assert {path: (folder / path).read_bytes() for path in files} == files


@then("the source has sent each of its files once")
def sent_once(described: Described) -> None:
    sent = Counter(seen.path for seen in described.source.requests(""))
    assert sent == dict.fromkeys((f"/{FETCHED}/{path}" for path in described.source.folders[FETCHED]), 1)


@then("the model is on no disk, and that of the operator is")
def model_is_gone(described: Described) -> None:
    for name in ("far", "near"):
        assert described.catalogue(name) == []
        folders = sorted(path.name for path in described.machine(name).path("/var/lib/rbee/models").iterdir())
        assert [one for one in folders if not one.startswith(".")] == [MODEL]


@then("near is not in the registry")
def near_is_gone(described: Described) -> None:
    assert [node["details"]["name"] for node in described.fleet.json("node", "list")["nodes"]] == ["far"]


@then("the hive of far and its workers are of the newer version")
def far_is_newer(described: Described) -> None:
    (hive,) = (one for one in described.fleet.json("status")["hives"] if one["hive_id"] == "far")
    versions = [described.fleet.row(f"far/{worker}")["version"] for worker in PAIR]
    assert [hive["version"], *versions] == [debs.NEXT] * 3


@then("the hive of far and its workers are of the newer version, and every request was answered")
def far_is_newer_and_served(described: Described) -> None:
    far_is_newer(described)
    assert list(described.outcomes.ended) == ["ok"], described.outcomes
    print(described.outcomes)
