"""The queen's registry of nodes, as the command asks it."""

from typing import Any, TypeVar
from urllib.parse import quote

from rbee.keeper import session
from rbee.wire.nodes import (
    Certified,
    CertifyRequest,
    Enrolment,
    EnrolRequest,
    Node,
    NodeCheck,
    NodeDetails,
    NodeList,
    NodeName,
    NodeUpdate,
)

T = TypeVar("T")
_PATH = "/v2/registry/beehives"
CHECK_LIMIT_S = 120.0
"""The queen asks the hive for its backends, which it tries one after the other."""


def _call(method: str, path: str, kind: type[T], body: object = None, timeout_s: float | None = None) -> T:
    async def ask() -> T:
        async with session.queen() as queen:
            return await queen.call(method, _PATH + path, kind, body=body, timeout_s=timeout_s)

    return session.run(ask())


def all_nodes() -> list[Node]:
    """Every node by name."""
    return _call("GET", "/list", NodeList).nodes


def nodes_with(capability: str) -> list[Node]:
    """The nodes whose engine has ``capability`` now (cpu, cuda, cuda:1), by name."""
    return _call("GET", f"/list?capability={quote(capability, safe='')}", NodeList, timeout_s=CHECK_LIMIT_S).nodes


def one(name: str) -> Node:
    """One node; the queen's own NODE_NOT_FOUND where there is none."""
    return _call("GET", f"/{name}", Node)


def add(details: NodeDetails) -> Node:
    """Save a node over which SSH was proven."""
    return _call("POST", "/add", Node, details)


def update(change: NodeUpdate) -> Node:
    """Change what is known of a node."""
    return _call("POST", "/update", Node, change)


def remove(name: str) -> None:
    """Forget a node."""
    _call("POST", "/remove", dict[str, Any], NodeName(name))


def check(name: str) -> NodeCheck:
    """What the queen finds when she asks the node's hive."""
    return _call("GET", f"/{name}/check", NodeCheck, timeout_s=CHECK_LIMIT_S)


def enrol(request: EnrolRequest) -> Enrolment:
    """The credentials that a node lacks."""
    return _call("POST", "/enrol", Enrolment, request)


def certify(request: CertifyRequest) -> Certified:
    """A certificate for the key of a node."""
    return _call("POST", "/certify", Certified, request)


def rotate(name: str) -> Enrolment:
    """Other credentials for a node."""
    return _call("POST", "/rotate", Enrolment, EnrolRequest(name))
