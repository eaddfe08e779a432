"""The units on a real systemd, D-Bus and polkit: who may do what, what stays and what goes.

The programs that the units start are a few lines that speak sd_notify: what is shown here is the units' own doing.
"""

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.machines.testbed import Machine, Network, Release, wait_until

UNITS = Path(__file__).resolve().parents[2] / "units"
TOKENS = ("rbee-queen.api_token", "rbee.hive_callback_token", "rbee.hive_api_token", "rbee.worker_api_token")
SERVICES = ("rbee-queen.service", "rbee-hive.service", "rbee-worker@a.service")
MANAGER = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
WORKER = "rbee-worker@a.service"
SECURITY = UNITS.parent / "docs/security.md"
# What the table calls shorter than systemd-analyze does.
CHECKS = {
    "AF_UNIX": "RestrictAddressFamilies=~AF_UNIX",
    "AF_INET": "RestrictAddressFamilies=~AF_(INET|INET6)",
    "RootDirectory": "RootDirectory=/RootImage=",
    "resources": "SystemCallFilter=~@resources",
}

PROGRAM = """#!/usr/bin/python3
import os, signal, socket, sys, threading
credentials = os.environ["CREDENTIALS_DIRECTORY"]
def token(*_):
    print("token", open(f"{credentials}/worker_api_token").read().strip(), flush=True)
notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
notify.connect(os.environ["NOTIFY_SOCKET"])
sockets = [socket.socket(fileno=3 + n) for n in range(int(os.environ.get("LISTEN_FDS", "0")))]
if "RUNTIME_DIRECTORY" in os.environ:
    sockets = [socket.socket(socket.AF_UNIX)]
    sockets[0].bind(os.environ["RUNTIME_DIRECTORY"] + "/worker.sock")
    os.chmod(os.environ["RUNTIME_DIRECTORY"] + "/worker.sock", 0o666)
    sockets[0].listen()
    open(os.environ["RUNTIME_DIRECTORY"] + "/worker.json", "w").write("{}")
def serve(listener):
    while True:
        client = listener.accept()[0]
        client.sendall(listener.family.name.encode())
        client.close()
for each in sockets:
    threading.Thread(target=serve, args=(each,), daemon=True).start()
signal.signal(signal.SIGHUP, token)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
token()
notify.send(b"READY=1")
while True:
    notify.send(b"WATCHDOG=1")
    threading.Event().wait(5)
"""


def install(machine: Machine) -> None:
    """Put the units where a package puts them, with the programs they name, and make the tokens."""
    for path in UNITS.glob("rbee*"):
        machine.put(path, f"/usr/lib/systemd/system/{path.name}")
    machine.put(UNITS / "sysusers.d/rbee.conf", "/usr/lib/sysusers.d/rbee.conf")
    machine.put(UNITS / "tmpfiles.d/rbee.conf", "/usr/lib/tmpfiles.d/rbee.conf")
    machine.write("/usr/share/polkit-1/rules.d/50-rbee.rules", (UNITS / "polkit/50-rbee.rules").read_text())
    machine.put(UNITS / "refresh-credentials", "/usr/lib/rbee/refresh-credentials")
    for name in ("queen", "hive", "worker"):
        machine.write(f"/usr/bin/rbee-{name}", PROGRAM, 0o755)
    machine.run(["systemd-sysusers"])
    machine.run(["systemd-tmpfiles", "--create", "rbee.conf"])
    for token in TOKENS:
        machine.write(f"/etc/credstore/{token}", f"first-{token}\n", 0o600)
    machine.systemctl("daemon-reload")
    enabled = ("rbee.target", "rbee-queen.service", "rbee-hive.service", "rbee-worker@a", "rbee-worker@b")
    machine.systemctl("enable", *enabled)


