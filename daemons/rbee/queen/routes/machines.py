"""The route that shows the machines of the fleet, for administrators and clients of role ``api``."""

import time

from aiohttp import web

from rbee.queen.core import Core
from rbee.queen.registry.rows import Hive
from rbee.wire.http.operations import operation
from rbee.wire.http.server import json_response
from rbee.wire.machines import HiveList, HiveView


class MachineRoutes:
    """The handler of /v2/hives."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def add_to(self, app: web.Application) -> None:
        """Add the route."""
        app.router.add_get("/v2/hives", self.listing)

    @operation(HiveList)
    async def listing(self, request: web.Request) -> web.StreamResponse:
        """Every hive that reports, with the memory, disk and GPUs of its machine as of its last heartbeat."""
        now = time.monotonic()
        hives = sorted(self._core.registry.hives(), key=lambda hive: hive.hive_id)
        return json_response(HiveList([self._view(hive, now) for hive in hives if not hive.manual]))

    def _view(self, hive: Hive, now: float) -> HiveView:
        return HiveView(
            hive.hive_id,
            hive.version,
            hive.stale,
            round(now - hive.heard, 1),
            self._core.sessions.is_open(hive.hive_id),
            len(hive.workers),
            hive.machine,
        )
