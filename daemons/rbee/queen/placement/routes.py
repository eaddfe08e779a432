"""Routes of declared models, for administrators and clients of role ``api``."""

from aiohttp import web

from rbee.queen.core import Core
from rbee.queen.placement.record import record_declaration
from rbee.wire.declarations import Declaration, DeclarationList, DeclaredModel
from rbee.wire.http.middleware import IDENTITY
from rbee.wire.http.operations import operation
from rbee.wire.http.server import json_response, read_json
from rbee.wire.names import model_name, model_reference

PATH = "/v2/declarations"


class DeclarationRoutes:
    """Handlers of /v2/declarations."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.router.add_get(PATH, self.listing)
        app.router.add_put(f"{PATH}/{{model:.+}}", self.put)
        app.router.add_delete(f"{PATH}/{{model:.+}}", self.delete)

    @operation(DeclarationList)
    async def listing(self, request: web.Request) -> web.StreamResponse:
        """Every declared model, and whether the configuration or the API declares it."""
        return json_response(DeclarationList(self._core.declarations.all()))

    @operation(Declaration, body=DeclaredModel)
    async def put(self, request: web.Request) -> web.StreamResponse:
        """Declare a model, for good; 409 where the configuration declares it."""
        name = model_name(request.match_info["model"])
        declared = await read_json(request, DeclaredModel)
        model_reference(declared.reference)
        before = self._core.declarations.in_force.get(name)
        stored = await self._core.declarations.put(name, declared)
        self._changed(request, name, before)
        return json_response(stored)

    @operation(status=204)
    async def delete(self, request: web.Request) -> web.StreamResponse:
        """Remove a declaration that the API stored: 204, also for one that is not there."""
        name = model_name(request.match_info["model"])
        before = self._core.declarations.in_force.get(name)
        await self._core.declarations.remove(name)
        self._changed(request, name, before)
        return web.Response(status=204)

    def _changed(self, request: web.Request, name: str, before: DeclaredModel | None) -> None:
        """Put it in force, and record who changed it; ``before`` is what was in force."""
        core = self._core
        core.declarations_changed()
        record_declaration(core.audit, request[IDENTITY].name, name, before, core.declarations.in_force.get(name))