@pytest.fixture(scope="module", params=list(Release))
def fresh(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Network() as network:
        machine = network.add("node", release=request.param)
        install(machine)
        yield machine


@pytest.fixture
def node(fresh: Machine) -> Machine:
    """The machine with queen, hive and two workers running."""
    fresh.systemctl("reset-failed")
    fresh.systemctl("start", "rbee.target")
    for unit in (*SERVICES, "rbee-worker@b.service"):
        fresh.systemctl("start", unit)
    return fresh


def states(machine: Machine, *units: str) -> list[str]:
    return [machine.unit(unit)["ActiveState"] for unit in units]


def call(machine: Machine, *arguments: str, user: str = "rbee-hive") -> str:
    """One call of systemd's manager; what busctl says, empty or a job when it was done."""
    done = machine.run(["busctl", "call", "--timeout=20", *MANAGER, *arguments], user=user, check=False)
    return done.stdout.strip() if done.returncode == 0 else f"refused: {done.stderr.strip()}"


def test_systemd_of_the_release_reads_the_units_without_a_warning(fresh: Machine) -> None:
    units = ["/usr/lib/systemd/system/" + path.name.replace("@.", "@a.") for path in UNITS.glob("rbee*")]
    done = fresh.run(["systemd-analyze", "verify", "--man=no", *units], check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("unit", SERVICES)
def test_the_exposure_of_the_running_unit_is_at_most_1_5(node: Machine, unit: str) -> None:
    node.run(["systemd-analyze", "security", "--no-pager", "--threshold=15", unit])


@pytest.mark.parametrize("unit", SERVICES)
def test_docs_security_names_what_systemd_finds_open_and_its_sum(node: Machine, unit: str) -> None:
    analyze = ["systemd-analyze", "security", "--no-pager"]
    shown = node.run([*analyze, unit]).stdout
    checks = json.loads(node.run([*analyze, "--json=short", unit]).stdout)
    found = {check["name"]: float(check["exposure"]) for check in checks if check["exposure"] is not None}
    assert documented(unit.replace("@a.", "@.")) == (re.findall(r"exposure level for \S+ (\d+\.\d)", shown)[0], found)


def documented(unit: str) -> tuple[str, dict[str, float]]:
    """The exposure of a unit in docs/security.md's table, and the weight of each check that is open, by its name."""
    total, weights, current = "", {}, ""
    for line in SECURITY.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) != 4:
            continue
        current = cells[0] or current
        if current == unit:
            total = total or cells[1]
            weights |= {name: float(weight) for name, weight in re.findall(r"(\w+) (\d\.\d)", cells[2])}
    return total, {CHECKS.get(name, f"{name}="): weight for name, weight in weights.items()}


@pytest.mark.parametrize(
    ("verb", "before"),
    [("StartUnit", "stop"), ("StopUnit", "start"), ("RestartUnit", "start"), ("ReloadUnit", "start")],
)
def test_the_hive_may(node: Machine, verb: str, before: str) -> None:
    node.systemctl(before, WORKER)
    life = node.unit(WORKER)["InvocationID"]
    assert call(node, verb, "ss", WORKER, "replace").startswith("o ")
    if verb == "StopUnit":
        node.wait_for_unit(WORKER, "inactive")
    else:
        node.wait_for_unit(WORKER)
        changed = node.unit(WORKER)["InvocationID"] != life
        assert changed == (verb in {"StartUnit", "RestartUnit"})


def test_the_hive_may_reset_a_failed_worker(node: Machine) -> None:
    path = "/etc/credstore/rbee.worker_api_token"
    kept = node.read(path)
    node.path(path).unlink()
    node.systemctl("restart", WORKER, check=False)
    node.write(path, kept, 0o600)
    assert states(node, WORKER) == ["failed"]
    assert call(node, "ResetFailedUnit", "s", WORKER) == ""
    assert states(node, WORKER) == ["inactive"]


OTHER_UNITS = (
    *("rbee-queen.service", "rbee-hive.service", "rbee.target", "rbee-worker@a.socket", "ssh.service"),
    *("rbee-worker@a_b.service", r"rbee-worker@a\x2db.service", "rbee-worker@..-..-etc-passwd.service"),
    *(f"rbee-worker@{'a' * 65}.service", "xrbee-worker@a.service", "rbee-worker@.service"),
)


@pytest.mark.parametrize("unit", OTHER_UNITS)
@pytest.mark.parametrize("verb", ["StartUnit", "StopUnit", "RestartUnit", "ReloadUnit"])
def test_the_hive_may_not_touch_another_unit(node: Machine, unit: str, verb: str) -> None:
    said = call(node, verb, "ss", unit, "replace")
    assert re.search(r"refused: .*(Access denied|not loaded|not found|is not valid|is missing)", said), said


OTHER_VERBS: dict[str, tuple[str, ...]] = {
    "TryRestartUnit": ("ss", WORKER, "replace"),
    "ReloadOrRestartUnit": ("ss", WORKER, "replace"),
    "KillUnit": ("ssi", WORKER, "all", "9"),
    "SetUnitProperties": ("sba(sv)", WORKER, "true", "1", "MemoryMax", "t", "1"),
    "StartTransientUnit": ("ssa(sv)a(sa(sv))", "other.service", "replace", "0", "0"),
    "EnableUnitFiles": ("asbb", "1", WORKER, "true", "true"),
    "DisableUnitFiles": ("asb", "1", WORKER, "true"),
    "MaskUnitFiles": ("asbb", "1", WORKER, "true", "true"),
    "CleanUnit": ("sas", WORKER, "1", "all"),
    "FreezeUnit": ("s", WORKER),
    "RefUnit": ("s", WORKER),
    "EnqueueUnitJob": ("sss", WORKER, "start", "replace"),
    "SetEnvironment": ("as", "1", "A=b"),
    "ResetFailed": (),
    "Reload": (),
    "Reexecute": (),
    "PowerOff": (),
}


@pytest.mark.parametrize("verb", OTHER_VERBS)
def test_the_hive_may_do_nothing_else(node: Machine, verb: str) -> None:
    assert "Access denied" in call(node, verb, *OTHER_VERBS[verb])
    assert states(node, *SERVICES) == ["active"] * 3


@pytest.mark.parametrize("user", ["rbee-queen", "rbee-worker", "nobody"])
def test_nobody_else_may_control_a_worker(node: Machine, user: str) -> None:
    assert call(node, "StopUnit", "ss", WORKER, "replace", user=user).startswith("refused: ")
    assert states(node, WORKER) == ["active"]


def test_an_unprivileged_user_reads_no_token(node: Machine) -> None:
    found = node.run(["find", "/run/credentials", "/etc/credstore", "-type", "f", "-name", "*token*"]).stdout.split()
    assert len(found) == len(TOKENS) + 4 + 3 + 2
    for path in found:
        assert "Permission denied" in node.run(["cat", path], user="nobody", check=False).stderr


def test_a_worker_reads_no_token_but_its_own(node: Machine) -> None:
    for path in ("rbee-queen.service/api_token", "rbee-hive.service/hive_api_token"):
        done = node.run(["cat", f"/run/credentials/{path}"], user="rbee-worker", check=False)
        assert "Permission denied" in done.stderr


def test_a_missing_credential_fails_the_start_with_243_and_is_not_tried_again(node: Machine) -> None:
    path = "/etc/credstore/rbee.worker_api_token"
    kept = node.read(path)
    node.path(path).unlink()
    try:
        node.systemctl("restart", WORKER, check=False)
        time.sleep(1.5)
        unit = node.unit(WORKER)
    finally:
        node.write(path, kept, 0o600)
    assert (unit["ActiveState"], unit["ExecMainStatus"], unit["NRestarts"]) == ("failed", "243", "0")


@pytest.mark.parametrize("unit", SERVICES)
def test_a_reload_brings_the_new_token_without_a_restart(node: Machine, unit: str) -> None:
    before = node.unit(unit)["InvocationID"]
    value = f"rotated-{time.monotonic_ns()}"
    node.write("/etc/credstore/rbee.worker_api_token", f"{value}\n", 0o600)
    node.systemctl("reload", unit)
    wait_until(lambda: _said(node, unit, f"token {value}"), "the new token")
    assert node.unit(unit)["InvocationID"] == before
    mounted = node.run(["findmnt", "--noheadings", "--output=OPTIONS", f"/run/credentials/{unit}"]).stdout
    assert "ro" in mounted.strip().split(",")


def _said(machine: Machine, unit: str, message: str) -> bool:
    return any(record["MESSAGE"] == message for record in machine.journal(unit))


def test_a_reload_without_the_token_file_fails_and_the_daemon_keeps_the_old_one(node: Machine) -> None:
    path = "/etc/credstore/rbee.worker_api_token"
    kept = node.read(path)
    node.path(path).unlink()
    try:
        assert node.run(["systemctl", "reload", WORKER], check=False).returncode == 1
    finally:
        node.write(path, kept, 0o600)
    assert states(node, WORKER) == ["active"]
    assert any("is missing, the credentials stay" in record["MESSAGE"] for record in node.journal(WORKER))
    assert node.read(f"/run/credentials/{WORKER}/worker_api_token") == kept


@pytest.mark.parametrize(
    ("unit", "where", "family"),
    [
        ("rbee-queen.service", "/run/rbee/queen.sock", "AF_UNIX"),
        ("rbee-queen.service", 8080, "AF_INET"),
        ("rbee-hive.service", "/run/rbee/hive.sock", "AF_UNIX"),
        ("rbee-hive.service", 9200, "AF_INET"),
    ],
)
def test_the_first_caller_starts_the_daemon(node: Machine, unit: str, where: str | int, family: str) -> None:
    node.systemctl("stop", unit)
    with node.connect(where) as connected:
        assert connected.recv(64).decode() == family
    node.wait_for_unit(unit)


def test_anybody_may_connect_to_the_unix_sockets(node: Machine) -> None:
    ask = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(64).decode())"
    for path in ("/run/rbee/queen.sock", "/run/rbee/hive.sock", "/run/rbee/workers/a/worker.sock"):
        assert node.run(["python3", "-c", ask, path], user="nobody").stdout == "AF_UNIX\n"


