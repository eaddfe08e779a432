"""Routes of the registry of nodes, for administrators."""

import time
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from rbee.host.addresses import parse_address
from rbee.host.audit.entries import EventType, Value
from rbee.queen.core import Core
from rbee.queen.hives.places import peer_of
from rbee.queen.nodes.abilities import Capability, hives_with
from rbee.queen.nodes.preflight import check_hive
from rbee.wire.auth import fingerprint
from rbee.wire.errors import Forbidden
from rbee.wire.http.middleware import IDENTITY
from rbee.wire.http.operations import operation
from rbee.wire.http.server import json_response, read_json
from rbee.wire.names import hive_id
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
from rbee.wire.tls import is_encrypted

PREFIX = "/v2/registry/beehives"


class Done(msgspec.Struct, frozen=True):
    """The answer to a change that has nothing to show."""

    success: bool
    message: str


class NodeRoutes:
    """Handlers for callers of role ``api``."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_post(f"{PREFIX}/add", self.add)
        app.router.add_post(f"{PREFIX}/update", self.update)
        app.router.add_post(f"{PREFIX}/remove", self.remove)
        app.router.add_post(f"{PREFIX}/enrol", self.enrol)
        app.router.add_post(f"{PREFIX}/rotate", self.rotate)
        app.router.add_post(f"{PREFIX}/certify", self.certify)
        app.router.add_get(f"{PREFIX}/list", self.list)
        app.router.add_get(f"{PREFIX}/{{node}}", self.one)
        app.router.add_get(f"{PREFIX}/{{node}}/check", self.check)

    @operation(Node, status=201, body=NodeDetails)
    async def add(self, request: web.Request) -> web.StreamResponse:
        """Take a node over which the command proved SSH; 409 where the name is taken."""
        details = await read_json(request, NodeDetails)
        await self._core.nodes.add(details, time.time())
        self._record(request, EventType.NODE_ADD, details.name, host=details.host, addresses=details.addresses)
        return json_response(self._view(details.name), status=201)

    @operation(Node, body=NodeUpdate)
    async def update(self, request: web.Request) -> web.StreamResponse:
        """Change what is known of a node."""
        update = await read_json(request, NodeUpdate)
        await self._core.nodes.update(update, time.time())
        self._record(request, EventType.NODE_UPDATE, update.name, fields=_given(update))
        return json_response(self._view(update.name))

    @operation(Done, body=NodeName)
    async def remove(self, request: web.Request) -> web.StreamResponse:
        """Forget a node: its token counts no longer."""
        name = (await read_json(request, NodeName)).name
        await self._core.enrolments.remove(name)
        self._record(request, EventType.NODE_REMOVE, name)
        return json_response(Done(True, f"node {name} removed"))

    @operation(NodeList, query={"capability": "nodes whose engine has it now: cpu, cuda, cuda:1"})
    async def list(self, request: web.Request) -> web.StreamResponse:
        """Every node with its status, or those that fit ?capability=: their hives are asked what starts there."""
        names = sorted(self._core.nodes.names())
        if "capability" in request.query:
            wanted = Capability.parse(request.query["capability"])
            hives = [hive for name in names if (hive := self._core.registry.hive(name)) is not None]
            able = await hives_with(self._core.hives, hives, wanted)
            names = [name for name in names if name in able]
        return json_response(NodeList([self._view(name) for name in names]))

    @operation(Node)
    async def one(self, request: web.Request) -> web.StreamResponse:
        """One node; 404 where there is none of that name."""
        return json_response(self._view(hive_id(request.match_info["node"])))

    @operation(Enrolment, body=EnrolRequest)
    async def enrol(self, request: web.Request) -> web.StreamResponse:
        """The credentials that a node lacks."""
        _refuse_in_clear(request)
        return await self._credentials(request, EventType.NODE_ENROL, self._core.enrolments.enrol)

    @operation(Enrolment, body=EnrolRequest)
    async def rotate(self, request: web.Request) -> web.StreamResponse:
        """Other credentials for a node."""
        _refuse_in_clear(request)
        return await self._credentials(request, EventType.NODE_ROTATE, self._core.enrolments.rotate)

    @operation(Certified, body=CertifyRequest)
    async def certify(self, request: web.Request) -> web.StreamResponse:
        """A certificate for the key of a node."""
        asked = await read_json(request, CertifyRequest)
        answer = json_response(Certified(await self._core.enrolments.certify(asked)))
        self._record(request, EventType.NODE_CERTIFY, asked.name)
        return answer

    @operation(NodeCheck)
    async def check(self, request: web.Request) -> web.StreamResponse:
        """Ask the node's hive how it is, what it can run, and what it has."""
        name = hive_id(request.match_info["node"])
        self._core.nodes.get(name)
        return json_response(await check_hive(self._core.hives, name, self._core.registry.hive(name)))

    async def _credentials(
        self, request: web.Request, event_type: EventType, make: Callable[[EnrolRequest], Awaitable[Enrolment]]
    ) -> web.StreamResponse:
        """Answer what was made for a node; of its tokens the audit log has the fingerprints."""
        asked = await read_json(request, EnrolRequest)
        made = await make(asked)
        tokens = None if made.tokens is None else [fingerprint(one) for one in msgspec.structs.astuple(made.tokens)]
        self._record(request, event_type, asked.name, tokens=tokens)
        return json_response(made)

    def _record(self, request: web.Request, event_type: EventType, node: str, **details: Value | None) -> None:
        self._core.audit.record(event_type, request[IDENTITY].name, node=node, **details)

    def _view(self, name: str) -> Node:
        node = self._core.nodes.view(name, time.monotonic())
        if node.enrolled or node.problem:
            return node
        return msgspec.structs.replace(node, problem=self._core.enrolments.obstacle(name))


def _given(update: NodeUpdate) -> list[str]:
    """The names of the fields that an update brings."""
    return [name for name in update.__struct_fields__ if name != "name" and getattr(update, name)]


def _refuse_in_clear(request: web.Request) -> None:
    """Tokens are answered on a Unix socket, on this machine, or by TLS: anywhere else others could read them."""
    peer = peer_of(request)
    if peer is not None and not parse_address(peer).is_loopback and not is_encrypted(request):
        raise Forbidden(
            "credentials are not answered over plain HTTP from another machine: run 'rbee' on the queen's machine, or "
            "reach her by https",
            details={"reason": "in_clear"},
        )
