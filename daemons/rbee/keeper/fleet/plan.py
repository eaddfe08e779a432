"""The steps from the fleet that is there to the one that its file describes: a pure decision."""

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET

from rbee.keeper.fleet.file import FleetFile, FleetModel, FleetNode
from rbee.keeper.nodes import layout
from rbee.keeper.nodes.host_keys import fingerprint
from rbee.wire.declarations import Declaration, DeclaredBy, DeclaredModel
from rbee.wire.messages import WorkerReport
from rbee.wire.model_messages import ModelRow
from rbee.wire.nodes import Node, NodeDetails, NodeStatus

WORKER_PACKAGE = "rbee-worker"


class Action(enum.StrEnum):
    """What a step does; ``look`` stands for a node that could not be looked at, so that its steps are not known."""

    LOOK = "look at"
    ADD = "add"
    UPDATE = "update"
    INSTALL = "set up"
    PULL = "fetch"
    PIN = "pin"
    UNPIN = "unpin"
    RESTART = "restart"
    DECLARE = "declare"
    UNDECLARE = "take back"
    REMOVE_MODEL = "remove model"
    REMOVE_NODE = "remove node"

    @property
    def removes(self) -> bool:
        """Whether something is gone after it."""
        return self in (Action.UNDECLARE, Action.REMOVE_MODEL, Action.REMOVE_NODE)


class Difference(msgspec.Struct, frozen=True):
    """What is otherwise than the file says: ``before`` is what is there, empty where nothing is."""

    field: str
    before: str
    after: str


class Step(msgspec.Struct, frozen=True):
    """One thing to do. ``node`` is None where it is the queen's; ``obstacle`` says why it cannot be done."""

    action: Action
    subject: str
    node: str | None = None
    differences: list[Difference] = []
    obstacle: str = ""


@dataclass(frozen=True, slots=True)
class Probe:
    """What SSH found on a node: versions of packages ('' where absent), those that their source has, its hive.yaml.

    ``offered`` is empty where nothing says what the source is; ``older`` names packages of which it has an older one.
    """

    installed: Mapping[str, str]
    offered: Mapping[str, str] = field(default_factory=dict)
    hive_yaml: str | None = None
    older: Sequence[str] = ()

    @property
    def behind(self) -> bool:
        """Whether the source has other packages than are installed."""
        return any(self.offered.get(package, there) != there for package, there in self.installed.items())


@dataclass(frozen=True, slots=True)
class Actual:
    """The fleet as it is. ``unseen``: why a node could not be looked at; a catalogue that is missing is not known."""

    nodes: Mapping[str, Node] = field(default_factory=dict)
    probes: Mapping[str, Probe] = field(default_factory=dict)
    unseen: Mapping[str, str] = field(default_factory=dict)
    catalogues: Mapping[str, Sequence[ModelRow]] = field(default_factory=dict)
    declarations: Sequence[Declaration] = ()
    workers: Sequence[WorkerReport] = ()


def plan(fleet: FleetFile, actual: Actual, *, prune: bool = False) -> list[Step]:
    """Every step, in an order that is right: nodes, what is on them, workers whose code is not their node's any more,
    declarations; with ``prune``, removals at the end.

    Steps of one node follow one another; those of several nodes do not depend on each other, but for restarts.
    """
    steps: list[Step] = []
    for name, wanted in sorted(fleet.machines.items()):
        if name in actual.unseen:
            steps.append(Step(Action.LOOK, name, name, obstacle=actual.unseen[name]))
            continue
        steps += _of_node(name, wanted, actual)
        steps += _of_disk(name, fleet.models_of(name), actual.catalogues.get(name, ()))
    steps += _restarts(fleet, actual)
    steps += _declared(fleet.declarations, actual.declarations)
    return steps + (list(_pruned(fleet, actual)) if prune else [])


def leads_elsewhere(wanted: FleetNode, known: NodeDetails) -> bool:
    """Whether SSH goes another way by the file than by the registry, so that a look by the latter tells nothing."""
    return any(one.field in ("host", "port", "user", "key", "host_key") for one in _registered(wanted, known))


# nodes


def _of_node(name: str, wanted: FleetNode, actual: Actual) -> Iterator[Step]:
    node = actual.nodes.get(name)
    if node is None:
        yield Step(Action.ADD, name, name, [Difference("host", "", f"{wanted.user}@{wanted.host}:{wanted.port}")])
        yield Step(Action.INSTALL, name, name, list(_settings(None, wanted)))
        return
    changed = list(_registered(wanted, node.details))
    if changed:
        yield Step(Action.UPDATE, name, name, changed)
    reasons = [one for one in changed if one.field in ("host", "addresses", "tls")]
    probe = actual.probes.get(name)
    reasons += _unlike(node, wanted, probe)
    if reasons:
        yield Step(Action.INSTALL, name, name, reasons, "" if probe is None else _backwards(name, probe))


def _registered(wanted: FleetNode, known: NodeDetails) -> Iterator[Difference]:
    """What the registry has otherwise; what the file leaves out is right as it is."""
    pairs: list[tuple[str, Any, Any]] = [
        ("host", known.host, wanted.host),
        ("port", known.port, wanted.port),
        ("user", known.user, wanted.user),
        ("key", known.key_file or "", wanted.key),
        ("host_key", fingerprint(known.host_key), wanted.host_key),
        ("addresses", sorted(known.addresses), sorted(wanted.addresses or []) or None),
        ("packages", known.source, wanted.packages or None),
        ("tls", known.tls.value, wanted.tls.value),
    ]
    for name, before, after in pairs:
        if after is not None and before != after:
            yield Difference(name, _shown(before), _shown(after))


