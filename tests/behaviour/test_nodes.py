"""Steps of features/nodes.feature."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from pytest_bdd import given, parsers, scenarios, then, when

from tests.behaviour.support.person import Done, Person
from tests.behaviour.support.stack import Stack
from tests.machines.testbed import Machine, Network

scenarios("features/nodes.feature")

HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"
_EMPTY_PACKAGE = """Package: rbee-hive
Version: {version}
Architecture: all
Maintainer: nobody <nobody@example.org>
Description: a package of that name with nothing in it
"""


@dataclass
class Fleet:
    """A queen of processes, a machine with sshd, and the person between them."""

    stack: Stack
    machine: Machine
    person: Person
    key: Path
    last: list[Done] = field(default_factory=list)

    @property
    def print_of(self) -> str:
        """The fingerprint of the machine's host key, as the machine itself says it."""
        return self.machine.run(["ssh-keygen", "-lf", f"{HOST_KEY}.pub"]).stdout.split()[1]

    def rbee(self, *arguments: object, flags: tuple[object, ...] = ()) -> Done:
        """Run the command where the machine's network is."""
        done = self.person.start(*flags, *arguments, prefix=self.machine.network.in_network([])).wait()
        self.last.append(done)
        return done

    def add(self, name: str, *more: object, host: str = "", key: Path | None = None, **flags: object) -> Done:
        given = [item for flag, value in flags.items() for item in (f"--{flag.replace('_', '-')}", value)]
        host = host or self.machine.address
        return self.rbee("node", "add", name, "--host", host, "--key", key or self.key, *given, *more)

    def nodes(self) -> dict[str, dict[str, object]]:
        listing = self.stack.admin.get("/v2/registry/beehives/list").json["nodes"]
        return {node["details"]["name"]: node for node in listing}

    @property
    def said(self) -> str:
        return self.last[-1].out + self.last[-1].err


def new_key(path: Path) -> Path:
    key = ed25519.Ed25519PrivateKey.generate()
    forms = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(*forms))
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    path.with_suffix(".pub").write_bytes(public + b"\n")
    return path


@pytest.fixture(scope="module")
def far() -> Iterator[Machine]:
    """A machine without the project; its sshd runs."""
    with Network() as network:
        machine = network.add("far")
        machine.systemctl("start", "ssh")
        yield machine


@pytest.fixture
def fleet(shared_stack_queen: Stack, far: Machine, tmp_path: Path) -> Fleet:
    for name in list(Fleet(shared_stack_queen, far, Person(tmp_path), tmp_path).nodes()):
        shared_stack_queen.admin.post("/v2/registry/beehives/remove", {"name": name})
    key = new_key(tmp_path / "id")
    far.write("/root/.ssh/authorized_keys", (tmp_path / "id.pub").read_text(), 0o600)
    person = Person(tmp_path, "--socket", shared_stack_queen.run_dir / "queen.sock")
    return Fleet(shared_stack_queen, far, person, key)


@pytest.fixture(scope="module")
def shared_stack_queen(models: Path) -> Iterator[Stack]:
    """A queen alone, for all scenarios of this module."""
    made = Stack(models)
    try:
        made.start_queen()
        yield made
    finally:
        made.close()


@given("a queen, and a machine with sshd that takes the person's key")
def queen_and_machine(fleet: Fleet) -> None:
    assert fleet.nodes() == {}


# -- adding ----------------------------------------------------------------------------------------------------------


@given(parsers.parse("the machine is in the registry as {name}"))
@when(parsers.parse("the machine is added as {name} with its own host key's fingerprint"))
def machine_added(fleet: Fleet, name: str) -> None:
    fleet.add(name, host_key=fleet.print_of)


@when(parsers.parse("the machine is added as {name} without a fingerprint"))
def machine_added_without_fingerprint(fleet: Fleet, name: str) -> None:
    fleet.add(name)


@when(parsers.parse("a machine is added with the key {key} while no queen is there"))
def machine_added_with_missing_key(fleet: Fleet, key: str) -> None:
    person = Person(fleet.person.home, "--socket", fleet.person.home / "no.sock")
    fleet.last.append(person.rbee("node", "add", "far", "--host", fleet.machine.address, "--key", key))


@when(parsers.parse("an address that answers nothing is added as {name} within 1 s a try"))
def silent_address_added(fleet: Fleet, name: str) -> None:
    silent = "10.77.0.250"
    nobody = ["lladdr", "02:00:00:00:00:01", "dev", "br0", "nud", "permanent"]
    fleet.machine.network.run(["ip", "neigh", "replace", silent, *nobody])
    fleet.rbee("node", "add", name, "--host", silent, "--key", fleet.key, flags=("--timeout", "1"))


@when(parsers.parse("the machine is added as {name} with a key that it does not know"))
def machine_added_with_other_key(fleet: Fleet, name: str) -> None:
    fleet.add(name, key=new_key(fleet.person.home / "other"), host_key=fleet.print_of)


