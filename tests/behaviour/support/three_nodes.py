"""A queen and three nodes on real machines, and a source of models that they reach; each was set up by `rbee node`."""

import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from rbee.keeper.demo import slow_talk
from tests.behaviour.support.fleet import (
    MODEL,
    SHARED,
    Json,
    Machines,
    bare,
    declare,
    make_queen,
    model_files,
    take_key,
)
from tests.behaviour.support.model_source import ModelSource
from tests.machines.testbed import Machine, Network, Release, debs

CROWD = "crowd"
"""A second declared model, for those who ask for it first; it takes its time for an answer."""
NAMES = ("one", "two", "three")
_STARTED = "MESSAGE_ID=39f53479d3a045ac8e11786248231fbf"
"""systemd's record of a unit that has started."""


@dataclass(kw_only=True)
class ThreeNodes(Machines):
    """``took`` are the seconds of each command that set the first node up and had it answer."""

    nodes: Mapping[str, Machine]
    source: ModelSource
    declared: dict[str, Json]
    took: dict[str, float] = field(default_factory=dict)

    def timed(self, command: str, *arguments: str) -> None:
        """Run a command; what it said is kept under its name, and the seconds that it took."""
        began = time.monotonic()
        self.said[command] = self.rbee(*command.split(), *arguments)
        self.took[command] = time.monotonic() - began

    def set_up_node(self, name: str) -> None:
        """rbee node add and install."""
        self.add(name, self.nodes[name])
        self.rbee("node", "install", name, "--packages", SHARED)

    def offer(self, model: str, folder: str) -> None:
        """Have the source offer a demonstration's model under a name; its declaration is to be told to the queen."""
        reference = self.source.folder(model, model_files(folder))
        self.declared[model] = {"reference": reference, "idle_limit_s": 0}

    def declare(self, model: str, **changes: Json) -> None:
        """Change a model's declaration, and have the queen read it."""
        self.declared[model] |= changes
        declare(self.queen, self.declared)
        self.queen.systemctl("reload", "rbee-queen")

    def serving(self, model: str) -> dict[str, Json]:
        """The rows of a model's workers by their node."""
        rows = self.json("worker", "list")["workers"]
        return {row["hive_id"]: row for row in rows if row["model"] == model}

    def starts(self) -> list[str]:
        """Units of workers that were started, on all nodes, once for each start."""
        records = [record for node in self.nodes.values() for record in node.journal(None, _STARTED)]
        units = [str(record.get("UNIT")) for record in records]
        return [unit for unit in units if unit.startswith("rbee-worker@")]


@contextmanager
def three_nodes(release: Release, built: debs.Repositories) -> Iterator[ThreeNodes]:
    """All of it: the first node by three commands one after the other, the others beside one another."""
    with three_bare_machines(release, built) as fleet:
        first, *rest = NAMES
        node = fleet.nodes[first]
        fleet.timed("node add", first, "--host", node.address, "--host-key", fleet.fingerprint(node))
        fleet.timed("node install", first, "--packages", SHARED)
        fleet.timed("infer", "--model", MODEL, "--prompt", "bees", "--max-tokens", "4")
        with ThreadPoolExecutor(len(rest)) as pool:
            list(pool.map(fleet.set_up_node, rest))
        yield fleet


@contextmanager
def three_bare_machines(release: Release, built: debs.Repositories) -> Iterator[ThreeNodes]:
    """The queen, the source, and machines that take the person's key and have nothing of the project."""
    with Network() as network:
        source = ModelSource(listener=network.listener()).start()
        try:
            yield _set_up(network, release, built, source)
        finally:
            source.close()


def _set_up(network: Network, release: Release, built: debs.Repositories, source: ModelSource) -> ThreeNodes:
    queen, *others = (bare(network, name, release, built) for name in ("queen", *NAMES))
    nodes = dict(zip(NAMES, others, strict=True))
    fleet = ThreeNodes(network=network, queen=queen, built=built, nodes=nodes, source=source, declared={})
    for name, folder in ((MODEL, MODEL), (CROWD, slow_talk.NAME)):
        fleet.offer(name, folder)
    make_queen(queen, built, fleet.declared)
    for machine in others:
        take_key(machine, queen)
    return fleet