def test_one_worker_goes_and_the_folders_of_the_others_stay(node: Machine) -> None:
    node.write("/run/rbee/workers/a.yaml", "model: x\n")
    node.systemctl("stop", WORKER)
    left = sorted(path.name for path in node.path("/run/rbee/workers").iterdir())
    node.path("/run/rbee/workers/a.yaml").unlink()
    assert left == ["a.yaml", "b"]
    assert node.path("/run/rbee/queen.sock").is_socket()


def test_a_hive_that_goes_and_comes_leaves_the_workers_running(node: Machine) -> None:
    before = [node.unit(f"rbee-worker@{name}.service")["InvocationID"] for name in "ab"]
    for verb in ("restart", "stop", "start"):
        node.systemctl(verb, "rbee-hive.service")
    hive = node.unit("rbee-hive.service")
    node.run(["kill", "-KILL", hive["MainPID"]])
    wait_until(lambda: node.unit("rbee-hive.service")["MainPID"] not in {"0", hive["MainPID"]}, "another hive")
    # a death that systemd answers with a restart is no failure yet: callers wait in the socket
    assert states(node, "rbee-hive.socket", "rbee-hive-failed.target") == ["active", "inactive"]
    assert [node.unit(f"rbee-worker@{name}.service")["InvocationID"] for name in "ab"] == before
    assert states(node, "rbee-worker@a.service", "rbee-worker@b.service") == ["active", "active"]


