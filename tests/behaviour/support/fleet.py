"""A fleet of real machines that apt and `rbee node` set up: a queen, where a person has an SSH key, and bare nodes."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.machines.testbed import Answer, Machine, Network, Release, debs, project, wait_until
from tests.machines.testbed.debs import apt

MODEL, WORKER = "bee-talk", "talk"
HOST_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"
SHARED = "/srv/this"
NEWER = "/srv/next"
"""The same code as a newer version."""
_PUBLIC = "[Socket]\nListenStream=\nListenStream=/run/rbee/queen.sock\nListenStream=0.0.0.0:8080\n"
Json = Any


@dataclass
class Outcomes:
    """How requests ended (``ok``, or what went wrong), by which worker, and the seconds of the longest one."""

    ended: Counter[str] = field(default_factory=Counter)
    by: Counter[str] = field(default_factory=Counter)
    longest_s: float = 0.0

    def note(self, ended: str, by: str, took_s: float) -> None:
        """Add one request."""
        self.ended[ended] += 1
        self.by[by] += 1
        self.longest_s = max(self.longest_s, took_s)


@dataclass(kw_only=True)
class Machines:
    """A queen's machine, and the ways to use it and to add nodes."""

    network: Network
    queen: Machine
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

    @staticmethod
    def fingerprint(machine: Machine) -> str:
        """The fingerprint of a machine's host key, as the machine itself says it."""
        return machine.run(["ssh-keygen", "-lf", HOST_KEY]).stdout.split()[1]

    def add(self, name: str, machine: Machine, *more: str) -> str:
        """rbee node add with the machine's own fingerprint."""
        return self.rbee("node", "add", name, "--host", machine.address, "--host-key", self.fingerprint(machine), *more)

    def infer(self, *more: str) -> str:
        """A prompt to the model; what the command said."""
        return self.rbee("infer", "--model", MODEL, "--prompt", "bees", "--max-tokens", "4", *more)

    def ask(self, model: str = MODEL, timeout: float = 60) -> Answer:
        """A completion of two tokens through the queen; raises OSError where no answer comes."""
        token = self.queen.read("/etc/credstore/rbee-queen.api_token").strip()
        body = {"model": model, "prompt": "bees", "max_tokens": 2}
        return self.queen.http("POST", 8080, "/v1/completions", json_body=body, token=token, timeout=timeout)

    @contextmanager
    def asked_all_along(self, clients: int = 1) -> Iterator[Outcomes]:
        """Requests through the queen, one after the other by each client, for the length of the block."""
        outcomes = Outcomes()
        stop, lock = threading.Event(), threading.Lock()

        def go_on() -> None:
            while not stop.is_set():
                began = time.monotonic()
                try:
                    answer = self.ask()
                    ended = "ok" if answer.status == 200 else f"{answer.status} {answer.text[:200]}"
                    by = answer.headers.get("x-rbee-worker", "")
                except OSError as error:
                    ended, by = f"{type(error).__name__} {error}", ""
                with lock:
                    outcomes.note(ended, by, time.monotonic() - began)

        threads = [threading.Thread(target=go_on) for _ in range(clients)]
        for thread in threads:
            thread.start()
        try:
            wait_until(lambda: outcomes.ended["ok"] >= 3, "the first answers", 60)
            yield outcomes
        finally:
            stop.set()
            for thread in threads:
                thread.join(90)

    def bare(self, name: str) -> Machine:
        """One more machine that takes the person's key and has the model, and nothing of the project."""
        machine = bare(self.network, name, self.queen.release, self.built)
        take_key(machine, self.queen)
        _put_model(machine)
        return machine


@dataclass(kw_only=True)
class Fleet(Machines):
    """The machines, and what the commands said that set the node ``far`` up."""

    far: Machine


def set_up(network: Network, release: Release, built: debs.Repositories) -> Fleet:
    """A queen by apt, told her own address; a bare machine; and the three commands that make it answer."""
    fleet = with_bare_far(network, release, built)
    fleet.said["add"] = fleet.add("far", fleet.far)
    fleet.said["install"] = fleet.rbee("node", "install", "far")
    fleet.said["infer"] = fleet.infer("--node", "far")
    return fleet


def with_bare_far(network: Network, release: Release, built: debs.Repositories) -> Fleet:
    """A queen by apt, told her own address, and a machine that takes the person's key and has nothing of ours."""
    queen, far = (bare(network, name, release, built) for name in ("queen", "far"))
    make_queen(queen, built)
    queen.write("/etc/systemd/system/rbee-queen.socket.d/public.conf", _PUBLIC)
    queen.write("/etc/rbee/rbee.yaml", f"node_packages: {SHARED}\n")
    queen.systemctl("daemon-reload")
    queen.systemctl("stop", "rbee-queen.service", "rbee-queen.socket")
    queen.systemctl("start", "rbee-queen.socket", "rbee-queen.service")
    take_key(far, queen)
    _put_model(far)
    return Fleet(network=network, queen=queen, far=far, built=built)


def make_queen(queen: Machine, built: debs.Repositories, models: Mapping[str, Json] | None = None) -> None:
    """A queen by apt on a bare machine, told her own address and the models that she declares; a person's SSH key."""
    release = queen.release
    files = {path.name.split("_")[0]: path.name for path in Path(built.this, "pool", release).glob("*.deb")}
    apt(queen, "install", *(f"{SHARED}/pool/{release}/{files[name]}" for name in ("rbee-common", "rbee-queen")))
    declare(queen, models or {})
    queen.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/root/.ssh/id_ed25519"])
    queen.systemctl("restart", "rbee-queen")


def declare(queen: Machine, models: Mapping[str, Json]) -> None:
    """Write her configuration; it is in force after a start or a reload."""
    config = {"public_url": f"http://{queen.address}:8080", "models": models}
    queen.write("/etc/rbee/queen.yaml", json.dumps(config))


def bare(network: Network, name: str, release: Release, built: debs.Repositories) -> Machine:
    """A machine with sshd and nothing of the project; its packages are under SHARED, newer ones under NEWER."""
    binds = [f"{built.this}:{SHARED}", f"{built.higher}:{NEWER}", f"{project.models()}:/srv/demo"]
    machine = network.add(name, release=release, binds=binds)
    machine.run(["sh", "-c", "rm -rf /etc/apt/sources.list /etc/apt/sources.list.d/*"])
    machine.systemctl("start", "ssh")
    return machine


def take_key(machine: Machine, queen: Machine) -> None:
    """Let the person on the queen's machine in as root."""
    machine.write("/root/.ssh/authorized_keys", queen.read("/root/.ssh/id_ed25519.pub"), 0o600)


def model_files(model: str) -> dict[str, bytes]:
    """The files of a demonstration's model, by their path in its folder."""
    folder = project.models() / project.MODELS / model
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _put_model(machine: Machine) -> None:
    """The model and the definition of a worker of it."""
    machine.run(["mkdir", "-p", "/var/lib/rbee/models", "/etc/rbee/workers"])
    machine.run(["cp", "-r", f"/srv/demo/{project.MODELS}/{MODEL}", "/var/lib/rbee/models/"])
    machine.write(f"/etc/rbee/workers/{WORKER}.yaml", f"model: /var/lib/rbee/models/{MODEL}\n")
