"""Steps of features/apply.feature; the scenarios share one fleet and run in the feature's order."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from pytest_bdd import given, parsers, scenarios, then, when

from tests.behaviour.support.fleet import HOST_KEY, MODEL, SHARED, Fleet, with_bare_far
from tests.machines.testbed import Machine, Network, Release, debs, wait_until

scenarios("features/apply.feature")
pytestmark = pytest.mark.timeout(400)

FILE = "/root/fleet.yaml"
LABEL = "fast-disk"
DECLARED = "org/talk"


@dataclass
class Described:
    """The machines, the content of the file, and what the last command said."""

    fleet: Fleet
    near: Machine
    content: dict[str, Any]
    code: int = 0
    said: str = ""
    before: dict[str, str] = field(default_factory=dict)

    def apply(self, *arguments: str) -> None:
        self.fleet.queen.write(FILE, yaml.safe_dump(self.content, sort_keys=False))
        done = self.fleet.queen.run(["rbee", "apply", FILE, *arguments], check=False, timeout=300)
        self.code, self.said = done.returncode, done.stdout + done.stderr

    def machine(self, name: str) -> Machine:
        return {"far": self.fleet.far, "near": self.near}[name]

    def labels(self, *nodes: str, labels: list[str]) -> None:
        for name in nodes:
            self.content["nodes"][name]["hive"]["labels"] = labels


def _node(machine: Machine, labels: list[str]) -> dict[str, Any]:
    fingerprint = machine.run(["ssh-keygen", "-lf", HOST_KEY]).stdout.split()[1]
    return {"host": machine.address, "host_key": fingerprint, "hive": {"labels": labels}}


@pytest.fixture(scope="module")
def shared(repositories: dict[Release, debs.Repositories]) -> Iterator[Described]:
    release = debs.RELEASES[0]
    with Network() as network:
        fleet = with_bare_far(network, release, repositories[release])
        near = fleet.bare("near")
        content = {
            "defaults": {"key": ".ssh/id_ed25519", "packages": SHARED},
            "nodes": {"far": _node(fleet.far, [LABEL]), "near": _node(near, [])},
            "declared": {
                DECLARED: {"reference": f"file:///var/lib/rbee/models/{MODEL}", "node": "far", "labels": [LABEL]}
            },
        }
        yield Described(fleet, near, content)


@given(
    "a queen's machine, two bare machines with sshd, and a file that describes them as far and near",
    target_fixture="described",
)
def described(shared: Described) -> Described:
    return shared


def listed(machine: Machine) -> str:
    """Every file of ours on a machine, with its time and inode."""
    files = "find /etc /var/lib/rbee /usr/share/keyrings -xdev -type f -printf '%p %T@ %i\\n' | sort"
    return machine.run(["sh", "-c", files]).stdout


# -- what is done ----------------------------------------------------------------------------------------------------


@when("the file is applied")
def applied(described: Described) -> None:
    described.apply()


@when("the file is applied again")
def applied_again(described: Described) -> None:
    far = described.fleet.far
    described.before = {"files": listed(far), "life": far.unit("rbee-hive.service")["InvocationID"]}
    described.apply()


@when(parsers.re("the file is applied with (?P<options>--.*)"))
def applied_with(described: Described, options: str) -> None:
    described.apply(*options.split())


@when("the file gives near the label fast-disk, and it is applied with --dry-run")
def label_given(described: Described) -> None:
    described.labels("near", labels=[LABEL])
    described.apply("--dry-run")


@when("the sshd of near is stopped, the file gives far and near the label spare, and it is applied")
def sshd_stopped(described: Described) -> None:
    described.near.systemctl("stop", "ssh")
    described.labels("far", "near", labels=[LABEL, "spare"])
    described.apply()


@when("the sshd of near is started, and the file is applied")
def sshd_started(described: Described) -> None:
    described.near.systemctl("start", "ssh")
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


@then("near is not in the registry")
def near_is_gone(described: Described) -> None:
    assert [node["details"]["name"] for node in described.fleet.json("node", "list")["nodes"]] == ["far"]
