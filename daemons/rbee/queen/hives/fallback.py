"""The fallback of the readiness path: ask a worker itself whether it is ready, and count each time.

The rule, so that the counter stays at 0 in a healthy system however long models take to load: a worker is asked only
while (a) a request waits for its model, (b) its state is loading and its address is known, and (c) its hive has been
silent for more than two heartbeat intervals. A hive that speaks is a hive whose callbacks and pictures repair
whatever was lost, so nothing is asked beside it. One poller for each worker, every 2 s, for at most 30 s; the
answer ``ready`` makes the worker routable for as long as a hive may be silent.
"""

import asyncio
import logging
import time
from collections.abc import Callable

import aiohttp
import msgspec

from rbee.queen.metrics import QueenMetrics
from rbee.queen.registry.registry import Registry
from rbee.queen.registry.rows import Worker
from rbee.queen.routing.decision import Key
from rbee.wire.auth import Secret
from rbee.wire.errors import ProtocolError
from rbee.wire.http.client import decode_answer
from rbee.wire.log import log
from rbee.wire.messages import WorkerState
from rbee.wire.tasks import TaskOwner

LOGGER = logging.getLogger(__name__)
SILENT_INTERVALS = 2.0
ASK_FOR_S = 30.0
_MOST_ANSWER_BYTES = 64 << 10


class _Readiness(msgspec.Struct, frozen=True):
    ready: bool


def may_ask(worker: Worker, now: float) -> bool:
    """Whether conditions (b) and (c) hold for the worker at ``now`` (monotonic seconds)."""
    hive = worker.hive
    if hive.manual or worker.url is None or worker.report.state is not WorkerState.LOADING or worker.proven_until:
        return False
    return now - hive.heard > SILENT_INTERVALS * hive.interval_s


def may_yet_be_ready(worker: Worker, now: float) -> bool:
    """Whether a worker that loads behind a silent hive is being asked, or will be: who waits for it waits on."""
    hive = worker.hive
    asked_until = hive.heard + SILENT_INTERVALS * hive.interval_s + ASK_FOR_S
    return worker.report.state is WorkerState.LOADING and worker.url is not None and now < asked_until


class Fallback:
    """Pollers of workers whose hives are silent. ``every_s`` and ``for_s`` are the pace and the limit of each."""

    def __init__(
        self,
        registry: Registry,
        session: aiohttp.ClientSession,
        token: Callable[[str], Secret | None],
        owner: TaskOwner,
        metrics: QueenMetrics,
        *,
        every_s: float = 2.0,
        for_s: float = ASK_FOR_S,
    ) -> None:
        self._registry = registry
        self._session = session
        self._token = token
        self._owner = owner
        self._metrics = metrics
        self._every_s = every_s
        self._for_s = for_s
        self._polling: set[Key] = set()
        self._asked: dict[Key, int] = {}

    def consider(self, model: str, now: float) -> None:
        """A request waits for ``model``: begin to ask those of its workers for which the rule holds."""
        for worker in self._registry.serving(model):
            fresh = self._asked.get(worker.key) != worker.report.revision
            if worker.key not in self._polling and fresh and may_ask(worker, now):
                self._polling.add(worker.key)
                self._asked[worker.key] = worker.report.revision  # one round of 30 s for each report
                if self._owner.start(self._poll(worker.key), f"ask {worker.key}") is None:
                    self._polling.discard(worker.key)

    async def _poll(self, key: Key) -> None:
        log(LOGGER, logging.WARNING, "hive is silent: asking its loading worker", worker=str(key))
        ends = time.monotonic() + self._for_s
        try:
            while time.monotonic() < ends:
                worker = self._registry.worker(key)
                if worker is None or worker.url is None or not may_ask(worker, time.monotonic()):
                    return
                self._metrics.fallback_polls.inc()
                ready = await self._ready(worker.url, key.hive_id)
                if self._registry.worker(key) is not worker or not may_ask(worker, time.monotonic()):
                    return  # the hive spoke meanwhile: what it says stands
                if ready:
                    hive = worker.hive
                    lasts = self._registry.limits.stale_after_intervals * hive.interval_s
                    self._registry.prove(worker, time.monotonic() + lasts)
                    return
                await asyncio.sleep(self._every_s)
            log(LOGGER, logging.ERROR, "worker did not become ready while its hive was silent", worker=str(key))
        finally:
            self._polling.discard(key)

    async def _ready(self, url: str, hive_id: str) -> bool:
        token = self._token(hive_id)
        headers = {} if token is None else {"Authorization": f"Bearer {token.reveal()}"}
        try:
            async with (
                asyncio.timeout(self._every_s),
                self._session.get(f"{url}/v1/ready", headers=headers, allow_redirects=False) as response,
            ):
                answer = await response.content.read(_MOST_ANSWER_BYTES)
                return response.status == 200 and decode_answer(answer, _Readiness).ready
        except (TimeoutError, aiohttp.ClientError, ProtocolError):
            return False

    def forget(self, key: Key) -> None:
        """The worker is gone."""
        self._asked.pop(key, None)
