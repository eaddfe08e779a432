"""What fleet.yaml says: nodes, models on their disks, declared models; read into types, errors with line and field."""

from collections.abc import Container, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from rbee.host.config import load_config, locate, shown
from rbee.wire.declarations import DeclaredModel, ModelName
from rbee.wire.errors import ConfigError, InvalidModelReference, InvalidRequest
from rbee.wire.messages import HiveId
from rbee.wire.model_reference import ModelReference, parse
from rbee.wire.names import model_reference
from rbee.wire.nodes import Addresses, Host, NodeTls, Source, SshPort, User, checked_addresses

Fingerprint = Annotated[str, Meta(pattern=r"^SHA256:[A-Za-z0-9+/]{43}\Z")]
FilePath = Annotated[str, Meta(min_length=1, max_length=1024, pattern=r"^[^\x00-\x1f]*\Z")]
Label = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
EVERY_NODE = "all"


class StoreSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keys of ``models`` in hive.yaml; each that is left out stays as it is on the node."""

    hf_endpoint: (
        Annotated[str, Meta(pattern=r"^https?://[A-Za-z0-9.\[\]:_/-]+$", max_length=300)] | UnsetType | None
    ) = UNSET
    bandwidth_limit_mbps: Annotated[float, Meta(gt=0)] | UnsetType | None = UNSET
    disk_budget_mb: Annotated[int, Meta(ge=1)] | UnsetType | None = UNSET
    disk_reserve_mb: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    downloads_at_once: Annotated[int, Meta(ge=1, le=16)] | UnsetType = UNSET


class HiveSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Keys of a node's hive.yaml that are its operator's; each that is left out stays as it is on the node."""

    labels: list[Label] | UnsetType = UNSET
    idle_limit_s: Annotated[float, Meta(ge=0)] | UnsetType = UNSET
    heartbeat_interval_s: Seconds | UnsetType = UNSET
    health_interval_s: Seconds | UnsetType = UNSET
    models: StoreSettings | UnsetType = UNSET
    log_level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] | UnsetType = UNSET

    def keys(self) -> dict[str, Any]:
        """Those that are given, as they stand in hive.yaml."""
        given: dict[str, Any] = msgspec.to_builtins(self)
        return given


class Access(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``defaults``: what holds for each node that does not say otherwise."""

    user: User = "root"
    port: SshPort = 22
    key: FilePath | None = None
    packages: Source = ""
    keyring: FilePath | None = None


class FleetNode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One machine; what is left out is that of ``defaults``.

    ``key`` is the file of the person's private key, ``host_key`` the fingerprint of the server's (null: known_hosts has
    it), ``addresses`` where its workers may be (empty: the one that is reached), ``packages`` a folder of .deb files or
    a line of apt that ``keyring`` signs. Files are looked for beside fleet.yaml. ``hive``: keys of its hive.yaml.
    """

    host: Host
    port: SshPort | None = None
    user: User | None = None
    key: FilePath | None = None
    host_key: Fingerprint | None = None
    addresses: Addresses | None = None
    packages: Source | None = None
    keyring: FilePath | None = None
    tls: NodeTls = NodeTls.MUTUAL
    hive: HiveSettings = HiveSettings()


class FleetModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that is to lie on the disks of ``nodes`` (``all``: of every one), ``pinned`` or free to be collected."""

    source: Annotated[str, Meta(min_length=1, max_length=4096)]
    nodes: Annotated[list[HiveId], Meta(min_length=1, max_length=1000)] = msgspec.field(
        default_factory=lambda: [EVERY_NODE]
    )
    pinned: bool = False

    @property
    def reference(self) -> ModelReference:
        """Its source taken apart."""
        return parse(self.source)


class FleetFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of fleet.yaml. A section that is left out is none of its business, even where it removes things."""

    defaults: Access = Access()
    nodes: dict[HiveId, FleetNode] | UnsetType = UNSET
    models: list[FleetModel] | UnsetType = UNSET
    declared: dict[ModelName, DeclaredModel] | UnsetType = UNSET

    def models_of(self, node: str) -> list[FleetModel]:
        """The models that are to be on a node's disk."""
        return [] if self.models is UNSET else [one for one in self.models if {node, EVERY_NODE} & set(one.nodes)]

    @property
    def machines(self) -> dict[str, FleetNode]:
        """Its nodes; none where it names none."""
        return {} if self.nodes is UNSET else self.nodes

    @property
    def declarations(self) -> dict[str, DeclaredModel]:
        """Its declared models; none where it names none."""
        return {} if self.declared is UNSET else self.declared


def load(path: Path) -> FleetFile:
    """Read a fleet's file; paths in it become absolute, and each node has its defaults.

    Raises ConfigError with the file, the line and the field of whatever is wrong.
    """
    fleet = load_config(FleetFile, path, required=True).value
    _check(path, fleet)
    if fleet.nodes is UNSET:
        return fleet
    folder = path.absolute().parent
    nodes = {name: _completed(node, fleet.defaults, folder) for name, node in fleet.nodes.items()}
    return msgspec.structs.replace(fleet, nodes=nodes)


def _completed(node: FleetNode, defaults: Access, folder: Path) -> FleetNode:
    packages = defaults.packages if node.packages is None else node.packages
    return msgspec.structs.replace(
        node,
        port=node.port or defaults.port,
        user=node.user or defaults.user,
        key=_beside(folder, node.key or defaults.key),
        packages=packages if packages.startswith(("deb ", "deb\t")) else _beside(folder, packages) or "",
        keyring=_beside(folder, node.keyring or defaults.keyring),
    )


def _beside(folder: Path, named: str | None) -> str | None:
    return str(folder / Path(named).expanduser()) if named else None


def _check(path: Path, fleet: FleetFile) -> None:
    """What no type says: that names and references fit together."""
    for name, node in fleet.machines.items():
        if name == EVERY_NODE:
            raise _wrong(path, ["nodes", name], f"'{EVERY_NODE}' stands for every node: give this one another name")
        try:
            checked_addresses(node.addresses or [])
        except InvalidRequest as error:
            raise _wrong(path, ["nodes", name, "addresses"], error.message) from None
    sources: set[str] = set()
    for index, model in enumerate([] if fleet.models is UNSET else fleet.models):
        at: list[str | int] = ["models", index]
        _check_model(path, at, model, fleet.machines)
        if model.source in sources:
            raise _wrong(path, [*at, "source"], "another entry has the same source: name it once")
        sources.add(model.source)
    for name, declared in fleet.declarations.items():
        try:
            model_reference(declared.reference)
        except InvalidModelReference as error:
            raise _wrong(path, ["declared", name, "reference"], error.message) from None
        if declared.node is not None and fleet.nodes is not UNSET and declared.node not in fleet.machines:
            raise _wrong(path, ["declared", name, "node"], f"nodes has no '{declared.node}'")


def _check_model(path: Path, at: list[str | int], model: FleetModel, nodes: Container[str]) -> None:
    try:
        fetched = model.reference.fetched
    except InvalidModelReference as error:
        raise _wrong(path, [*at, "source"], error.message) from None
    if not fetched:
        raise _wrong(path, [*at, "source"], "a folder of a machine is not fetched: leave it out")
    for index, node in enumerate(model.nodes):
        if node != EVERY_NODE and node not in nodes:
            raise _wrong(path, [*at, "nodes", index], f"nodes has no '{node}'")


def _wrong(path: Path, parts: Sequence[str | int], why: str) -> ConfigError:
    field = shown(parts)
    return ConfigError(f"{locate(path, *parts)}: {field}: {why}: mend it", details={"field": field})
