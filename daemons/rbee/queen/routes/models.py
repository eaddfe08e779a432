"""Orders about the models on a node, passed on to its hive; its answer comes back as it comes."""

import asyncio
from urllib.parse import quote, urlencode

import msgspec
from aiohttp import hdrs, web

from rbee.queen.core import Core
from rbee.queen.registry.registry import Hive
from rbee.wire.errors import HiveUnreachable, InvalidRequest, ProtocolError, RbeeError
from rbee.wire.http.client import decode_answer
from rbee.wire.http.operations import EVENTS, JSON, operation
from rbee.wire.http.server import SseStream, read_json
from rbee.wire.model_messages import (
    Backup,
    CopySource,
    DownloadRequest,
    ModelProgress,
    ModelRow,
    ModelRows,
    Pin,
    PullRequest,
    Removed,
    TicketAnswer,
    Verified,
)
from rbee.wire.model_reference import parse
from rbee.wire.sse import CONTENT_TYPE

HEAD_LIMIT_S = 30.0
VERIFY_LIMIT_S = 3600.0
QUIET_LIMIT_S = 60.0
"""A hive writes a comment every 15 s into a stream that has nothing to say."""
_JSON = "application/json"
_ASKED_AT_ONCE = 16
_ASK_LIMIT_S = 3.0


class ModelRoutes:
    """Handlers of /v2/hives/HIVE/models and /v2/hives/HIVE/catalog."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        base = "/v2/hives/{hive}"
        app.add_routes(
            [
                web.get(f"{base}/models", self.listing),
                web.post(f"{base}/models/download", self.download),
                web.get(f"{base}/models/download/progress", self.progress),
                web.delete(f"{base}/models/{{model:(?!download$)[^/]+}}", self.remove),
                web.post(f"{base}/models/{{model}}/verify", self.verify),
                web.put(f"{base}/models/{{model}}/pin", self.pin),
                web.post(f"{base}/catalog/backup", self.backup),
            ]
        )

    @operation(ModelRows)
    async def listing(self, request: web.Request) -> web.StreamResponse:
        """The hive's catalogue."""
        return await self._pass_on(request, "/v1/models")

    @operation(ModelProgress, status=202, media=(EVENTS,), body=PullRequest, more=(200,))
    async def download(self, request: web.Request) -> web.StreamResponse:
        """Let the hive fetch a model, from another hive where ``from_hive`` names one or ``copy`` finds one."""
        wanted = await read_json(request, PullRequest)
        source = None
        if wanted.from_hive is not None:
            source = await self._source(wanted.reference, self._hive(wanted.from_hive))
        elif wanted.copy:
            source = await self._any_source(wanted.reference, request.match_info["hive"])
        return await self._pass_on(request, "/v1/models/download", DownloadRequest(wanted.reference, source))

    @operation(media=(JSON, EVENTS))
    async def progress(self, request: web.Request) -> web.StreamResponse:
        """How far downloads of the hive are."""
        return await self._pass_on(request, "/v1/models/download/progress")

    @operation(Removed)
    async def remove(self, request: web.Request) -> web.StreamResponse:
        """Let the hive remove a model."""
        return await self._pass_on(request, _model_path(request))

    @operation(Verified)
    async def verify(self, request: web.Request) -> web.StreamResponse:
        """Let the hive verify a model, which reads all of it."""
        return await self._pass_on(request, f"{_model_path(request)}/verify", limit_s=VERIFY_LIMIT_S)

    @operation(ModelRow, body=Pin)
    async def pin(self, request: web.Request) -> web.StreamResponse:
        """Let the hive keep a model from being collected, or let it be."""
        return await self._pass_on(request, f"{_model_path(request)}/pin", await read_json(request, Pin))

    @operation(Backup)
    async def backup(self, request: web.Request) -> web.StreamResponse:
        """Let the hive back its catalogue up."""
        return await self._pass_on(request, "/v1/catalog/backup")

    async def _any_source(self, text: str, target: str) -> CopySource | None:
        """A hive other than ``target`` that has the model, the first by name; None where none has or answers."""
        gate = asyncio.Semaphore(_ASKED_AT_ONCE)

        async def ask(hive: Hive) -> CopySource | None:
            try:
                async with gate, asyncio.timeout(_ASK_LIMIT_S):
                    return await self._source(text, hive)
            except (RbeeError, TimeoutError):
                return None

        hives = [hive for hive in self._core.registry.hives() if not hive.manual and hive.hive_id != target]
        hives.sort(key=lambda hive: hive.hive_id)
        found = next(filter(None, await asyncio.gather(*(ask(hive) for hive in hives))), None)
        return None if found is None else msgspec.structs.replace(found, optional=True)

    async def _source(self, text: str, hive: Hive) -> CopySource:
        """Where the model is copied from, with a ticket of the hive that has it."""
        reference = parse(text)
        if not reference.fetched:
            raise InvalidRequest(
                "a folder of one machine cannot be named on another: copy models that were fetched by a reference",
                details={"field": "reference"},
            )
        async with self._core.hives.stream(
            hive, "POST", f"/v1/models/{reference.model_id}/ticket", accept=_JSON, head_limit_s=HEAD_LIMIT_S
        ) as response:
            try:
                ticket = decode_answer(await response.read(), TicketAnswer)
            except ProtocolError as error:
                raise HiveUnreachable(f"hive {hive.hive_id} does not speak the protocol: {error.message}") from None
        return CopySource(hive.api_url or "", ticket.model, ticket.ticket)

    def _hive(self, hive_id: str) -> Hive:
        found = next(
            (hive for hive in self._core.registry.hives() if hive.hive_id == hive_id and not hive.manual), None
        )
        if found is None:
            raise HiveUnreachable(
                f"no hive '{hive_id}' reports here: 'rbee status' shows those that do", details={"hive_id": hive_id}
            )
        return found

    async def _pass_on(
        self, request: web.Request, path: str, body: object = None, *, limit_s: float = HEAD_LIMIT_S
    ) -> web.StreamResponse:
        hive = self._hive(request.match_info["hive"])
        query = f"?{urlencode(list(request.query.items()))}" if request.query else ""
        accept = request.headers.get(hdrs.ACCEPT, _JSON)
        async with self._core.hives.stream(
            hive, request.method, f"{path}{query}", body, accept=accept, head_limit_s=limit_s
        ) as response:
            if response.content_type != CONTENT_TYPE:
                answer = await response.read()
                return web.Response(body=answer, status=response.status, content_type=response.content_type)
            stream = await SseStream.open(request)
            while True:
                try:
                    async with asyncio.timeout(QUIET_LIMIT_S):
                        chunk = await response.content.readany()
                except TimeoutError:
                    raise HiveUnreachable(f"hive {hive.hive_id} fell silent: the download goes on there") from None
                if not chunk:
                    break
                await stream.raw(chunk)
            await stream.end()
            return stream.response


def _model_path(request: web.Request) -> str:
    return f"/v1/models/{quote(request.match_info['model'], safe='')}"
