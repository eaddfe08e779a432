"""Looks at the fleet as it is: the queen's registry, workers, catalogues, declarations, and each node over SSH."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

import click

from rbee.keeper import models, session
from rbee.keeper.fleet.file import FleetFile, FleetNode
from rbee.keeper.fleet.plan import Actual, Probe, leads_elsewhere
from rbee.keeper.nodes import layout, preflight, queen, reach
from rbee.keeper.nodes.install import source_of
from rbee.keeper.nodes.offered import offered, older
from rbee.keeper.nodes.remote import Root
from rbee.keeper.nodes.source import PACKAGES
from rbee.keeper.render import say
from rbee.keeper.workers import all_workers
from rbee.wire.declarations import DeclarationList
from rbee.wire.errors import RbeeError, VersionMismatch
from rbee.wire.http.client import RemoteError
from rbee.wire.messages import WorkerReport
from rbee.wire.model_messages import ModelRow, ModelRows
from rbee.wire.nodes import Node, NodeStatus

T = TypeVar("T")
Scope = Callable[[], AbstractContextManager[object]]


def scope() -> Scope:
    """What a thread enters to have the settings of the command that runs here."""
    here = click.get_current_context()
    return lambda: click.Context(here.command, parent=here, info_name=here.info_name)


def look(fleet: FleetFile, at_once: int) -> Actual:
    """The fleet as it is, at most ``at_once`` nodes looked at at a time; raises what the queen raises.

    A node that cannot be looked at is told of in ``unseen``.
    """
    known = {node.details.name: node for node in queen.all_nodes()}
    declarations = session.run(_declarations()).declarations
    wanted = {name: node for name, node in fleet.machines.items() if name in known}
    unseen: dict[str, str] = {}
    seen = [name for name in wanted if not leads_elsewhere(wanted[name], known[name].details)]
    probes = _each(seen, lambda name: _probe(known[name], wanted[name]), at_once, unseen)
    online = [name for name in wanted if name not in unseen and known[name].status is NodeStatus.ONLINE]
    catalogues = _each(online, lambda name: _catalogue(name, probes.get(name)), at_once, unseen)
    workers = session.run(_workers()) if probes else []
    return Actual(known, probes, unseen, catalogues, declarations, workers)


def _each(names: Sequence[str], work: Callable[[str], T | None], at_once: int, unseen: dict[str, str]) -> dict[str, T]:
    """Do the work of each node in threads; why one failed is put into ``unseen``."""
    inside = scope()

    def one(name: str) -> T | None:
        try:
            with inside():
                return work(name)
        except RbeeError as error:
            unseen[name] = f"{error.message} ({error.code})"
            return None

    with ThreadPoolExecutor(at_once, thread_name_prefix="look") as threads:
        found = dict(zip(names, threads.map(one, names), strict=True))
    return {name: value for name, value in found.items() if value is not None}


async def _declarations() -> DeclarationList:
    async with session.queen() as daemon:
        return await daemon.call("GET", "/v2/declarations", DeclarationList)


def _catalogue(name: str, probe: Probe | None) -> list[ModelRow] | None:
    """What is on a node's disk; None where its hive is too old to be asked, and is about to be upgraded."""
    try:
        return session.run(models.Place(name).call("GET", "models", ModelRows)).models
    except RemoteError as error:
        if error.code == VersionMismatch.code and probe is not None and probe.behind:
            return None
        raise


def _probe(node: Node, wanted: FleetNode) -> Probe:
    name = node.details.name
    with reach.connect(node, tell=lambda line: say(f"{name}: {line.strip()}")) as ssh:
        installed = {package: preflight.package_version(ssh, package) for package in PACKAGES}
        root = Root(ssh)
        hive_yaml = root.read(layout.HIVE_YAML)
        layout.unlike(hive_yaml, wanted.hive.keys())  # raises for a file that is none
        found = source_of(node, wanted.packages or None, wanted.keyring)
        versions = {} if found is None else offered(root, found)
        return Probe(installed, versions, hive_yaml, older(root, installed, versions))


async def _workers() -> list[WorkerReport]:
    async with session.queen() as daemon:
        return await all_workers(daemon)
