"""The testbed keeps its promises: real systemd, power failure, partitions, and nothing shared or left behind."""

import subprocess
from pathlib import Path

import pytest

from tests.machines.testbed import Machine, Network, failed_units, on_every_release, wait_until

NOTIFIER = """[Service]
Type=notify
ExecStart=/usr/bin/python3 /srv/notifier.py
StateDirectory=notifier
"""
NOTIFIER_CODE = """import http.server, os, socket
from pathlib import Path
life = Path(os.environ["STATE_DIRECTORY"], "lives")
life.write_text(str(int(life.read_text() or 0) + 1 if life.exists() else 1))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = life.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments): pass
server = http.server.HTTPServer(("0.0.0.0", 8000), Handler)
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as said:
    said.connect(os.environ["NOTIFY_SOCKET"])
    said.send(b"READY=1\\nSTATUS=ready to test")
server.serve_forever()
"""


def start_notifier(machine: Machine) -> None:
    machine.write("/srv/notifier.py", NOTIFIER_CODE)
    machine.add_unit("notifier.service", NOTIFIER)
    machine.systemctl("start", "notifier.service")


def reaches(source: Machine, target: Machine) -> bool:
    asked = source.run(["curl", "-s", "-m", "2", f"http://{target.name}:8000/"], check=False)
    return asked.stdout.isdigit()


@on_every_release
def test_a_machine_boots_a_real_systemd_and_runs_a_notify_service(bare_machine: Machine) -> None:
    assert bare_machine.run(["systemctl", "is-system-running"]).stdout == "running\n"
    assert failed_units(bare_machine) == []
    start_notifier(bare_machine)
    unit = bare_machine.unit("notifier.service")
    assert (unit["ActiveState"], unit["StatusText"]) == ("active", "ready to test")
    assert bare_machine.http("GET", 8000, "/").text == "1"
    messages = [record["MESSAGE"] for record in bare_machine.journal("notifier.service")]
    assert "Started notifier.service." in " ".join(messages)


def test_a_power_failure_keeps_the_disk_and_ends_every_process(bare_machine: Machine) -> None:
    start_notifier(bare_machine)
    main = int(bare_machine.unit("notifier.service")["MainPID"])
    assert main > 1
    bare_machine.kill_power()
    assert bare_machine.pid == 0
    bare_machine.boot()
    bare_machine.systemctl("start", "notifier.service")
    assert bare_machine.http("GET", 8000, "/").text == "2"


def test_a_clean_poweroff_ends_the_machine(bare_machine: Machine) -> None:
    first = bare_machine.pid
    bare_machine.poweroff()
    assert not Path(f"/proc/{first}").exists()


def test_partition_drop_and_heal_between_two_machines(network: Network) -> None:
    one, two = network.add("one"), network.add("two")
    start_notifier(one)
    start_notifier(two)
    assert reaches(one, two)
    assert reaches(two, one)
    network.partition(two)
    assert not reaches(one, two)
    assert two.http("GET", 8000, "/").status == 200
    network.heal(two)
    wait_until(lambda: reaches(one, two), "the healed network")
    network.drop(one, two)
    assert not reaches(one, two)
    network.undrop(one, two)
    wait_until(lambda: reaches(one, two), "the network without the rule")


def test_two_machines_share_no_control_group_and_no_disk(network: Network) -> None:
    one, two = network.add("one"), network.add("two")
    start_notifier(one)
    start_notifier(two)
    # A process of another machine in the same group would be listed as 0.
    assert "0" not in one.run(["cat", "/sys/fs/cgroup/system.slice/notifier.service/cgroup.procs"]).stdout.split()
    one.systemctl("stop", "notifier.service")
    assert two.http("GET", 8000, "/").text == "1"
    one.write("/srv/only-here", "x")
    assert not two.path("/srv/only-here").exists()
    assert one.read("/etc/machine-id") != two.read("/etc/machine-id")


def test_commands_run_as_the_user_that_is_asked_for(bare_machine: Machine) -> None:
    bare_machine.run(["useradd", "ann"])
    assert bare_machine.run(["id", "-un"], user="ann").stdout == "ann\n"
    assert bare_machine.run(["systemctl", "stop", "ssh.service"], user="ann", check=False).returncode != 0
    assert bare_machine.unit("ssh.service")["ActiveState"] == "active"


def test_a_command_past_its_time_limit_is_killed_on_the_machine(bare_machine: Machine) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        bare_machine.run(["sleep", "987"], timeout=0.5)
    wait_until(lambda: bare_machine.run(["pgrep", "-x", "sleep"], check=False).stdout == "", "sleep is gone", 5)


def test_credentials_and_the_sandbox_work_inside(bare_machine: Machine) -> None:
    bare_machine.write("/etc/credstore/secret", "honey", mode=0o600)
    unit = """[Service]
Type=oneshot
RemainAfterExit=yes
DynamicUser=yes
StateDirectory=seen
LoadCredential=secret:/etc/credstore/secret
ProtectSystem=strict
PrivateTmp=yes
SystemCallFilter=@system-service
ExecStart=/bin/sh -c 'cat "$CREDENTIALS_DIRECTORY/secret" >"$STATE_DIRECTORY/secret"; ! touch /usr/x'
"""
    bare_machine.add_unit("sandboxed.service", unit)
    bare_machine.systemctl("start", "sandboxed.service")
    assert bare_machine.read("/var/lib/private/seen/secret") == "honey"


def test_a_machine_reboots_with_its_disk_and_a_new_life(bare_machine: Machine) -> None:
    pid = bare_machine.pid
    bare_machine.write("/srv/kept", "x")
    bare_machine.write("/run/lost", "x")
    bare_machine.reboot()
    assert bare_machine.pid != pid
    assert (bare_machine.path("/srv/kept").exists(), bare_machine.path("/run/lost").exists()) == (True, False)


def test_nothing_is_left_of_a_network() -> None:
    with Network() as network:
        machine = network.add("node")
        pids = [network.pid, machine.pid]
        folder = network.folder
        assert folder.exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not folder.exists()
    assert str(folder) not in Path("/proc/self/mounts").read_text()