def test_stopping_the_target_stops_all_and_starting_it_brings_all_back(node: Machine) -> None:
    everything = (*SERVICES, "rbee-worker@b.service", "rbee-queen.socket", "rbee-hive.socket")
    node.systemctl("stop", "rbee.target")
    for unit in everything:
        node.wait_for_unit(unit, "inactive", 30)
    assert [path.name for path in node.path("/run/rbee").iterdir()] == ["workers"]
    node.systemctl("start", "rbee.target")
    for unit in everything:
        node.wait_for_unit(unit)


def test_a_worker_started_alone_before_any_folder_is_there(node: Machine) -> None:
    node.systemctl("stop", "rbee.target")
    node.wait_for_unit("rbee-worker@b.service", "inactive")
    node.run(["rm", "-r", "/run/rbee"])
    node.systemctl("start", WORKER)
    node.systemctl("start", "rbee-hive.service")
    owners = node.run(["stat", "--format=%U", "/run/rbee/workers", "/run/rbee/workers/a"]).stdout.split()
    assert owners == ["rbee-hive", "rbee-worker"]
    assert states(node, WORKER, "rbee-hive.service") == ["active", "active"]


def test_a_link_that_the_hive_makes_is_not_followed_to_give_a_folder_away(node: Machine) -> None:
    node.run(["mkdir", "-p", "/etc/other"])
    node.run(["ln", "-s", "/etc/other", "/run/rbee/workers/link"], user="rbee-hive")
    node.systemctl("start", "rbee-worker@link.service", check=False)
    node.path("/run/rbee/workers/link").unlink()
    assert node.run(["stat", "--format=%U", "/etc/other"]).stdout == "root\n"
    assert node.unit("rbee-worker@link.service")["ExecMainStatus"] == "233"


