"""Routes for hives: callbacks, changes of state, heartbeats, and the session that they hold open."""

import logging
import time

import msgspec
from aiohttp import web

from rbee import __version__
from rbee.host.audit.entries import EventType
from rbee.queen.core import Core
from rbee.queen.hives.places import Origin, believed, believed_picture, is_foreign, peer_of
from rbee.queen.registry.lives import Verdict
from rbee.queen.registry.pictures import Beat, read_beat, read_whole
from rbee.queen.registry.rows import Outcome
from rbee.wire.auth import Role
from rbee.wire.errors import Forbidden, InvalidRequest
from rbee.wire.http.middleware import IDENTITY, allow, routine_route
from rbee.wire.http.operations import EVENTS, operation
from rbee.wire.http.server import SseStream, json_response, read_body, read_json
from rbee.wire.log import ALERT, log
from rbee.wire.messages import CallbackAnswer, Heartbeat, HeartbeatAnswer, ReadyCallback, WorkerReport
from rbee.wire.names import hive_id as valid_hive_id
from rbee.wire.nodes import Certified, CertifyRequest
from rbee.wire.tls import peer_name, peer_serial

LOGGER = logging.getLogger(__name__)
COMMENT_S = 15.0
_OWED_WHEN_READY = ("url", "model_ref", "backend")


class Hello(msgspec.Struct, frozen=True):
    """The first event of a session: which life of the queen this is."""

    instance_id: str


