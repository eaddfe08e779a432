"""Routes for models: fetch one and follow it, see and change the catalogue, let another hive copy."""

import asyncio
import stat
import time
from pathlib import Path

from aiohttp import hdrs, web

from rbee.hive.models.download import Download
from rbee.hive.models.orders import ModelOrders
from rbee.hive.models.store import ModelStore
from rbee.hive.models.tickets import Tickets
from rbee.wire.errors import ErrorBody, ErrorInfo, InvalidRequest, ModelNotHere
from rbee.wire.http.middleware import CORRELATION, IDENTITY, open_route
from rbee.wire.http.operations import BYTES, EVENTS, operation
from rbee.wire.http.server import SseStream, json_response, read_json
from rbee.wire.model_messages import (
    Backup,
    DownloadRequest,
    FileList,
    ModelProgress,
    ModelRow,
    ModelRows,
    Pin,
    ProgressList,
    Removed,
    Stage,
    TicketAnswer,
    Verified,
)
from rbee.wire.model_reference import MODEL_ID, Provider, parse
from rbee.wire.sse import CONTENT_TYPE

_COMMENT_S = 15.0
_OF_MODEL = {"model": "the model's id", "reference": "or its reference"}
PROGRESS_PATH = "/v1/models/download/progress"


class ModelRoutes:
    """Handlers of the routes about models."""

    def __init__(self, store: ModelStore, orders: ModelOrders) -> None:
        self._store = store
        self._orders = orders
        self._tickets = Tickets(time.time)

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        app.add_routes(
            [
                web.post("/v1/models/download", self.download),
                web.get(PROGRESS_PATH, self.progress),
                web.get("/v1/models", self.listing),
                web.delete("/v1/models/{model_id}", self.remove),
                web.post("/v1/models/{model_id}/verify", self.verify),
                web.put("/v1/models/{model_id}/pin", self.pin),
                web.post("/v1/models/{model_id}/ticket", self.ticket),
                web.get("/v1/models/{model_id}/files", open_route(self.files)),
                web.get("/v1/models/{model_id}/files/{path:.+}", open_route(self.file)),
                web.post("/v1/catalog/backup", self.backup),
            ]
        )

    @operation(ModelProgress, status=202, media=(EVENTS,), body=DownloadRequest, more=(200,))
    async def download(self, request: web.Request) -> web.StreamResponse:
        """Fetch a model: events until it is here (Accept: text/event-stream), else 202, or 200 where it is here."""
        order = await read_json(request, DownloadRequest)
        found = await self._orders.fetch(order, _actor(request))
        if isinstance(found, Download):
            if _wants_events(request):
                return await _as_events(request, found)
            place = f"{PROGRESS_PATH}?model={found.model_id}"
            return json_response(found.progress(), status=202, headers={"Location": place})
        progress = _here(found)
        return await _one_event(request, progress) if _wants_events(request) else json_response(progress)

    @operation((ModelProgress, ProgressList), media=(EVENTS,), query=_OF_MODEL)
    async def progress(self, request: web.Request) -> web.StreamResponse:
        """The download of ?model= or ?reference=, as events or as it is now; without either, all of them."""
        model_id = request.query.get("model")
        if "reference" in request.query:
            model_id = parse(request.query["reference"]).model_id
        if model_id is None:
            return json_response(ProgressList([each.progress() for each in self._store.downloads()]))
        download = self._store.download(model_id)
        if download is not None:
            return await _as_events(request, download) if _wants_events(request) else json_response(download.progress())
        row = await self._store.catalogue.get(model_id)
        if row is None:
            raise ModelNotHere("no download of that model is under way or ended lately")
        return await _one_event(request, _here(row)) if _wants_events(request) else json_response(_here(row))

    @operation(ModelRows, query={"provider": "of this provider only"})
    async def listing(self, request: web.Request) -> web.StreamResponse:
        """The catalogue, or the part of ?provider=."""
        return json_response(await self._orders.rows(_provider(request)))

    @operation(Removed)
    async def remove(self, request: web.Request) -> web.StreamResponse:
        """Remove a model, or stop its download; 409 while a worker uses it."""
        return json_response(await self._orders.remove(_model_id(request), _actor(request)))

    @operation(Verified)
    async def verify(self, request: web.Request) -> web.StreamResponse:
        """Read every file of a model and compare it with what it was."""
        return json_response(await self._orders.verify(_model_id(request)))

    @operation(ModelRow, body=Pin)
    async def pin(self, request: web.Request) -> web.StreamResponse:
        """Keep a model from being collected, or let it be."""
        wanted = await read_json(request, Pin)
        return json_response(await self._orders.pin(_model_id(request), _actor(request), pinned=wanted.pinned))

    @operation(Backup)
    async def backup(self, request: web.Request) -> web.StreamResponse:
        """Write a verified copy of the catalogue."""
        return json_response(await self._orders.backup())

    @operation(TicketAnswer)
    async def ticket(self, request: web.Request) -> web.StreamResponse:
        """A ticket with which another hive may copy the model."""
        row = await self._orders.row(_model_id(request))
        secret, expires = self._tickets.give(row.id)
        return json_response(TicketAnswer(row.id, row.reference, secret.reveal(), expires))

    @operation(FileList, ticket=True)
    async def files(self, request: web.Request) -> web.StreamResponse:
        """The files of a model and their digests, for the holder of a ticket."""
        model_id = _model_id(request)
        self._tickets.check(model_id, request.headers.get(hdrs.AUTHORIZATION))
        return json_response(await self._orders.files(model_id))

    @operation(media=(BYTES,), more=(206,), ticket=True)
    async def file(self, request: web.Request) -> web.StreamResponse:
        """One file of a model, whole or by range, for the holder of a ticket."""
        model_id, name = _model_id(request), request.match_info["path"]
        self._tickets.check(model_id, request.headers.get(hdrs.AUTHORIZATION))
        row = await self._orders.row(model_id)
        folder = Path(row.local_path)
        recorded = await self._store.catalogue.files(model_id)
        if name not in {each.path for each in recorded} or not await asyncio.to_thread(
            _is_plain, folder / name, folder
        ):
            raise ModelNotHere("the model has no such file")
        return web.FileResponse(folder / name, headers={hdrs.CONTENT_TYPE: BYTES})


