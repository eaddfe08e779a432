"""The Debian packages on a bare machine: installed, served, upgraded under load, rebooted, removed, purged.

The packages are built by packaging/build and kept under a key of their content. Each release takes two builds of a
minute or two: RBEE_PACKAGES=bookworm leaves Debian 13 out.
"""

import json
import re
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.machines.testbed import Machine, Release, debs, failed_units, project, wait_until
from tests.machines.testbed.debs import NEXT, apt, use
from tests.machines.testbed.packages import CHECKOUT

DEBIAN = CHECKOUT / "packaging/debian"
TOKENS = project.TOKENS
WORKER, MODEL = "minilm", "all-minilm-l6-v2"
DAEMONS = ("rbee-queen.service", "rbee-hive.service")
SITE = "usr/lib/rbee/venv/lib/python*/site-packages"
# What a machine has of its own after packages came and went: apt's and systemd's records, logs, caches.
NOT_OURS = re.compile(
    r"^/(proc|sys|dev|run|tmp|srv|var/(log|cache|tmp|lib/(apt|dpkg|systemd|private))|root)(/|$)"
    r"|^/etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$|^/etc/\.pwd\.lock$|^/etc/credstore(\.encrypted)?$"
)


@pytest.fixture(scope="module", params=debs.RELEASES, ids=str)
def packages_release(request: pytest.FixtureRequest) -> Release:
    return Release(request.param)


@pytest.fixture
def node(packages_release: Release, repositories: dict[Release, debs.Repositories]) -> Iterator[Machine]:
    """A bare machine that knows this checkout's repository; nothing is installed."""
    with debs.bare_node(packages_release, repositories[packages_release]) as machine:
        yield machine


def token(machine: Machine) -> str:
    return machine.read("/etc/credstore/rbee-queen.api_token").strip()


def ask(machine: Machine, timeout: float = 60) -> str:
    """One embedding through the queen: "ok", or what came instead."""
    body = {"model": MODEL, "input": "a bee in a field of clover"}
    answer = machine.http("POST", 8080, "/v1/embeddings", json_body=body, token=token(machine), timeout=timeout)
    if answer.status != 200:
        return f"{answer.status} {answer.text[:300]}"
    return "ok" if len(answer.json()["data"][0]["embedding"]) == 384 else "another shape"


@dataclass
class Load:
    """Requests through the queen, one after the other in each of three threads, until the block ends."""

    machine: Machine
    outcomes: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> "Load":
        for _ in range(3):
            thread = threading.Thread(target=self._go_on)
            thread.start()
            self._threads.append(thread)
        wait_until(lambda: self.outcomes["ok"] >= 10, "the first answers", 30)
        return self

    def _go_on(self) -> None:
        while not self._stop.wait(0.03):
            try:
                outcome = ask(self.machine)
            except (OSError, ValueError) as error:
                outcome = f"{type(error).__name__}: {error}"
            self.outcomes[outcome] += 1

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)


def life(machine: Machine, unit: str) -> tuple[str, str]:
    facts = machine.unit(unit)
    return facts["MainPID"], facts["InvocationID"]


def files(machine: Machine) -> set[str]:
    listed = machine.run(["find", "/", "-xdev", "-not", "-type", "d", "-print"], timeout=120).stdout.splitlines()
    folders = machine.run(["find", "/", "-xdev", "-type", "d", "-print"], timeout=120).stdout.splitlines()
    return {path for path in (*listed, *folders) if not NOT_OURS.search(path)}


def users(machine: Machine) -> set[str]:
    return set((machine.read("/etc/passwd") + machine.read("/etc/group")).splitlines())


