"""A fleet of real machines that apt and `rbee node` set up: a queen, where a person has an SSH key, and bare nodes."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.machines.testbed import Machine, Network, Release, debs, project, wait_until
from tests.machines.testbed.debs import apt

MODEL, WORKER = "bee-talk", "talk"
HOST_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"
SHARED = "/srv/this"
_PUBLIC = "[Socket]\nListenStream=\nListenStream=/run/rbee/queen.sock\nListenStream=0.0.0.0:8080\n"
Json = Any


@dataclass
class Fleet:
    """The machines, and what the commands said that set the node ``far`` up."""

    network: Network
    queen: Machine
    far: Machine
    built: debs.Repositories
    said: dict[str, str] = field(default_factory=dict)
    seen: dict[str, Json] = field(default_factory=dict)

    def rbee(self, *arguments: str, check: bool = True, timeout: float = 300) -> str:
        """Run the command as root on the queen's machine; its stdout and stderr."""
        done = self.queen.run(["rbee", *arguments], check=check, timeout=timeout)
        return done.stdout + done.stderr

    def json(self, *arguments: str) -> Json:
        """What the command prints with --json."""
        return json.loads(self.queen.run(["rbee", *arguments, "--json"], timeout=300).stdout)

    def node(self, name: str) -> Json:
        """One node of the registry."""
        return next(node for node in self.json("node", "list")["nodes"] if node["details"]["name"] == name)

    def row(self, worker: str) -> Json:
        """A worker of the queen's list, as HIVE/WORKER."""
        rows = self.json("worker", "list")["workers"]
        return next(row for row in rows if f"{row['hive_id']}/{row['worker_id']}" == worker)

    def alerts(self) -> list[str]:
        """What the queen wrote for a person to act upon."""
        return [str(record["MESSAGE"]) for record in self.queen.journal("rbee-queen.service", "PRIORITY=1")]

    def add(self, name: str, machine: Machine, *more: str) -> str:
        """rbee node add with the machine's own fingerprint."""
        fingerprint = machine.run(["ssh-keygen", "-lf", HOST_KEY]).stdout.split()[1]
        return self.rbee("node", "add", name, "--host", machine.address, "--host-key", fingerprint, *more)

    def infer(self, *more: str) -> str:
        """A prompt to the model; what the command said."""
        return self.rbee("infer", "--model", MODEL, "--prompt", "bees", "--max-tokens", "4", *more)

    @contextmanager
    def asked_all_along(self) -> Iterator[Counter[str]]:
        """Requests through the queen, one after the other, for the length of the block; how each one ended."""
        token = self.queen.read("/etc/credstore/rbee-queen.api_token").strip()
        body = {"model": MODEL, "prompt": "bees", "max_tokens": 2}
        outcomes: Counter[str] = Counter()
        stop = threading.Event()

        def go_on() -> None:
            while not stop.is_set():
                try:
                    answer = self.queen.http("POST", 8080, "/v1/completions", json_body=body, token=token, timeout=60)
                    outcomes["ok" if answer.status == 200 else f"{answer.status} {answer.text[:200]}"] += 1
                except OSError as error:
                    outcomes[f"{type(error).__name__} {error}"] += 1

        thread = threading.Thread(target=go_on)
        thread.start()
        try:
            wait_until(lambda: outcomes["ok"] >= 3, "the first answers", 60)
            yield outcomes
        finally:
            stop.set()
            thread.join(90)

    def bare(self, name: str) -> Machine:
        """One more machine that takes the person's key and has the model, and nothing of the project."""
        machine = _bare(self.network, name, self.queen.release, self.built)
        _take_key(machine, self.queen)
        _put_model(machine)
        return machine


def set_up(network: Network, release: Release, built: debs.Repositories) -> Fleet:
    """A queen by apt, told her own address; a bare machine; and the three commands that make it answer."""
    fleet = with_bare_far(network, release, built)
    fleet.said["add"] = fleet.add("far", fleet.far)
    fleet.said["install"] = fleet.rbee("node", "install", "far")
    fleet.said["infer"] = fleet.infer("--node", "far")
    return fleet


def with_bare_far(network: Network, release: Release, built: debs.Repositories) -> Fleet:
    """A queen by apt, told her own address, and a machine that takes the person's key and has nothing of ours."""
    queen, far = (_bare(network, name, release, built) for name in ("queen", "far"))
    files = {path.name.split("_")[0]: path.name for path in Path(built.this, "pool", release).glob("*.deb")}
    apt(queen, "install", *(f"{SHARED}/pool/{release}/{files[name]}" for name in ("rbee-common", "rbee-queen")))
    queen.write("/etc/rbee/queen.yaml", f"public_url: http://{queen.address}:8080\n")
    queen.write("/etc/systemd/system/rbee-queen.socket.d/public.conf", _PUBLIC)
    queen.write("/etc/rbee/rbee.yaml", f"node_packages: {SHARED}\n")
    queen.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519"])
    queen.systemctl("daemon-reload")
    queen.systemctl("stop", "rbee-queen.service", "rbee-queen.socket")
    queen.systemctl("start", "rbee-queen.socket", "rbee-queen.service")
    _take_key(far, queen)
    _put_model(far)
    return Fleet(network, queen, far, built)


def _bare(network: Network, name: str, release: Release, built: debs.Repositories) -> Machine:
    binds = [f"{built.this}:{SHARED}", f"{project.models()}:/srv/demo"]
    machine = network.add(name, release=release, binds=binds)
    machine.run(["sh", "-c", "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*"])
    machine.systemctl("start", "ssh")
    return machine


def _take_key(machine: Machine, queen: Machine) -> None:
    machine.write("/root/.ssh/authorized_keys", queen.read("/root/.ssh/id_ed25519.pub"), 0o600)


def _put_model(machine: Machine) -> None:
    """The model and the definition of a worker of it."""
    machine.run(["mkdir", "-p", "/var/lib/rbee/models", "/etc/rbee/workers"])
    machine.run(["cp", "-r", f"/srv/demo/{project.MODELS}/{MODEL}", "/var/lib/rbee/models/"])
    machine.write(f"/etc/rbee/workers/{WORKER}.yaml", f"model: /var/lib/rbee/models/{MODEL}\n")
