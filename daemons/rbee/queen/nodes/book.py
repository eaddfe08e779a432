"""The registry of nodes: kept in the queen's database, and in memory for the paths that every message takes."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from rbee.host.addresses import Address, is_here, parse_address
from rbee.queen.hives.places import Origin
from rbee.queen.registry.registry import Registry
from rbee.queen.registry.rows import Hive
from rbee.queen.store import Store
from rbee.wire.auth import Identity, Role
from rbee.wire.errors import Forbidden, NodeExists, NodeNotFound, StorageUnavailable
from rbee.wire.log import ALERT, log
from rbee.wire.nodes import Node, NodeDetails, NodeStatus, NodeTls, NodeUpdate, checked_addresses

LOGGER = logging.getLogger(__name__)
_DETAILS = ("host", "host_key", "addresses", "port", "user", "key_file", "source", "version", "tls")


class Issued(msgspec.Struct, frozen=True):
    """A certificate of a node: its serial number in hex, and when it ends."""

    serial: str
    ends_unix: float


class NodeRecord(msgspec.Struct, frozen=True):
    """What is kept of a node, as one document: a field more needs no migration.

    ``digest`` is the SHA-256 of the token that its hive presents; ``former_digest`` that of the token before it, which
    counts until the hive has presented the new one. Empty: none. ``issued`` are the certificates that the node has had
    and that have not ended; ``retiring`` those of them that a rotation takes out of force.
    """

    details: NodeDetails
    added_unix: float
    connected_unix: float
    digest: str = ""
    former_digest: str = ""
    issued: list[Issued] = []
    retiring: list[Issued] = []


@dataclass(frozen=True, slots=True)
class Heard:
    """Where a hive's last message came from: an IP address, or None for a Unix socket."""

    peer: str | None