def _is_plain(path: Path, folder: Path) -> bool:
    """Whether it is a regular file under ``folder``, no link on the way; blocks."""
    try:
        inside = path.resolve(strict=True) == folder.resolve(strict=True) / path.relative_to(folder)
        return inside and stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _here(row: ModelRow) -> ModelProgress:
    return ModelProgress(
        row.id, row.reference, Stage.COMPLETE, row.size_bytes, row.size_bytes, local_path=row.local_path, duration_s=0.0
    )


async def _as_events(request: web.Request, download: Download) -> web.StreamResponse:
    """Follow a download; a client that leaves ends nothing but its own stream."""
    stream = await SseStream.open(request)
    async with stream.kept_open(_COMMENT_S):
        async for progress in download.follow():
            await _send(stream, request, progress)
    await stream.done()
    return stream.response


async def _one_event(request: web.Request, progress: ModelProgress) -> web.StreamResponse:
    stream = await SseStream.open(request)
    await _send(stream, request, progress)
    await stream.done()
    return stream.response


async def _send(stream: SseStream, request: web.Request, progress: ModelProgress) -> None:
    error = progress.error
    if error is not None:
        named = ErrorInfo(error.code, error.message, error.details, request[CORRELATION])
        await stream.send("error", ErrorBody(named))
    else:
        await stream.send("complete" if progress.stage is Stage.COMPLETE else "progress", progress)


def _wants_events(request: web.Request) -> bool:
    return CONTENT_TYPE in request.headers.get(hdrs.ACCEPT, "")


def _actor(request: web.Request) -> str:
    return str(request[IDENTITY].name)


def _model_id(request: web.Request) -> str:
    model_id = request.match_info["model_id"]
    if not MODEL_ID.fullmatch(model_id):
        raise InvalidRequest(
            "the model's id is not acceptable: 'rbee catalog list' shows those there are", details={"field": "model"}
        )
    return model_id


def _provider(request: web.Request) -> Provider | None:
    name = request.query.get("provider")
    if name is None:
        return None
    try:
        return Provider(name)
    except ValueError:
        accepted = [provider.value for provider in Provider]
        raise InvalidRequest(
            f"the parameter 'provider' is one of {', '.join(accepted)}",
            details={"field": "provider", "accepted": accepted},
        ) from None