def _unlike(node: Node, wanted: FleetNode, probe: Probe | None) -> Iterator[Difference]:
    """What the node itself has otherwise; ``probe`` is None where it is reached another way from now on."""
    if not node.enrolled:
        yield Difference("credentials", "", "its own")
    if node.status is not NodeStatus.ONLINE:
        yield Difference("hive", node.status.value, NodeStatus.ONLINE.value)
    if probe is None:
        yield from _settings(None, wanted)
        return
    for package, there in probe.installed.items():
        offered = probe.offered.get(package, there or "newest")
        if offered != there:
            yield Difference(package, there, offered)
    yield from _settings(probe.hive_yaml, wanted)


def _backwards(name: str, probe: Probe) -> str:
    """Why a node's packages cannot be what its source has, empty where they can."""
    if not probe.older:
        return ""
    told = ", ".join(f"{one} {probe.offered[one]} ({probe.installed[one]} is installed)" for one in probe.older)
    return (
        f"the source is older than what runs: it has {told}; name a newer source, or go back yourself by "
        f"'rbee node install {name} --packages FOLDER'"
    )


def _restarts(fleet: FleetFile, actual: Actual) -> Iterator[Step]:
    """Workers that run another version of the code than their node has, or is about to have."""
    for worker in sorted(actual.workers, key=lambda one: (one.hive_id, one.worker_id)):
        probe = actual.probes.get(worker.hive_id)
        if worker.hive_id not in fleet.machines or probe is None or probe.older:
            continue
        if not (worker.managed and worker.version and worker.state.ready):
            continue
        version = _code(probe.offered.get(WORKER_PACKAGE) or probe.installed.get(WORKER_PACKAGE, ""))
        if version and version != worker.version:
            yield Step(
                Action.RESTART, worker.worker_id, worker.hive_id, [Difference("version", worker.version, version)]
            )


def _code(package_version: str) -> str:
    """The version of the code in a package's: what follows a plus says where it was built."""
    return package_version.partition("+")[0]


def _settings(hive_yaml: str | None, wanted: FleetNode) -> Iterator[Difference]:
    for key, before, after in layout.unlike(hive_yaml, wanted.hive.keys()):
        yield Difference(f"hive.{key}", "" if before is None else _shown(before), _shown(after))


# models


def _of_disk(name: str, wanted: Sequence[FleetModel], rows: Sequence[ModelRow]) -> Iterator[Step]:
    there = {row.id: row for row in rows}
    for model in wanted:
        row = there.get(model.reference.model_id)
        if row is None:
            yield Step(Action.PULL, model.source, name)
        if model.pinned != (row is not None and row.pinned):
            yield Step(Action.PIN if model.pinned else Action.UNPIN, model.source, name)


def _declared(wanted: Mapping[str, DeclaredModel], there: Sequence[Declaration]) -> Iterator[Step]:
    known = {one.model: one for one in there}
    for name, declared in sorted(wanted.items()):
        present = known.get(name)
        if present is not None and present.declaration == declared:
            continue
        by_file = present is not None and present.declared_by is DeclaredBy.FILE
        obstacle = "queen.yaml declares it otherwise and wins: change it there, and reload the queen" if by_file else ""
        differences = list(_fields(None if present is None else present.declaration, declared))
        yield Step(Action.DECLARE, name, None, differences, obstacle)


def _fields(before: DeclaredModel | None, after: DeclaredModel) -> Iterator[Difference]:
    old: dict[str, Any] = {} if before is None else msgspec.to_builtins(before)
    new: dict[str, Any] = msgspec.to_builtins(after)
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield Difference(name, *(_shown(each[name]) if name in each else "" for each in (old, new)))


# removals


def _pruned(fleet: FleetFile, actual: Actual) -> Iterator[Step]:
    """What the file's own sections do not name; a model that somebody uses, declares, or put there himself stays."""
    if fleet.declared is not UNSET:
        for one in actual.declarations:
            if one.declared_by is DeclaredBy.API and one.model not in fleet.declared:
                yield Step(Action.UNDECLARE, one.model)
    if fleet.models is not UNSET:
        declared = {one.reference for one in fleet.declarations.values()}
        declared |= {
            one.declaration.reference
            for one in actual.declarations
            if one.declared_by is DeclaredBy.FILE or fleet.declared is UNSET
        }
        for name in sorted(fleet.machines.keys() & actual.catalogues.keys()):
            named = {model.reference.model_id for model in fleet.models_of(name)}
            for row in actual.catalogues[name]:
                if row.owned and not row.in_use and row.id not in named and row.reference not in declared:
                    yield Step(Action.REMOVE_MODEL, row.id, name, [Difference("source", row.reference, "")])
    if fleet.nodes is not UNSET:
        for name in sorted(actual.nodes.keys() - fleet.nodes.keys()):
            yield Step(Action.REMOVE_NODE, name, name)


def _shown(value: Any) -> str:  # noqa: ANN401
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