@pytest.mark.timeout(300)
def test_from_a_bare_machine_to_an_answer_and_back_to_a_bare_machine(node: Machine) -> None:
    files_before, users_before = files(node), users(node)
    said = apt(node, "install", "rbee")
    assert not any(node.read(f"/etc/credstore/{name}").strip() in said for name in TOKENS)
    assert failed_units(node) == []

    # the queen's straight way is compiled, its source beside it, and it is what she runs
    (site,) = node.path("/").glob(SITE)
    compiled = [path for path in site.glob("rbee/**/*.so") if path.with_name(f"{path.name.split('.')[0]}.py").is_file()]
    assert len(compiled) == len(list(site.glob("rbee/**/*.so"))) > 10
    node.run(["grep", "-q", "/rbee__mypyc[.]", f"/proc/{life(node, DAEMONS[0])[0]}/maps"])

    debs.put_model(node, MODEL)
    node.write(f"/etc/rbee/workers/{WORKER}.yaml", f"model: /var/lib/rbee/models/{MODEL}\n")
    node.systemctl("enable", "--now", f"rbee-worker@{WORKER}")
    wait_until(lambda: ask(node) == "ok", "the first answer", 30, 0.2)

    # a GPU that is not there is named, with the package that would help; nothing falls back in silence
    node.write("/etc/rbee/workers/gpu.yaml", f"model: /var/lib/rbee/models/{MODEL}\nbackend: cuda\n")
    assert node.run(["systemctl", "start", "rbee-worker@gpu"], check=False).returncode != 0
    status = node.systemctl("status", "rbee-worker@gpu", check=False)
    assert re.search(r"lib[\w.]+ cannot be loaded; install \S+", status), status
    node.run(["rm", "/etc/rbee/workers/gpu.yaml"])
    node.systemctl("reset-failed")

    # a reboot: the enabled worker serves again, without a hand
    node.poweroff()
    node.boot()
    wait_until(lambda: node.unit(f"rbee-worker@{WORKER}.service")["ActiveState"] == "active", "the worker", 90)
    assert ask(node) == "ok"
    assert failed_units(node) == []

    # removed: everything stopped, everything kept
    kept = {name: node.read(f"/etc/credstore/{name}") for name in TOKENS}
    node.write("/etc/rbee/queen.yaml", node.read("/etc/rbee/queen.yaml") + "aliases: {bees: all-minilm-l6-v2}\n")
    apt(node, "remove", *debs.PACKAGES)
    assert node.run(["pgrep", "-f", "/usr/lib/rbee"], check=False).stdout == ""
    assert {name: node.read(f"/etc/credstore/{name}") for name in TOKENS} == kept
    assert node.path(f"/var/lib/rbee/models/{MODEL}").is_dir()
    assert node.path("/var/lib/rbee/queen/queen.db").is_file()
    apt(node, "install", "rbee")
    assert "bees" in node.read("/etc/rbee/queen.yaml")
    wait_until(lambda: ask(node) == "ok", "an answer after the reinstallation", 60, 1)

    # purged: nothing of ours is left, and nothing else is gone
    apt(node, "purge", *debs.PACKAGES)
    assert sorted(files(node) - files_before) == []
    lost = {path for path in files_before - files(node) if not path.startswith("/usr/lib/rbee")}
    assert lost == set()
    left = {line for line in users(node) - users_before if not line.startswith("video:")}
    assert left == set(), left
    known = node.systemctl("list-unit-files") + node.systemctl("list-units", "--all")
    left_units = [line for line in known.splitlines() if "rbee" in line]
    assert left_units == [], left_units
    assert not list(node.path("/etc/credstore").glob("rbee*"))
    assert not node.path("/run/rbee").exists()


