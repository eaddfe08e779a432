"""Nodes as the command and the queen speak of them: what is enrolled, and what is asked about it.

A node is a machine with a hive; its name is its hive's id. Times named ``*_unix`` are seconds since the epoch.
"""

import enum
import ipaddress
from typing import Annotated

import msgspec
from msgspec import Meta

from rbee.wire.errors import InvalidRequest
from rbee.wire.messages import HiveId, Text

Host = Annotated[str, Meta(pattern=r"^([A-Za-z0-9]([A-Za-z0-9.-]{0,253}[A-Za-z0-9])?|[0-9A-Fa-f:.]{2,45})\Z")]
User = Annotated[str, Meta(pattern=r"^[a-z_][a-z0-9_.-]{0,31}\Z")]
SshPort = Annotated[int, Meta(ge=1, le=65535)]
HostKey = Annotated[str, Meta(pattern=r"^[a-z0-9@.-]{4,64} [A-Za-z0-9+/]{32,2048}={0,2}\Z")]
KeyFile = Annotated[str, Meta(pattern=r"^/[^\x00-\x1f]{1,1023}\Z")]
Source = Annotated[str, Meta(max_length=1024, pattern=r"^[^\x00-\x1f]*\Z")]
Address = Annotated[str, Meta(min_length=2, max_length=45)]
Addresses = Annotated[list[Address], Meta(min_length=1, max_length=16)]
Pem = Annotated[str, Meta(max_length=16_384)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class NodeStatus(enum.StrEnum):
    """``reachable``: SSH was proven, its hive has not reported to this life of the queen. ``online``: it reports.

    ``silent``: it reported, and no longer does.
    """

    REACHABLE = "reachable"
    ONLINE = "online"
    SILENT = "silent"


class NodeTls(enum.StrEnum):
    """How queen and node speak: each by a certificate of the queen's authority, or in clear on a trusted network."""

    MUTUAL = "mutual"
    OFF = "off"


class NodeDetails(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v2/registry/beehives/add: a machine over which SSH was proven.

    ``host_key`` is the pinned key as known_hosts has it (type and base64). ``key_file`` is a path on the machine of
    whoever runs `rbee`; the queen never reads it. ``addresses`` are the IP addresses that are the node's: its workers
    may be nowhere else. ``source`` is where packages come from: a folder of .deb files, or an apt source line; empty
    for the command's own configuration.
    """

    name: HiveId
    host: Host
    host_key: HostKey
    addresses: Addresses
    port: SshPort = 22
    user: User = "root"
    key_file: KeyFile | None = None
    source: Source = ""
    version: Text = ""
    tls: NodeTls = NodeTls.MUTUAL


class NodeUpdate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v2/registry/beehives/update: each field that is given replaces the one that is known.

    ``connected``: SSH has just been proven again.
    """

    name: HiveId
    host: Host | None = None
    host_key: HostKey | None = None
    addresses: Addresses | None = None
    port: SshPort | None = None
    user: User | None = None
    key_file: KeyFile | None = None
    source: Source | None = None
    version: Text | None = None
    tls: NodeTls | None = None
    connected: bool = False


class NodeName(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v2/registry/beehives/remove and others that name a node alone."""

    name: HiveId


class Node(msgspec.Struct, frozen=True):
    """A node as the queen shows it. ``enrolled``: it has credentials of its own; ``problem``: what is wrong, or ''."""

    details: NodeDetails
    status: NodeStatus
    added_unix: float
    connected_unix: float
    enrolled: bool = False
    silent_s: float | None = None
    hive_version: Text = ""
    problem: str = ""


class NodeList(msgspec.Struct, frozen=True):
    """GET /v2/registry/beehives/list, by name."""

    nodes: list[Node]


def checked_addresses(values: list[str]) -> list[str]:
    """The addresses in their usual form; raises InvalidRequest for one that is none or can be no machine's own."""
    found = []
    for value in values:
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            raise _bad_address("expected an IPv4 or IPv6 address") from None
        if address.is_unspecified or address.is_multicast:
            raise _bad_address("expected the address of one machine")
        found.append(str(address))
    return found


def _bad_address(why: str) -> InvalidRequest:
    return InvalidRequest(
        f"the field 'addresses' is not acceptable: {why}", details={"field": "addresses"}, param="addresses"
    )


class TokenDigests(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The SHA-256 (hex) of each token that a node has now; null where it has none."""

    hive_callback_token: Digest | None = None
    hive_api_token: Digest | None = None
    worker_api_token: Digest | None = None


class TokenValues(msgspec.Struct, frozen=True):
    """The tokens of one node, one for each hop; they are answered once and never shown again."""

    hive_callback_token: str
    hive_api_token: str
    worker_api_token: str

    def __repr__(self) -> str:
        return "<the tokens of a node>"


class EnrolRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v2/registry/beehives/enrol and /rotate: credentials for a node that has those of ``have``.

    ``certificate`` is the one that it has now (PEM).
    """

    name: HiveId
    have: TokenDigests = TokenDigests()
    certificate: Pem | None = None


class Enrolment(msgspec.Struct, frozen=True):
    """What a node needs to report: where the queen is, and its tokens, null where it has the right ones already.

    ``authority`` is the certificate (PEM) that it trusts, null where TLS is off; ``certify``: it needs a certificate.
    """

    callback_url: str
    tokens: TokenValues | None = None
    authority: str | None = None
    certify: bool = False


class CertifyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """POST /v2/registry/beehives/certify, and of a hive /v2/hives/HIVE/certificate: ``request`` is PKCS #10 in PEM."""

    name: HiveId
    request: Pem


class Certified(msgspec.Struct, frozen=True):
    """A node's certificate (PEM)."""

    certificate: str


class Check(msgspec.Struct, frozen=True):
    """One thing that was looked at: whether it is well, what was found, and what to do where it is not."""

    name: str
    good: bool
    found: str
    hint: str = ""


class NodeCheck(msgspec.Struct, frozen=True):
    """GET /v2/registry/beehives/NODE/check, and what `rbee node check` adds to it."""

    node: str
    checks: list[Check]

    @property
    def good(self) -> bool:
        """Whether everything is well."""
        return all(check.good for check in self.checks)