@given(parsers.parse("the machine has the package rbee-hive {version}"))
def machine_has_package(fleet: Fleet, version: str) -> None:
    fleet.machine.write("/tmp/empty/DEBIAN/control", _EMPTY_PACKAGE.format(version=version))
    fleet.machine.run(["dpkg-deb", "--build", "/tmp/empty", "/tmp/empty.deb"])
    fleet.machine.run(["dpkg", "--install", "/tmp/empty.deb"])


@when(parsers.parse("rbee {arguments} is run"))
def command_is_run(fleet: Fleet, arguments: str) -> None:
    fleet.rbee(*arguments.split())


# -- host keys -------------------------------------------------------------------------------------------------------


def know(fleet: Fleet, public: str) -> None:
    file = fleet.person.home / ".ssh" / "known_hosts"
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"{fleet.machine.address} {' '.join(public.split()[:2])}\n")


@given("the person's known_hosts has the machine's own key")
def machine_is_known(fleet: Fleet) -> None:
    know(fleet, fleet.machine.read(f"{HOST_KEY}.pub"))


@when("the person's known_hosts has another key of the machine")
def machine_is_known_otherwise(fleet: Fleet) -> None:
    know(fleet, new_key(fleet.person.home / "strange").with_suffix(".pub").read_text())


@when("the machine's host key is another one")
def host_key_changes(fleet: Fleet) -> None:
    fleet.machine.run(["mv", HOST_KEY, f"{HOST_KEY}.former"])
    fleet.machine.run(["cp", f"{HOST_KEY}.pub", f"{HOST_KEY}.former.pub"])
    fleet.machine.run(["sh", "-c", f"rm {HOST_KEY}.pub; ssh-keygen -q -t ed25519 -N '' -f {HOST_KEY}"])
    fleet.machine.systemctl("restart", "ssh")


@then("the machine has its former host key again")
def host_key_is_back(fleet: Fleet) -> None:
    fleet.machine.run(["sh", "-c", f"mv {HOST_KEY}.former {HOST_KEY}; mv {HOST_KEY}.former.pub {HOST_KEY}.pub"])
    fleet.machine.systemctl("restart", "ssh")


# -- what came of it -------------------------------------------------------------------------------------------------


@then(parsers.re(r"the command ends with (?P<code>\d)$"))
def command_ended(fleet: Fleet, code: str) -> None:
    assert fleet.last[-1].code == int(code), fleet.said


@then(parsers.parse("the command ends with {code:d} and says: {words}"))
def command_ended_and_said(fleet: Fleet, code: int, words: str) -> None:
    assert fleet.last[-1].code == code, fleet.said
    assert words in fleet.said


@then(parsers.parse("the command ends with {code:d} and says:"))
def command_ended_and_said_all(fleet: Fleet, code: int, datatable: list[list[str]]) -> None:
    assert fleet.last[-1].code == code, fleet.said
    for (words,) in datatable[1:]:
        assert words in fleet.said, (words, fleet.said)


@then(parsers.parse("it does not say: {words}"))
def command_did_not_say(fleet: Fleet, words: str) -> None:
    assert words not in fleet.said


@then(parsers.parse("it told: {facts}"))
def command_told(fleet: Fleet, facts: str) -> None:
    for fact in facts.split(", "):
        assert fact in fleet.said, (fact, fleet.said)


@then("it names the machine's own fingerprint")
def own_fingerprint_named(fleet: Fleet) -> None:
    assert fleet.print_of in fleet.said


@then(parsers.parse("{name} is not in the registry"))
def not_in_registry(fleet: Fleet, name: str) -> None:
    assert name not in fleet.nodes()


@then(parsers.parse("rbee node list shows {name} with its host, reachable, a time, not installed"))
def listed(fleet: Fleet, name: str) -> None:
    (line,) = [line for line in fleet.rbee("node", "list").out.splitlines() if line.startswith(name)]
    shown = line.split("\t")
    assert shown[1:3] == [fleet.machine.address, "reachable"]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d", shown[3])
    assert shown[4] == "not installed"


@then(parsers.re(r"rbee node list shows (?P<name>\S+) with (?P<version>[\d.]+)$"))
def listed_with_version(fleet: Fleet, name: str, version: str) -> None:
    (line,) = [line for line in fleet.rbee("node", "list").out.splitlines() if line.startswith(name)]
    assert line.split("\t")[4] == version


@then(parsers.parse("the queen's list has {name} at port 22, connected just now"))
def queen_has_node(fleet: Fleet, name: str) -> None:
    node = fleet.nodes()[name]
    details = node["details"]
    assert isinstance(details, dict)
    assert (details["port"], details["addresses"]) == (22, [fleet.machine.address])
    assert 0 <= time.time() - float(str(node["connected_unix"])) < 60


@then("the queen answers 409 to the same request")
def queen_refuses(fleet: Fleet) -> None:
    details = fleet.nodes()["far"]["details"]
    answer = fleet.stack.admin.post("/v2/registry/beehives/add", details)
    assert (answer.status, answer.json["error"]["code"]) == (409, "NODE_EXISTS")
