"""Steps of features/packages.feature."""

import re
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from pytest_bdd import given, parsers, scenarios, then, when

from rbee.keeper.commands.config import EXAMPLE
from tests.machines.testbed import Machine, Release, debs
from tests.machines.testbed.debs import NEXT, apt

scenarios("features/packages.feature")

Ran = subprocess.CompletedProcess[str]
MODEL = "all-minilm-l6-v2"
USER = "ann"
CREDENTIALS = "/etc/credstore"


@pytest.fixture(scope="module")
def installed(repositories: dict[Release, debs.Repositories]) -> Iterator[Machine]:
    """Debian 12 with every package, for all scenarios of this module."""
    release = debs.RELEASES[0]
    with debs.bare_node(release, repositories[release]) as machine:
        apt(machine, "install", "rbee")
        debs.put_model(machine, MODEL)
        machine.run(["useradd", "--create-home", USER])
        yield machine


@pytest.fixture
def seen() -> dict[str, Any]:
    """What a scenario's steps hand on."""
    return {}


@given("a machine on which apt has installed rbee from a signed repository", target_fixture="node")
def machine_with_packages(installed: Machine) -> Machine:
    apt(installed, "install", "rbee")
    return installed


def doctor(node: Machine) -> Ran:
    return node.run(["rbee", "doctor"], check=False)


# -- what is in place ------------------------------------------------------------------------------------------------


@then("these paths are there:")
def paths_are_there(node: Machine, datatable: list[list[str]]) -> None:
    missing = [path for (path,) in datatable[1:] if node.run(["test", "-e", path], check=False).returncode]
    assert missing == []


@then(parsers.parse("the units {names} are enabled and active"))
def units_are_up(node: Machine, names: str) -> None:
    assert set(node.systemctl("is-enabled", *names.split()).split()) == {"enabled"}
    assert set(node.systemctl("is-active", *names.split()).split()) == {"active"}


@then("rbee doctor exits 0 and every line begins with ok or warn")
def doctor_agrees(node: Machine) -> None:
    done = doctor(node)
    assert done.returncode == 0, done.stdout
    heads = {line.split()[0] for line in done.stdout.splitlines()}
    assert heads <= {"ok", "warn", "next:"}, done.stdout


@when("the token rbee.worker_api_token is taken away and rbee-hive is stopped")
def take_away(node: Machine) -> None:
    node.systemctl("stop", "rbee-hive.socket", "rbee-hive.service")
    node.run(["mv", f"{CREDENTIALS}/rbee.worker_api_token", "/root/kept"])


@then("rbee doctor exits 1 with these lines:")
def doctor_tells(node: Machine, datatable: list[list[str]]) -> None:
    done = doctor(node)
    assert done.returncode == 1
    assert [line for (line,) in datatable[1:] if line not in done.stdout] == [], done.stdout


@then("what was taken away is put back")
def put_back(node: Machine) -> None:
    node.run(["mv", "/root/kept", f"{CREDENTIALS}/rbee.worker_api_token"])
    node.systemctl("start", "rbee-hive.socket", "rbee-hive.service")
    assert doctor(node).returncode == 0


# -- what is missing -------------------------------------------------------------------------------------------------


@when("a worker with backend cuda is started")
def start_on_gpu(node: Machine, seen: dict[str, Any]) -> None:
    node.write("/etc/rbee/workers/gpu.yaml", f"model: /var/lib/rbee/models/{MODEL}\nbackend: cuda\n")
    seen["start"] = node.run(["systemctl", "start", "rbee-worker@gpu"], check=False)


@then("its start fails, and systemctl status names the library that cannot be loaded and the package to install")
def start_fails(node: Machine, seen: dict[str, Any]) -> None:
    status = node.systemctl("status", "rbee-worker@gpu", check=False)
    node.run(["rm", "/etc/rbee/workers/gpu.yaml"])
    node.systemctl("reset-failed")
    assert seen["start"].returncode != 0
    assert re.search(r"lib[\w.]+ cannot be loaded; install \S+", status), status


@when("a worker is spawned by rbee with backend cuda")
def spawn_on_gpu(node: Machine, seen: dict[str, Any]) -> None:
    command = ["rbee", "worker", "spawn", "gpu", "--model", f"file:///var/lib/rbee/models/{MODEL}", "--backend", "cuda"]
    seen["spawn"] = node.run(command, check=False)


