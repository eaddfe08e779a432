"""What became of recent requests: each placement, try, refusal and answer, with the numbers behind it.

A request's trail is written while it runs and read by `rbee why`. Only the latest requests are kept, in memory.
"""

import time
from collections import deque
from collections.abc import Sequence

from rbee.queen.placement.decision import Decision
from rbee.queen.registry.rows import Worker
from rbee.queen.requests.explanations import Considered, Explanation, Step, What, WorkerExplanation
from rbee.queen.routing.decision import Key, routable
from rbee.queen.routing.placed import Placement, Seen
from rbee.wire.errors import NotFound, RbeeError

KEPT = 2000
"""Requests that are remembered."""
MOST_STEPS = 16
MOST_SHOWN = 20
NO_WORKER = "none"
"""Stands for the worker of an answer in which none took part; no worker's name is without a slash."""
_MOST_WORDS = 300


_Step = tuple[float, What, str | None, str, int | None, Sequence[Seen]]


class Trail:
    """One request's steps and times, written while it runs; clocks are ``time.perf_counter``.

    Its headers name where it ran and where its time went as the head of the answer leaves.

    From the whole request's arrival on, time passes in three ways: waiting for a worker (``queue_s``), between sending
    and the first byte of a worker's answer (``worker_s``, all tries together), and the rest, which is the queen's own.
    """

    __slots__ = (
        "_sent", "_steps", "_waits_since", "arrived", "arrived_unix", "asked", "caller", "chosen", "code",
        "correlation_id", "ended", "model", "outcome", "overhead_ms", "queue_s", "request_id", "route", "tries",
        "worker", "worker_s",
    )  # fmt: skip

    def __init__(self, route: str, correlation_id: str | None, caller: str | None) -> None:
        self.route = route
        self.correlation_id = correlation_id
        self.caller = caller
        self.request_id: str | None = None
        self.model = self.asked = ""
        self.arrived = time.perf_counter()
        self.arrived_unix = time.time()
        self.worker: str | None = None
        self.chosen: Key | None = None
        self.tries = 0
        self.queue_s = self.worker_s = 0.0
        self.overhead_ms: float | None = None
        self.ended: float | None = None
        self.outcome = "running"
        self.code: str | None = None
        self._waits_since: float | None = None
        self._sent = self.arrived
        self._steps: list[_Step] = []

    def came(self, model: str, asked: str) -> None:
        """The request is here to its last byte, and names ``asked``, which stands for ``model``."""
        if not self._steps:
            self.arrived = time.perf_counter()
        self.model, self.asked = model, asked

    def waits(self) -> None:
        """The wait for a worker begins, or goes on."""
        if self._waits_since is None:
            self._waits_since = time.perf_counter()

    def placed(self, placement: Placement) -> None:
        """A worker was chosen: the wait is over, and it is sent the request now."""
        now = self._sent = time.perf_counter()
        if self._waits_since is not None:
            self.queue_s += now - self._waits_since
            self._waits_since = None
        self.chosen = placement.chosen
        self.worker = str(placement.chosen)
        self.tries += 1
        self._add(now, What.PLACED, self.worker, placement.reason, candidates=placement.considered)

    def answers(self, status: int) -> None:
        """The first byte of the worker's answer is here."""
        now = time.perf_counter()
        self.worker_s += now - self._sent
        self._sent = now
        self._add(now, What.ANSWERS, self.worker, status=status)

    def turned_away(self, what: What, why: str, status: int | None = None) -> None:
        """The worker refused the request, or cannot be reached, or broke off."""
        now = time.perf_counter()
        if what is not What.BROKE_OFF:
            self.worker_s += now - self._sent
        self._add(now, what, self.worker, why[:_MOST_WORDS], status)

    def denied(self, error: RbeeError) -> None:
        """No worker was given to the request: why, with the numbers behind it."""
        numbers = ", ".join(
            f"{name} {value}" for name, value in error.details.items() if isinstance(value, int | float)
        )
        self._add(
            time.perf_counter(), What.DENIED, None, f"{error.message} {numbers}".strip()[:_MOST_WORDS], error.status
        )

    def ends(self, outcome: str, code: str | None) -> None:
        """The request is over."""
        self.outcome, self.code, self.ended = outcome, code, time.perf_counter()

    def _add(
        self, at: float, what: What, worker: str | None, why: str = "", status: int | None = None,
        candidates: Sequence[Seen] = (),
    ) -> None:  # fmt: skip
        if len(self._steps) < MOST_STEPS:
            self._steps.append((at, what, worker, why, status, candidates))

    def headers(self) -> tuple[str, str, str]:
        """Worker, ms in the queue, and the queen's own ms, as the head of the answer leaves with them now."""
        now = time.perf_counter()
        waited = self.queue_s if self._waits_since is None else self.queue_s + now - self._waits_since
        if self.overhead_ms is None:
            self.overhead_ms = max(0.0, now - self.arrived - self.worker_s - waited) * 1000
        return self.worker or NO_WORKER, f"{waited * 1000:.1f}", f"{self.overhead_ms:.3f}"

    @property
    def last(self) -> str:
        """What its latest step was."""
        return self._steps[-1][1].value if self._steps else ""

    def met(self, worker: str) -> bool:
        """Whether a step of it was at ``worker``."""
        return any(step[2] == worker for step in self._steps)

    def told(self) -> Explanation:
        """All of it, for a person."""
        steps = [
            Step(_ms(at - self.arrived), what, worker, why, status, [_considered(one) for one in candidates])
            for at, what, worker, why, status, candidates in self._steps
        ]
        overhead = None if self.overhead_ms is None else round(self.overhead_ms, 3)
        total = None if self.ended is None else _ms(self.ended - self.arrived)
        return Explanation(
            self.correlation_id, self.request_id, self.caller, self.route, self.model, self.asked, self.arrived_unix,
            self.worker, _ms(self.queue_s), _ms(self.worker_s), overhead, total, self.outcome, self.code, steps,
        )  # fmt: skip