@pytest.mark.timeout(300)
def test_the_packages_own_tests_pass_under_autopkgtest(node: Machine) -> None:
    debs.install_on_demand(node, "autopkgtest")
    shutil.copytree(DEBIAN, node.path("/srv/source/debian"))
    # its backend "null" tests the machine that it is called on, which is one of its own: this one
    options = ["--no-built-binaries", "--ignore-restrictions=isolation-machine", "--output-dir=/srv/results"]
    done = node.run(["autopkgtest", *options, "/srv/source/", "--", "null"], timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    results = re.findall(r"^(\S+)\s+(\S+)", node.read("/srv/results/summary"), re.M)
    named = re.findall(r"^Tests: (\S+)", (DEBIAN / "tests/control").read_text(), re.M)
    assert results == [(name, "PASS") for name in named]


@pytest.mark.timeout(300)
def test_an_upgrade_under_load_fails_no_request_and_restarts_no_worker(node: Machine) -> None:
    apt(node, "install", "rbee")
    debs.put_model(node, MODEL)
    node.write(f"/etc/rbee/workers/{WORKER}.yaml", f"model: /var/lib/rbee/models/{MODEL}\n")
    edited = node.read("/etc/rbee/hive.yaml") + "\n# a word of the operator's\nidle_limit_s: 0\n"
    node.write("/etc/rbee/hive.yaml", edited)
    node.systemctl("restart", "rbee-hive")
    node.systemctl("start", f"rbee-worker@{WORKER}")
    wait_until(lambda: ask(node) == "ok", "the first answer", 60, 0.5)
    unit = f"rbee-worker@{WORKER}.service"
    worker, before = life(node, unit), {daemon: life(node, daemon) for daemon in DAEMONS}
    secrets = {name: node.read(f"/etc/credstore/{name}") for name in TOKENS}
    debs.install_on_demand(node, "needrestart")
    assert node.http("PUT", 8080, "/v2/aliases/bees", json_body={"model": MODEL}, token=token(node)).status == 200
    use(node, "higher")
    with Load(node) as load:
        said = apt(node, "-o", "Dpkg::Options::=--force-confold", "upgrade", needrestart="a")
        for daemon in DAEMONS:
            node.wait_for_unit(daemon)
        after = load.outcomes["ok"]
        wait_until(lambda: load.outcomes["ok"] >= after + 20, "answers of the upgraded queen", 60)
    print(f"requests during the upgrade: {dict(load.outcomes)}")
    assert set(load.outcomes) == {"ok"}, load.outcomes
    assert life(node, unit) == worker
    assert all(life(node, daemon) != before[daemon] for daemon in DAEMONS)
    assert f"systemctl restart {unit}" in said, said
    assert node.read("/etc/rbee/hive.yaml") == edited
    assert {name: node.read(f"/etc/credstore/{name}") for name in TOKENS} == secrets
    assert NEXT in node.run(["rbee", "version"]).stdout
    doctor = node.run(["rbee", "doctor"], check=False).stdout
    assert f"systemctl restart {unit}" in doctor, doctor
    # needrestart would have restarted it, were it not for the package's word in its configuration
    node.run(["rm", "/etc/needrestart/conf.d/50-rbee.conf"])
    node.run(["needrestart", "-r", "a"], timeout=120)
    assert life(node, unit) != worker
    wait_until(lambda: ask(node) == "ok", "an answer of the new worker", 60, 0.5)
    assert facts(node)["version"] == NEXT

    # the database was migrated with its content; an older package does not take it back, and nothing changes
    assert "CREATE TABLE" in (content := database(node))
    assert debs.MIGRATED in content
    assert "'bees'" in content
    use(node, "this")
    downgrade = [f"{name}={debs.version_in(node, 'this', name)}" for name in debs.PACKAGES]
    said = apt(node, "--allow-downgrades", "install", *downgrade, check=False)
    assert "a newer rbee has written it" in said, said
    assert installed(node) == {NEXT}
    assert node.run(["dpkg", "--audit"]).stdout == ""
    assert ask(node) == "ok"
    assert database(node) == content


DUMP = """import sqlite3
connection = sqlite3.connect("/var/lib/rbee/queen/queen.db")
print(connection.execute("PRAGMA user_version").fetchone(), *connection.iterdump(), sep="\\n")
"""


def database(machine: Machine) -> str:
    """The queen's database as text, without the times when hives were last heard."""
    dump = machine.run(["python3", "-c", DUMP]).stdout.splitlines()
    return "\n".join(line for line in dump if not line.startswith('INSERT INTO "hives"'))


def installed(machine: Machine) -> set[str]:
    """The versions of the project's packages, without the release that they are for."""
    shown = machine.run(["dpkg-query", "-W", "-f", "${Version} ${db:Status-Abbrev}\n", *debs.PACKAGES]).stdout
    assert set(re.findall(r" (\w+)", shown)) == {"ii"}, shown
    return set(re.findall(r"^([\d.]+)\+", shown, re.M))


CHECK = """import sqlite3
print(sqlite3.connect("/var/lib/rbee/queen/queen.db").execute("PRAGMA quick_check").fetchone())
"""


def facts(machine: Machine) -> dict[str, Any]:
    found = json.loads(machine.read(f"/run/rbee/workers/{WORKER}/worker.json"))
    assert isinstance(found, dict)
    return found


@pytest.mark.timeout(300)
def test_a_broken_configuration_at_an_upgrade_is_named_and_costs_no_data(node: Machine) -> None:
    apt(node, "install", "rbee")
    node.run(["rbee", "status"])
    node.write("/etc/rbee/queen.yaml", "listen:\n  port: eighty\n")
    # this time by HTTP, as on other machines
    node.run(["systemd-run", "--unit=mirror", "python3", "-m", "http.server", "--directory=/srv/higher", "8099"])
    wait_until(lambda: node.run(["curl", "-sf", "http://127.0.0.1:8099/"], check=False).stdout, "the web server")
    use(node, "higher", "http://127.0.0.1:8099")
    apt(node, "-o", "Dpkg::Options::=--force-confold", "upgrade")
    node.wait_for_unit("rbee-queen.service", "failed")
    status = node.systemctl("status", "rbee-queen.service", check=False)
    assert "/etc/rbee/queen.yaml:2: listen.port" in status, status
    assert node.run(["python3", "-c", CHECK]).stdout.strip() == "('ok',)"
    doctor = node.run(["rbee", "doctor"], check=False)
    assert doctor.returncode == 1
    assert "next: mend it, then systemctl restart rbee-queen\n" in doctor.stdout, doctor.stdout
    assert "rbee-queen.socket" not in doctor.stdout, doctor.stdout  # closed until then: no trouble of its own
    node.write("/etc/rbee/queen.yaml", "log_level: info\n")
    node.systemctl("restart", "rbee-queen")
    assert f"version {NEXT}" in node.run(["rbee", "status"]).stdout