@then("it exits 1, names the package nvidia-open and the backend cpu, and no worker is there")
def gpu_refused(node: Machine, seen: dict[str, Any]) -> None:
    done: Ran = seen["spawn"]
    assert done.returncode == 1, done.stdout + done.stderr
    assert "nvidia-open" in done.stderr, done.stderr
    assert "cpu" in done.stderr
    assert node.systemctl("list-units", "--all", "--plain", "--no-legend", "rbee-worker@gpu.service") == ""


@when("apt is asked for rbee-worker of a higher version beside rbee-hive of this one")
def ask_for_both(node: Machine, seen: dict[str, Any]) -> None:
    debs.use(node, "higher")
    worker, hive = (debs.version_in(node, where, "rbee-worker") for where in ("higher", "this"))
    wanted = [f"rbee-worker={worker}", f"rbee-hive={hive}"]
    seen["apt"] = node.run(["apt-get", "--simulate", "install", *wanted], check=False)
    debs.use(node, "this")


@then("apt refuses: rbee-hive depends on rbee-common of its own version")
def apt_refuses(seen: dict[str, Any]) -> None:
    done: Ran = seen["apt"]
    assert done.returncode != 0
    assert re.search(rf"rbee-hive : Depends: rbee-common \(= \S+\) but {NEXT}", done.stdout), done.stdout + done.stderr


@when("rbee-worker is removed")
def remove_worker(node: Machine) -> None:
    apt(node, "remove", "rbee-worker")


@then("rbee worker spawn exits 1 and says: apt install rbee-worker")
def spawn_refused(node: Machine) -> None:
    command = ["rbee", "worker", "spawn", "bees", "--model", f"file:///var/lib/rbee/models/{MODEL}"]
    done = node.run(command, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "apt install rbee-worker" in done.stderr, done.stderr


@then("rbee doctor says: apt install rbee-worker")
def doctor_says(node: Machine) -> None:
    assert "next: apt install rbee-worker" in doctor(node).stdout


# -- the command's own configuration ---------------------------------------------------------------------------------


def rbee(node: Machine, *arguments: str, **variables: str) -> Ran:
    return node.run(["rbee", *arguments], user=USER, env={"HOME": f"/home/{USER}", **variables}, check=False)


@when("an ordinary user runs rbee config init")
def config_init(node: Machine, seen: dict[str, Any]) -> None:
    node.run(["rm", "-rf", f"/home/{USER}/.config"])
    seen["init"] = rbee(node, "config", "init")


@then("~/.config/rbee/config.yaml of that user is valid and rbee config show names it")
def config_is_there(node: Machine, seen: dict[str, Any]) -> None:
    assert seen["init"].returncode == 0, seen["init"].stderr
    path = f"/home/{USER}/.config/rbee/config.yaml"
    assert node.read(path) == EXAMPLE
    shown = rbee(node, "config", "show", "--json")
    assert yaml.safe_load(shown.stdout)["source"] == path, shown.stderr


@then("a second rbee config init exits 1 and leaves the file as it is")
def config_stays(node: Machine) -> None:
    path = f"/home/{USER}/.config/rbee/config.yaml"
    node.write(path, "queen_url: http://queen.example:8080\n")
    assert rbee(node, "config", "init").returncode == 1
    assert node.read(path) == "queen_url: http://queen.example:8080\n"


@given("four addresses: by flag, by RBEE_CONFIG, in the user's file, in the system's")
def four_addresses(node: Machine) -> None:
    for path in ("/etc/rbee/rbee.yaml", f"/home/{USER}/.config/rbee/config.yaml", "/srv/named.yaml"):
        node.write(path, f"queen_url: http://{path.strip('/').split('/')[0]}.example:8080\n")


@then("the address in force, as each is taken away, is that of the flag, RBEE_CONFIG, the user, the system")
def priority(node: Machine) -> None:
    def address(*flags: str, **variables: str) -> str:
        done = rbee(node, *flags, "config", "show", "--json", **variables)
        return str(yaml.safe_load(done.stdout)["queen"]["address"])

    named = {"RBEE_CONFIG": "/srv/named.yaml"}
    found = [address("--queen-url", "http://flag.example:8080", **named), address(**named), address()]
    node.run(["rm", f"/home/{USER}/.config/rbee/config.yaml"])
    found.append(address())
    node.run(["rm", "/etc/rbee/rbee.yaml"])
    assert found == [f"http://{where}.example:8080" for where in ("flag", "srv", "home", "etc")]