class Nodes:
    """Every node. Changes raise StorageUnavailable, and then change nothing."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry
        self._records: dict[str, NodeRecord] = {}
        self._addresses: dict[str, frozenset[Address]] = {}
        self._of_digest: dict[str, str] = {}
        self._heard: dict[str, Heard] = {}
        self._moved_on: set[str] = set()
        self.loaded = False

    async def load(self) -> None:
        """Read every node; while the database cannot be used there is none, and ``loaded`` stays false."""
        try:
            documents = await self._store.nodes()
        except StorageUnavailable:
            return
        self.loaded = True
        for name, document in documents.items():
            try:
                self._remember(msgspec.json.decode(document, type=NodeRecord))
            except msgspec.MsgspecError as error:
                log(LOGGER, ALERT, "a node in the database does not decode: add it anew", node=name, why=str(error))

    # what is known

    def names(self) -> Iterable[str]:
        """The names of all nodes."""
        return self._records.keys()

    def get(self, name: str) -> NodeRecord:
        """The node of that name; raises NodeNotFound."""
        record = self._records.get(name)
        if record is None:
            raise NodeNotFound(
                f"no node '{name}' is in the registry: add it with 'rbee node add {name} --host ADDRESS'",
                details={"node": name},
            )
        return record

    def is_enrolled(self, name: str) -> bool:
        """Whether the hive of that id has credentials of its own."""
        record = self._records.get(name)
        return record is not None and bool(record.digest)

    def view(self, name: str, now: float) -> Node:
        """One node as it is shown; raises NodeNotFound."""
        record = self.get(name)
        hive = self._registry.hive(name)
        return Node(
            details=record.details,
            status=_status(hive),
            added_unix=record.added_unix,
            connected_unix=record.connected_unix,
            enrolled=bool(record.digest),
            silent_s=None if hive is None else round(now - hive.heard, 1),
            hive_version="" if hive is None else hive.version,
            problem="its hive is silent" if hive is not None and hive.stale else "",
        )

    # what changes it

    async def add(self, details: NodeDetails, now_unix: float) -> None:
        """Take a node over which SSH was proven; raises NodeExists, also where its hive is alive at another place."""
        name = details.name
        if name in self._records:
            raise NodeExists(
                f"a node '{name}' is in the registry: change it with 'rbee node update {name}', or take it out with "
                f"'rbee node remove {name}'",
                details={"node": name},
            )
        details = msgspec.structs.replace(details, addresses=checked_addresses(details.addresses))
        self.refuse_if_alive_elsewhere(details)
        await self._put(NodeRecord(details, now_unix, now_unix))
        log(LOGGER, logging.INFO, "node added", node=name, host=details.host)

    async def update(self, update: NodeUpdate, now_unix: float) -> None:
        """Put the fields that are given in the place of those that are known; raises NodeNotFound, NodeExists."""
        record = self.get(update.name)
        given = {name: value for name in _DETAILS if (value := getattr(update, name)) is not None}
        if update.addresses is not None:
            given["addresses"] = checked_addresses(update.addresses)
        details = msgspec.structs.replace(record.details, **given)
        if update.addresses is not None:
            self.refuse_if_alive_elsewhere(details)
        connected = now_unix if update.connected else record.connected_unix
        await self._put(msgspec.structs.replace(record, details=details, connected_unix=connected))
        log(LOGGER, logging.INFO, "node updated", node=update.name, fields=", ".join(given) or None)

    async def remove(self, name: str) -> None:
        """Forget a node and what its hive may present; raises NodeNotFound."""
        self.get(name)
        await self._store.remove_node(name)
        self._forget(name)
        log(LOGGER, logging.INFO, "node removed", node=name)

    async def put_digest(self, name: str, digest: str) -> None:
        """Accept another token of the node's hive; the one before counts until the new one has been presented."""
        record = self.get(name)
        await self._put(msgspec.structs.replace(record, digest=digest, former_digest=record.digest))

    async def note_issued(self, name: str, serial: int, ends_unix: float, now_unix: float) -> None:
        """Remember a certificate of the node, for the day on which it is to count no longer."""
        record = self.get(name)
        known = [one for one in record.issued if one.ends_unix > now_unix]
        one = Issued(f"{serial:x}", ends_unix)
        if one.serial not in {other.serial for other in known}:
            await self._put(msgspec.structs.replace(record, issued=[*known, one]))

    def has_issued(self, name: str, serial: int) -> bool:
        """Whether that certificate of the node is remembered."""
        record = self._records.get(name)
        return record is not None and any(one.serial == f"{serial:x}" for one in record.issued)

    def certificates(self, name: str) -> list[int]:
        """The serial numbers of the certificates that a node may still have; raises NodeNotFound."""
        return [int(one.serial, 16) for one in self.get(name).issued]

    async def retire_certificates(self, name: str) -> None:
        """From the moment at which the node uses what it was given since, the certificates of now count no longer."""
        record = self.get(name)
        await self._put(msgspec.structs.replace(record, retiring=record.issued))

    def retired(self, name: str) -> list[int]:
        """Serial numbers that are due: the node has shown its new token, and was given another certificate."""
        record = self._records.get(name)
        if record is None or not record.retiring or record.former_digest:
            return []
        newer = any(one not in record.retiring for one in record.issued)
        return [int(one.serial, 16) for one in record.retiring] if newer else []

    async def forget_retired(self, name: str) -> None:
        """The retired certificates were revoked."""
        record = self.get(name)
        left = [one for one in record.issued if one not in record.retiring]
        await self._put(msgspec.structs.replace(record, issued=left, retiring=[]))

    def refuse_if_alive_elsewhere(self, details: NodeDetails) -> None:
        """Raise NodeExists while a hive of that id reports from an address that is not the node's (RACE-01)."""
        hive = self._registry.hive(details.name)
        heard = self._heard.get(details.name)
        if hive is None or hive.manual or hive.stale or heard is None:
            return
        theirs = [parse_address(address) for address in details.addresses]
        peer = None if heard.peer is None else parse_address(heard.peer)
        same = any(is_here(address) for address in theirs) if peer is None or is_here(peer) else peer in theirs
        if not same:
            raise NodeExists(
                f"a hive '{details.name}' is alive at another address: give this machine another name, or stop the "
                "other hive",
                details={"node": details.name},
            )

    # what its hive may say

    def speaker(self, digest: str) -> Identity | None:
        """Who presents the token of that SHA-256 (hex): the hive of one node, or None."""
        name = self._of_digest.get(digest)
        if name is None:
            return None
        record = self._records[name]
        if record.former_digest and digest == record.digest:
            self._moved_on.add(name)
        return Identity(Role.HIVE, f"node:{name}", hive=name)

    def check_speaker(self, identity: Identity, hive_id: str, peer: str | None, shown: str | None = None) -> None:
        """Let ``identity`` speak for the hive; raises Forbidden, with an ALERT.

        A node's token speaks for its own hive only, and once a node is enrolled no other token does. ``shown`` is the
        name in the certificate of the connection: where there is one, or TLS is the node's rule, it is the node's.
        """
        enrolled = self.is_enrolled(hive_id)
        by_certificate = shown is not None or (enrolled and self._records[hive_id].details.tls is NodeTls.MUTUAL)
        wrong_token = (identity.hive is not None or enrolled) and identity.hive != hive_id
        if not identity.admin and (wrong_token or (by_certificate and shown != hive_id)):
            log(
                LOGGER, ALERT, "a token or certificate was used for a hive that it does not belong to",
                identity=identity.name, certificate=shown, hive=hive_id, peer=peer,
            )  # fmt: skip
            raise Forbidden(
                f"this token or certificate does not speak for hive '{hive_id}': a node has its own, which "
                "'rbee node install' writes anew",
                details={"reason": "other_hive", "hive_id": hive_id},
            )
        self._heard[hive_id] = Heard(peer)

    async def retire_former(self, hive_id: str) -> None:
        """After a hive presented its new token, the former one counts no longer."""
        if hive_id in self._moved_on:
            try:
                await self._put(msgspec.structs.replace(self._records[hive_id], former_digest=""))
            except StorageUnavailable:
                return  # the next heartbeat tries again
            log(LOGGER, logging.INFO, "a node uses its new token: the former one counts no longer", node=hive_id)

    def origin(self, hive_id: str, peer: str | None) -> Origin:
        """Where what the hive reports may lie: at a node's enrolled addresses, else on the machine of ``peer``."""
        record = self._records.get(hive_id)
        tls = record is not None and bool(record.digest) and record.details.tls is NodeTls.MUTUAL
        return Origin(peer, self._addresses.get(hive_id), tls)

    def forget_heard(self, hive_id: str) -> None:
        """The hive is dropped from the queen's list."""
        self._heard.pop(hive_id, None)

    # inside

    async def _put(self, record: NodeRecord) -> None:
        await self._store.put_node(record.details.name, msgspec.json.encode(record))
        self._remember(record)

    def _remember(self, record: NodeRecord) -> None:
        name = record.details.name
        self._forget(name)
        self._records[name] = record
        self._addresses[name] = frozenset(parse_address(address) for address in record.details.addresses)
        for digest in (record.digest, record.former_digest):
            if digest:
                self._of_digest[digest] = name

    def _forget(self, name: str) -> None:
        self._records.pop(name, None)
        self._addresses.pop(name, None)
        self._moved_on.discard(name)
        self._of_digest = {digest: of for digest, of in self._of_digest.items() if of != name}


def _status(hive: Hive | None) -> NodeStatus:
    if hive is None or hive.manual:
        return NodeStatus.REACHABLE
    return NodeStatus.SILENT if hive.stale else NodeStatus.ONLINE