def _considered(seen: Seen) -> Considered:
    return Considered(str(seen.key), seen.state.value, seen.in_flight, seen.slots, seen.work, seen.weight)


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


class Recent:
    """The trails of the latest requests, found by correlation id or request id."""

    def __init__(self, most: int = KEPT) -> None:
        self._most = most
        self._trails: deque[Trail] = deque()
        self._by_id: dict[str, Trail] = {}

    def keep(self, trail: Trail) -> None:
        """Remember one; the oldest is forgotten where there are too many. Of several with an id the latest counts."""
        if len(self._trails) >= self._most:
            self._forget(self._trails.popleft())
        self._trails.append(trail)
        if trail.correlation_id is not None:
            self._by_id[trail.correlation_id] = trail

    def _forget(self, oldest: Trail) -> None:
        by_id, name = self._by_id, oldest.correlation_id
        if name is not None and by_id.get(name) is oldest:
            del by_id[name]
        name = oldest.request_id
        if name is not None and by_id.get(name) is oldest:
            del by_id[name]

    def name(self, trail: Trail, request_id: str) -> None:
        """Let a kept trail be found by its request id too."""
        trail.request_id = request_id
        self._by_id[request_id] = trail

    def find(self, name: str) -> Explanation | None:
        """The latest request of that correlation id or request id."""
        trail = self._by_id.get(name)
        return None if trail is None else trail.told()

    def at(self, worker: str) -> list[Explanation]:
        """The latest requests that met a worker, newest first."""
        found: list[Explanation] = []
        for trail in reversed(self._trails):
            if trail.met(worker):
                found.append(trail.told())
                if len(found) == MOST_SHOWN:
                    break
        return found

    def explain_worker(self, worker: Worker, placement: Decision | None) -> WorkerExplanation:
        """Why ``worker`` gets requests or none, and by which ``placement`` it is where it is."""
        return WorkerExplanation(
            worker.view(), routable(worker), worker.held, worker.suspect, worker.hive.stale, worker.in_flight,
            worker.slots, worker.served, self.at(str(worker.key)), placement,
        )  # fmt: skip


def nothing_known(name: str) -> NotFound:
    """The error for a name that is neither a recent request nor a worker."""
    return NotFound(
        f"no recent request or worker has that name: the latest {KEPT} requests since the queen's start are kept",
        details={"name": name[:128]},
    )