class HiveRoutes:
    """Handlers for callers of role ``hive``."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def add_to(self, app: web.Application) -> None:
        """Add the routes."""
        hives_only = allow(Role.HIVE)
        app.router.add_post("/v2/workers/ready", hives_only(self.ready))
        app.router.add_post("/v2/workers/state", hives_only(self.state))
        app.router.add_post("/v2/hives/{hive}/heartbeat", hives_only(routine_route(self.heartbeat)))
        app.router.add_get("/v2/hives/{hive}/session", hives_only(self.session))
        app.router.add_post("/v2/hives/{hive}/certificate", hives_only(self.certificate))

    @operation(CallbackAnswer, body=ReadyCallback)
    async def ready(self, request: web.Request) -> web.StreamResponse:
        """A worker is ready: stored, and whoever waits for its model is woken before the answer is written."""
        report = await read_json(request, ReadyCallback)
        core = self._core
        origin = self._origin(request, report.hive_id)
        core.metrics.ready_notifications.inc()
        for field in _OWED_WHEN_READY:
            if getattr(report, field) is None:
                raise _field(field, "a worker that is ready has one")
        if not report.state.ready:
            raise _field("state", "expected idle or busy")
        if is_foreign(report, origin):
            self._alert_foreign(report.hive_id, origin)
            raise _field("url", "expected an address of the machine that reports the worker")
        if report.sent_unix:
            core.metrics.callback_delivery.observe(max(0.0, time.time() - report.sent_unix))
        outcome = self._take(report)
        log(
            LOGGER,
            logging.INFO,
            "ready callback",
            worker=f"{report.hive_id}/{report.worker_id}",
            outcome=outcome.message,
            invocation_id=report.invocation_id,
            revision=report.revision,
        )
        return json_response(CallbackAnswer(True, outcome.message))

    @operation(CallbackAnswer, body=WorkerReport)
    async def state(self, request: web.Request) -> web.StreamResponse:
        """A worker changed: loading with progress, draining, stopped, failed."""
        told = await read_json(request, WorkerReport)
        origin = self._origin(request, told.hive_id)
        report = believed(told, origin)
        if report is not told:
            self._alert_foreign(told.hive_id, origin)
        outcome = self._take(report)
        log(
            LOGGER, logging.INFO, "worker state", worker=f"{report.hive_id}/{report.worker_id}",
            state=report.state.value, reason=report.reason or None, outcome=outcome.message,
        )  # fmt: skip
        return json_response(CallbackAnswer(True, outcome.message))

    def _take(self, report: WorkerReport) -> Outcome:
        now = time.monotonic()
        self._core.sessions.check(report.hive_id, report.boot_id, now)
        return self._core.registry.apply(report, now)

    def _alert_foreign(self, hive_id: str, origin: Origin) -> None:
        """A node whose words lead elsewhere than to its enrolled addresses is looked at by a person."""
        if origin.enrolled is not None:
            self._core.metrics.fleet_refusals.labels("address").inc()
            text = "a node reports a worker at an address that is not its own"
            log(LOGGER, ALERT, text, hive=hive_id, peer=origin.peer)

    def _origin(self, request: web.Request, hive_id: str) -> Origin:
        """Where the caller's words come from, once it is known that it may speak for the hive; raises Forbidden."""
        peer = peer_of(request)
        try:
            self._core.nodes.check_speaker(request[IDENTITY], hive_id, peer, peer_name(request))
        except Forbidden:
            self._core.metrics.fleet_refusals.labels("speaker").inc()
            raise
        return self._core.nodes.origin(hive_id, peer)

    @operation(HeartbeatAnswer, body=Heartbeat)
    async def heartbeat(self, request: web.Request) -> web.StreamResponse:
        """The whole picture of one machine."""
        core = self._core
        hive_id = valid_hive_id(request.match_info["hive"])
        body = await read_body(request)
        beat = read_beat(body)
        if beat.hive_id != hive_id:
            raise _field("hive_id", "expected the one in the path")
        core.metrics.heartbeats.inc()
        origin = self._origin(request, hive_id)
        now = time.monotonic()
        core.sessions.check(hive_id, beat.boot_id, now)
        outcome = self._take_picture(beat, body, origin, now)
        hive = core.registry.hive(hive_id)
        if hive is not None:
            core.heard_of(hive)
        await core.enrolments.heard(hive_id, peer_serial(request))
        revoked = _revoked_for(beat, core.fleet.revoked)
        return json_response(HeartbeatAnswer(True, outcome.message, core.instance_id, __version__, revoked))

    def _take_picture(self, beat: Beat, body: bytes, origin: Origin, now: float) -> Outcome:
        registry, picture = self._core.registry, beat.picture(origin)
        known = registry.repeated(beat.hive_id, picture, now)
        if known is not None:
            known.machine = beat.machine
            return Outcome(Verdict.SAME, "known already")
        whole = read_whole(body)
        if any((report.hive_id, report.boot_id) != (beat.hive_id, beat.boot_id) for report in whole.workers):
            raise _field("workers", "every worker of a picture has its hive_id and boot_id")
        trusted = believed_picture(whole, origin)
        before = registry.hive(beat.hive_id)
        told = before is not None and before.picture_revision == beat.revision
        outcome = registry.heartbeat(trusted, now, picture)
        if trusted != whole and not told:
            level = logging.WARNING if origin.enrolled is None else ALERT
            self._core.metrics.fleet_refusals.labels("address").inc()
            log(LOGGER, level, "a hive names addresses that are not of its machine: left out", hive=beat.hive_id)
        return outcome

    @operation(media=(EVENTS,), query={"boot_id": "the life of the hive"})
    async def session(self, request: web.Request) -> web.StreamResponse:
        """A stream held open for as long as both sides live; ``?boot_id=`` names the hive's life."""
        core = self._core
        hive_id = valid_hive_id(request.match_info["hive"])
        boot_id = request.query.get("boot_id")
        if boot_id is not None and not 0 < len(boot_id) <= 512:
            raise _field("boot_id", "expected 1 to 512 characters")
        self._origin(request, hive_id)
        with core.sessions.hold(hive_id, boot_id, time.monotonic()):
            stream = await SseStream.open(request)
            await stream.send("hello", Hello(core.instance_id))
            core.tell_of_hive(hive_id, "session opened")
            try:
                while not await core.closing_within(COMMENT_S):
                    await stream.comment("here")
            finally:
                core.tell_of_hive(hive_id, "session closed")
        return stream.response

    @operation(Certified, body=CertifyRequest)
    async def certificate(self, request: web.Request) -> web.StreamResponse:
        """A node renews its certificate over the connection that the one before it made."""
        hive_id = valid_hive_id(request.match_info["hive"])
        self._origin(request, hive_id)
        asked = await read_json(request, CertifyRequest)
        if asked.name != hive_id:
            raise _field("name", "expected the one in the path")
        answer = json_response(Certified(await self._core.enrolments.certify(asked)))
        self._core.audit.record(EventType.NODE_CERTIFY, request[IDENTITY].name, node=hive_id)
        return answer


def _revoked_for(beat: Beat, revoked: tuple[str, str] | None) -> str | None:
    """The list of revoked certificates for a hive that checks certificates and has another one."""
    if beat.revoked is None or revoked is None:
        return None
    pem, digest = revoked
    return None if beat.revoked == digest else pem


def _field(field: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"the field '{field}' is not acceptable: {why}", details={"field": field}, param=field)
