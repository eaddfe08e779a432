"""The way to the queen: a session stream that tells at once when she goes or comes back, and the heartbeat.

``GET /v2/hives/HIVE/session`` is held open by the queen; its first event ``hello`` names her instance, then come
comments. Its end means that she is gone. The heartbeat is the whole picture, every few seconds and whenever the
session says hello: so a new queen knows everything within the time of one connection.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

import aiohttp
import msgspec

from rbee import __version__
from rbee.hive.metrics import HiveMetrics
from rbee.hive.refusal import is_refusal, sentence
from rbee.hive.revoked import RevokedList
from rbee.hive.workers import WorkerTable
from rbee.wire.errors import RbeeError
from rbee.wire.http.client import fetch_json
from rbee.wire.log import log
from rbee.wire.messages import Heartbeat, HeartbeatAnswer, MachineFacts
from rbee.wire.sse import SseDecoder, SseEvent

LOGGER = logging.getLogger(__name__)
HEARTBEAT_LIMIT_S = 5.0
FAST_RETRY_S = 0.2
FAST_RETRY_FOR_S = 10.0
SLOW_RETRY_S = 1.0
NO_SESSION_RETRY_S = 30.0
SESSION_SILENCE_S = 40.0
_HELLO_LIMIT_S = 5.0
_ROTATION_S = 0.8


class Hello(msgspec.Struct, frozen=True):
    """The first event of the session: which life of the queen this is."""

    instance_id: str


def reconnect_wait(lost_for_s: float, random_number: float) -> float:
    """How long to wait before the next try: short at first, longer once she stays away; varied by a fifth."""
    wait = FAST_RETRY_S if lost_for_s < FAST_RETRY_FOR_S else SLOW_RETRY_S
    return wait * (0.8 + 0.4 * random_number)


class QueenLink:
    """Keeps the session and sends the heartbeats.

    ``machine`` reads the machine's facts; ``before_beat`` runs before each regular heartbeat (definitions are read
    anew), ``after_beat`` after each accepted one; ``on_change`` when the queen became reachable or unreachable;
    ``on_refused``, with the reason in a sentence, when she refuses this hive's token for longer than a rotation takes.
    ``revoked`` is the list of revoked certificates, which her answers renew.
    """

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession,
        table: WorkerTable,
        metrics: HiveMetrics,
        *,
        interval_s: float,
        api_url: str | None,
        machine: Callable[[], Awaitable[MachineFacts]],
        on_change: Callable[[], None],
        after_beat: Callable[[], None],
        on_refused: Callable[[str], None],
        revoked: RevokedList | None = None,
    ) -> None:
        self._url = url
        self._session = session
        self._table = table
        self._metrics = metrics
        self._interval_s = interval_s
        self._api_url = api_url
        self._machine = machine
        self._on_change = on_change
        self._after_beat = after_beat
        self._on_refused = on_refused
        self._revoked = revoked
        self._random = random.random
        self._facts: MachineFacts | None = None
        self._beat_now = asyncio.Event()
        self._session_open = False
        self._lost_at: float | None = None
        self._refused_at: float | None = None
        self._refusal_told = False
        self._taken = asyncio.Event()
        self._taken.set()
        self.reachable = False
        self.instance_id = ""
        self.why = "not tried yet"

    def beat_now(self) -> None:
        """Send the whole picture without waiting for the next interval."""
        self._beat_now.set()

    def token_changed(self) -> None:
        """This hive has read its token anew: try at once, whatever was refused before."""
        self._count_refusal(refused=False)
        self._taken.set()
        self.beat_now()

    # The session.

    async def keep_session(self) -> None:
        """Hold the session stream open for ever; each loss is followed by quick tries."""
        lost_at = time.monotonic()
        while True:
            wait: float | None = None
            try:
                if not await self._one_session():
                    wait = NO_SESSION_RETRY_S  # a queen that does not know the route: heartbeats do
            except (aiohttp.ClientError, OSError, TimeoutError, RbeeError, msgspec.MsgspecError) as error:
                log(LOGGER, logging.DEBUG, "no session with the queen", why=f"{type(error).__name__} {error}")
            if self._session_open:
                self._session_open = False
                lost_at = time.monotonic()
                self._set_reachable(reachable=False, why="the queen ended the session")
                self.beat_now()  # a queen that only closed this stream answers at once
            await self._taken.wait()  # where she refuses the token, one try a heartbeat is enough for both
            await asyncio.sleep(wait or reconnect_wait(time.monotonic() - lost_at, self._random()))

    async def _one_session(self) -> bool:
        """Open the stream and read it to its end; returns whether the queen knows the route."""
        url = f"{self._url}/v2/hives/{self._table.hive_id}/session?boot_id={self._table.boot_id}"
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_HELLO_LIMIT_S, sock_read=SESSION_SILENCE_S)
        async with self._session.get(url, timeout=timeout, allow_redirects=False) as response:
            if response.status != 200:
                log(LOGGER, logging.DEBUG, "the queen offers no session", status=response.status)
                if response.status in (401, 403):
                    self._taken.clear()
                return response.status not in (404, 405)
            decoder = SseDecoder()
            async for chunk in response.content.iter_any():
                for event in decoder.feed(chunk):
                    self._on_event(event)
        return True

    def _on_event(self, event: SseEvent) -> None:
        if event.event != "hello":
            return
        hello = msgspec.json.decode(event.data, type=Hello)
        self._session_open = True
        self._know_instance(hello.instance_id)
        self.beat_now()

    # The heartbeat.

    async def keep_beating(self) -> None:
        """Send the whole picture at the interval, at once when asked, and quickly again after a failure."""
        while True:
            self._beat_now.clear()
            if await self._beat():
                self._lost_at = None
                await self._wait(self._interval_s)
            elif self._refused_at is not None:
                # a rotation that both sides read within a second is no news; past that only a reload helps
                await self._wait(self._interval_s if self._refusal_told else SLOW_RETRY_S)
            else:
                now = time.monotonic()
                self._lost_at = self._lost_at or now
                fast = now - self._lost_at < FAST_RETRY_FOR_S
                await self._wait(reconnect_wait(now - self._lost_at, self._random()) if fast else self._interval_s)

    async def _wait(self, seconds: float) -> None:
        """Wait, or less when a heartbeat is asked for; the machine's facts are read anew when the time is up."""
        try:
            async with asyncio.timeout(seconds):
                await self._beat_now.wait()
        except TimeoutError:
            self._facts = await self._machine()

    async def _beat(self) -> bool:
        if self._facts is None:
            self._facts = await self._machine()
        body = Heartbeat(
            hive_id=self._table.hive_id,
            boot_id=self._table.boot_id,
            revision=self._table.revision,
            version=__version__,
            interval_s=self._interval_s,
            sent_unix=time.time(),
            api_url=self._api_url,
            machine=self._facts,
            workers=self._table.reports(),
            revoked=None if self._revoked is None else self._revoked.digest,
        )
        url = f"{self._url}/v2/hives/{self._table.hive_id}/heartbeat"
        try:
            answer = await fetch_json(
                self._session, "POST", url, HeartbeatAnswer, body=body, timeout_s=HEARTBEAT_LIMIT_S
            )
        except RbeeError as error:
            self._metrics.heartbeats.labels("failure").inc()
            self._set_reachable(reachable=False, why=sentence(error))
            self._count_refusal(refused=is_refusal(error))
            return False
        self._metrics.heartbeats.labels("success").inc()
        self._know_instance(answer.instance_id)
        self._set_reachable(reachable=True, why="")
        self._count_refusal(refused=False)
        self._taken.set()
        if answer.revoked is not None and self._revoked is not None:
            await self._revoked.put(answer.revoked)
        self._after_beat()
        return True

    def _count_refusal(self, *, refused: bool) -> None:
        if not refused:
            self._refused_at, self._refusal_told = None, False
            return
        now = time.monotonic()
        self._refused_at = self._refused_at or now
        if not self._refusal_told and now - self._refused_at >= _ROTATION_S:
            self._refusal_told = True
            self._on_refused(self.why)

    def _know_instance(self, instance_id: str) -> None:
        if self.instance_id and instance_id != self.instance_id:
            log(LOGGER, logging.INFO, "the queen is a new one: she gets the whole picture", instance_id=instance_id)
            self.beat_now()
        self.instance_id = instance_id

    def _set_reachable(self, *, reachable: bool, why: str) -> None:
        self.why = why
        if reachable == self.reachable:
            return
        self.reachable = reachable
        if reachable:
            log(LOGGER, logging.INFO, "the queen is reachable", instance_id=self.instance_id)
        else:
            log(LOGGER, logging.WARNING, "the queen is not reachable", why=why)
        self._on_change()