def test_a_record_of_a_worker_carries_its_id(node: Machine) -> None:
    assert any("token" in record["MESSAGE"] for record in node.journal(None, "RBEE_WORKER=a"))


@pytest.mark.parametrize(("daemon", "port"), [("queen", 8080), ("hive", 9200)])
def test_a_daemon_that_cannot_start_says_why_and_one_restart_brings_it_back(
    node: Machine, daemon: str, port: int
) -> None:
    service, socket = f"rbee-{daemon}.service", f"rbee-{daemon}.socket"
    node.write(f"/usr/bin/rbee-{daemon}", "#!/bin/sh\nexit 78\n", 0o755)
    with Callers(node, port) as callers:
        for verb in ("restart", "start", "restart", "start"):  # tries before the reason is mended, none refused
            node.systemctl(verb, service, check=False)
            node.wait_for_unit(socket, "inactive")
            failed = node.unit(service)
            assert (failed["ActiveState"], failed["Result"], failed["ExecMainStatus"]) == ("failed", "exit-code", "78")
        node.systemctl("start", socket, check=False)  # a caller comes first: the same
        node.wait_for_unit(socket, "inactive")
        starts = len([r for r in node.journal(None, "_PID=1") if r["MESSAGE"].startswith(f"Starting {service}")])
        time.sleep(1.0)  # nothing starts it again and again
        assert starts == len(
            [r for r in node.journal(None, "_PID=1") if r["MESSAGE"].startswith(f"Starting {service}")]
        )
        assert callers.refused
        node.write(f"/usr/bin/rbee-{daemon}", PROGRAM, 0o755)
        node.systemctl("restart", service)
        assert states(node, service, socket, f"rbee-{daemon}-failed.target") == ["active", "active", "inactive"]
    with node.connect(port) as connected:
        assert connected.recv(64).decode() == "AF_INET"


class Callers:
    """Somebody who connects to a port of the machine all the time, until the block ends."""

    def __init__(self, machine: Machine, port: int) -> None:
        self._machine, self._port = machine, port
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on)
        self.refused = 0

    def __enter__(self) -> "Callers":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _go_on(self) -> None:
        while not self._stop.wait(0.01):
            try:
                self._machine.connect(self._port).close()
            except OSError:
                self.refused += 1


def test_a_reboot_brings_everything_back(node: Machine) -> None:
    node.poweroff()
    node.boot()
    for unit in (*SERVICES, "rbee-worker@b.service"):
        node.wait_for_unit(unit)
    warned = [
        r["MESSAGE"]
        for r in node.journal(None, "_PID=1")
        if r["MESSAGE"].startswith("rbee") and int(r["PRIORITY"]) <= 4
    ]
    assert warned == []
