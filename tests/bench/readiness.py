"""The bench `readiness`: from READY=1 to the queen's list, to the request that waits, on a real systemd."""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass

from rbee.wire.messages import WorkerFacts, decode_json
from tests.behaviour.support.house import House
from tests.behaviour.support.http import Http
from tests.bench import place, usage
from tests.bench.arrivals import Arrivals
from tests.bench.events import READY, EventFeed, Seen
from tests.bench.floor import Floor
from tests.bench.quantiles import quantile, ratio
from tests.bench.report import Bench, Figure, Measured, Metrics, Target

WORKER = "single"
MODEL = "tiny-tensor"
INPUTS = {
    "inputs": [
        {"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]},
        {"name": "shift", "shape": [1, 1], "datatype": "INT64", "data": [0]},
    ]
}
LIVES, QUICK_LIVES = 200, 30
CROWD, QUICK_CROWD = 50, 10
CALLBACKS = "rbee_hive_worker_ready_callbacks_total"


@dataclass(frozen=True, slots=True)
class Life:
    """One life of a worker; times in ms. ``asked``: a waiting request started it, else an operator."""

    asked: bool
    ready_to_queen: float
    ready_to_client: float
    floor: float
    spawn_to_ready: float | None
    wake: float | None
    ready_to_arrival: float | None
    ready_to_answer: float | None
    list_agrees: bool | None


@dataclass(frozen=True, slots=True)
class Crowd:
    """Many workers started at once; times from READY=1 of each to the queen's row in ms."""

    workers: int
    all_idle_s: float
    ready_to_queen: list[float]


@dataclass(frozen=True, slots=True)
class Counts:
    """Counters of hive and queen at one moment."""

    sent: float
    failed: float
    received: float
    polls: float

    @classmethod
    def read(cls, house: House) -> "Counts":
        """Scrape both."""
        hive, queen = house.hive_admin, house.admin
        return cls(
            hive.metric(CALLBACKS, status="success"),
            hive.metric(CALLBACKS, status="failure"),
            queen.metric("queen_rbee_worker_ready_notifications_received_total"),
            queen.metric("queen_rbee_readiness_fallback_polls_total"),
        )

    def since(self, before: "Counts") -> "Counts":
        """What came since an earlier moment."""
        return Counts(
            self.sent - before.sent,
            self.failed - before.failed,
            self.received - before.received,
            self.polls - before.polls,
        )


class OneByOne:
    """Lives of one worker, one after another."""

    def __init__(self, house: House, feed: EventFeed, floor: Floor, arrivals: Arrivals) -> None:
        self._house = house
        self._feed = feed
        self._floor = floor
        self._arrivals = arrivals
        self._queen = place.patient_admin(house)

    def live(self, asked: bool, pool: ThreadPoolExecutor) -> Life:
        """Start, measure, stop; returns when the queen knows that it is stopped."""
        place_in_feed = self._feed.now()
        answer = pool.submit(_ask, self._queen, MODEL) if asked else None
        if answer is None:
            self._house.start_worker(WORKER)
        ready = self._feed.wait(place_in_feed, _is(WORKER, READY), f"{WORKER} ready")
        facts = _facts(self._house, WORKER)
        assert facts.invocation_id == ready.invocation_id, "the event is of another life"
        life = self._measure(facts.ready_monotonic_us, ready, answer)
        place_in_feed = self._feed.now()
        self._house.machine.systemctl("stop", f"rbee-worker@{WORKER}")
        self._feed.wait(place_in_feed, _is(WORKER, ("stopped",)), f"{WORKER} stopped")
        return life

    def _measure(self, ready_us: int, seen: Seen, answer: Future[int] | None) -> Life:
        agrees = None if answer else self._house.rows()[WORKER]["state"] == "idle"
        floor_us = self._floor.first_after(ready_us)
        answered_us = answer.result() if answer else None
        arrival_us = self._arrivals.first_after(ready_us) if answer else None
        unit = self._house.unit(WORKER)
        loading_us = int(unit["ActiveEnterTimestampMonotonic"]) - int(unit["InactiveExitTimestampMonotonic"])
        return Life(
            asked=answer is not None,
            ready_to_queen=_ms(seen.stored_us - ready_us),
            ready_to_client=_ms(seen.heard_us - ready_us),
            floor=_ms(floor_us - ready_us),
            spawn_to_ready=_ms(loading_us),
            wake=None if arrival_us is None else _ms(arrival_us - seen.stored_us),
            ready_to_arrival=None if arrival_us is None else _ms(arrival_us - ready_us),
            ready_to_answer=None if answered_us is None else _ms(answered_us - ready_us),
            list_agrees=agrees,
        )


def _ms(microseconds: int) -> float:
    return microseconds / 1000


def _is(worker: str, states: Iterable[str]) -> Callable[[Seen], bool]:
    return lambda seen: seen.worker == worker and seen.state in states


def _facts(house: House, worker: str) -> WorkerFacts:
    return decode_json(house.machine.read(f"/run/rbee/workers/{worker}/worker.json").encode(), WorkerFacts)


def _ask(queen: Http, model: str) -> int:
    """Send a request that waits for its model; the moment of its whole answer (CLOCK_MONOTONIC, us)."""
    answer = queen.post(f"/v2/models/{model}/infer", INPUTS)
    assert answer.status == 200, f"inference answered {answer.status}: {answer.body!r}"
    return time.monotonic_ns() // 1000


def _member(number: int) -> str:
    return f"crowd-{number}"


def _start_crowd(house: House, feed: EventFeed, size: int) -> Crowd:
    """Start all at once with a request waiting for each; stops them when all are answered."""
    members = [_member(number) for number in range(size)]
    units = [f"rbee-worker@{member}" for member in members]
    queen, place_in_feed = place.patient_admin(house), feed.now()
    with ThreadPoolExecutor(size) as pool:
        began = time.monotonic_ns() // 1000
        house.machine.systemctl("start", "--no-block", *units)
        answers = [pool.submit(_ask, queen, member) for member in members]
        ready = [feed.wait(place_in_feed, _is(member, READY), f"{member} ready", 300) for member in members]
        for answer in answers:
            answer.result()
    stamps = [_facts(house, member).ready_monotonic_us for member in members]
    waits = [_ms(seen.stored_us - stamp) for seen, stamp in zip(ready, stamps, strict=True)]
    found = Crowd(size, max(seen.stored_us for seen in ready) / 1e6 - began / 1e6, waits)
    place_in_feed = feed.now()
    house.machine.systemctl("stop", *units)
    for member in members:
        feed.wait(place_in_feed, _is(member, ("stopped",)), f"{member} stopped")
    return found


def _sandboxed(house: House) -> None:
    """The hive runs as its unit says: its system calls are filtered and it cannot gain privileges."""
    pid = usage.main_pid(house.machine, "rbee-hive.service")
    status = house.machine.read(f"/proc/{pid}/status")
    assert "Seccomp:\t2" in status and "NoNewPrivs:\t1" in status, "the hive's sandbox is off"


def measure(quick: bool) -> Measured:
    """Boot a machine, measure one by one, then the crowd."""
    lives, size = (QUICK_LIVES, QUICK_CROWD) if quick else (LIVES, CROWD)
    with place.house() as house:
        house.define_worker(WORKER, MODEL)
        for number in range(size):
            house.define_worker(_member(number), MODEL, name=_member(number))
        house.start()
        _sandboxed(house)
        with EventFeed(house.machine) as feed:
            house.wait_state(WORKER, "stopped")
            before = Counts.read(house)
            alone = _one_by_one(house, feed, lives)
            between = Counts.read(house)
            wake = (
                house.admin.metric("queen_rbee_ready_to_first_request_seconds_sum"),
                house.admin.metric("queen_rbee_ready_to_first_request_seconds_count"),
            )
            crowd = _start_crowd(house, feed, size)
            after = Counts.read(house)
        metrics = _figures(alone) | _counted(between.since(before), after.since(between), lives, crowd)
        metrics["queen_metric_wake_mean_ms"] = ratio(wake[0] * 1000, wake[1])
        for daemon in ("queen", "hive"):
            pid = usage.main_pid(house.machine, f"rbee-{daemon}.service")
            metrics[f"{daemon}_rss_after_mb"] = usage.memory(house.machine, pid).rss_mb
    return Measured(metrics, [*(asdict(life) for life in alone), asdict(crowd)])


def _one_by_one(house: House, feed: EventFeed, lives: int) -> list[Life]:
    unit = f"rbee-worker@{WORKER}.service"
    path = f"POST /v2/models/{MODEL}/infer ".encode()
    with (
        Floor(house.machine, unit) as floor,
        Arrivals(house.machine, path) as arrivals,
        ThreadPoolExecutor(1) as pool,
    ):
        alone = OneByOne(house, feed, floor, arrivals)
        return [alone.live(number % 2 == 1, pool) for number in range(lives)]


def _figures(lives: list[Life]) -> Metrics:
    def over(name: str, share: float) -> float | None:
        values = (getattr(life, name) for life in lives)
        return quantile((value for value in values if value is not None), share)

    floor, queen = over("floor", 0.5), over("ready_to_queen", 0.5)
    agreed = [life.list_agrees for life in lives if life.list_agrees is not None]
    return {
        "ready_to_queen_p50_ms": queen,
        "ready_to_queen_p99_ms": over("ready_to_queen", 0.99),
        "floor_p50_ms": floor,
        "floor_p99_ms": over("floor", 0.99),
        "ratio_p50": ratio(queen, floor),
        "waiter_wake_p50_ms": over("wake", 0.5),
        "waiter_wake_p99_ms": over("wake", 0.99),
        "ready_to_client_p50_ms": over("ready_to_client", 0.5),
        "ready_to_arrival_p50_ms": over("ready_to_arrival", 0.5),
        "ready_to_arrival_p99_ms": over("ready_to_arrival", 0.99),
        "ready_to_answer_p50_ms": over("ready_to_answer", 0.5),
        "spawn_to_ready_p50_ms": over("spawn_to_ready", 0.5),
        "list_agreed": ratio(float(sum(agreed)), float(len(agreed))),
        "lives": float(len(lives)),
    }


def _counted(alone: Counts, together: Counts, lives: int, crowd: Crowd) -> Metrics:
    return {
        "callbacks_per_life": alone.sent / lives,
        "notifications_per_life": alone.received / lives,
        "callback_failures": alone.failed + together.failed,
        "fallback_polls": alone.polls + together.polls,
        "crowd_workers": float(crowd.workers),
        "crowd_callbacks_per_life": together.sent / crowd.workers,
        "crowd_fallback_polls": together.polls,
        "crowd_all_idle_s": crowd.all_idle_s,
        "crowd_ready_to_queen_p50_ms": quantile(crowd.ready_to_queen, 0.5),
        "crowd_ready_to_queen_p99_ms": quantile(crowd.ready_to_queen, 0.99),
    }


FIGURES = (
    Figure("ready_to_queen_p50_ms", "ms", "READY=1 until the queen's row says ready", Target("<=", 5), "floor_p50_ms"),
    Figure("ready_to_queen_p99_ms", "ms", "the same at p99", Target("<=", 25), "floor_p99_ms"),
    Figure("floor_p50_ms", "ms", "READY=1 until a bare D-Bus listener hears it, same lives"),
    Figure("floor_p99_ms", "ms", "the same at p99"),
    Figure("ratio_p50", "", "ready_to_queen_p50_ms / floor_p50_ms", Target("<=", 2.5)),
    Figure("waiter_wake_p50_ms", "ms", "the queen's row until the waiting request is at the worker", Target("<=", 5)),
    Figure("waiter_wake_p99_ms", "ms", "the same at p99"),
    Figure("ready_to_client_p50_ms", "ms", "READY=1 until a client of /v2/events hears it"),
    Figure("ready_to_arrival_p50_ms", "ms", "READY=1 until the waiting request is at the worker"),
    Figure("ready_to_arrival_p99_ms", "ms", "the same at p99"),
    Figure("ready_to_answer_p50_ms", "ms", "READY=1 until the waiting client has its whole answer"),
    Figure("queen_metric_wake_mean_ms", "ms", "queen_rbee_ready_to_first_request_seconds, mean"),
    Figure("spawn_to_ready_p50_ms", "ms", "unit starting until active, sandbox and model included"),
    Figure("list_agreed", "", "share of lives in which the list, asked after the event, said idle", Target("=", 1)),
    Figure("lives", "", "starts, one after another, half by an operator and half by a waiting request"),
    Figure("callbacks_per_life", "", "ready callbacks that the hive sent, a life", Target("=", 1)),
    Figure("notifications_per_life", "", "ready callbacks that the queen counted, a life", Target("=", 1)),
    Figure("callback_failures", "", "tries of callbacks that failed, both phases", Target("=", 0)),
    Figure("fallback_polls", "", "times that the queen had to ask a worker, both phases", Target("=", 0)),
    Figure("crowd_workers", "", "workers started at once, a request waiting for each"),
    Figure("crowd_callbacks_per_life", "", "ready callbacks in the crowd, a life", Target("=", 1)),
    Figure("crowd_fallback_polls", "", "times that the queen had to ask a worker of the crowd", Target("=", 0)),
    Figure("crowd_all_idle_s", "s", "the order to start until all of the crowd are ready"),
    Figure("crowd_ready_to_queen_p50_ms", "ms", "READY=1 until the queen's row, while the crowd still loads"),
    Figure("crowd_ready_to_queen_p99_ms", "ms", "the same at p99"),
    Figure("queen_rss_after_mb", "MB", "resident memory of the queen after all that"),
    Figure("hive_rss_after_mb", "MB", "resident memory of the hive after all that"),
)  # fmt: skip

BENCH = Bench(
    "readiness",
    "READY=1 to the queen's list and to the request that waits, real units, the hive's sandbox on.",
    FIGURES,
    measure,
)
